"""Runs a Flower strategy that is not ours in the simulated world."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsim.errors import BadValue, FedsimError, RunError, StalledError, at_round
from fedsim.flower import compat
from fedsim.flower.records import lifted, pack, unpack
from fedsim.flower.simulate import state
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.flower.simulate.notes import FlowerNotes
from fedsim.flower.simulate.weighting import weighting_of
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalUpdate
from fedsim.logs import once
from fedsim.methods.metrics import SYSTEM
from fedsim.methods.traits import Traits
from fedsim.running.checkpoint import Keeper
from fedsim.running.exchange import TimeUp
from fedsim.running.observer import Observer
from fedsim.running.servers import report
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

ENDLESS = 10**9

log = logging.getLogger("fedsim")


class TargetReached(FedsimError):
    """The experiment's target is reached; ends the strategy's loop."""


def check_strategy(strategy: Any, clients: int) -> None:
    """Check a Flower strategy against the number of clients: Flower's wait for ever for clients that do not exist.

    Raises:
        BadValue: if it can never have the clients that it asks for.
    """
    if not isinstance(strategy, Strategy):
        name = type(strategy).__name__
        raise BadValue("name", name, "must be a PeerStrategy or a flwr.serverapp.strategy.Strategy")
    check = Traits.of(strategy).check
    if check is not None:
        check(clients)
    for key, value in vars(strategy).items():
        if key.startswith("fraction_") and isinstance(value, int | float) and not 0 <= value <= 1:
            raise BadValue(key, value, "must be between 0 and 1")
        if key.startswith("min_") and key.endswith("_nodes") and isinstance(value, int) and value > clients:
            hint = f"set strategy.{key}, Flower's own default is {value}"
            raise BadValue(key, value, f"at most {clients}, the number of clients", hint)


def run_strategy(
    experiment: Experiment,
    strategy: Strategy,
    updates: Mapping[str, LocalUpdate],
    world: World,
    learner: Learner,
    observer: Observer,
) -> None:
    """Run a strategy until the experiment's stop condition.

    Args:
        experiment: says when to stop.
        strategy: any Flower strategy.
        updates: what clients do, by message type.
        world: the event plane, with a server.
        learner: the compute plane.
        observer: told of every round.
    """
    policy, stop, traits = experiment.strategy, experiment.stop, Traits.of(strategy)
    drop = policy.on_failure == "drop"
    clients = BuiltinClients(replace(learner, drop=drop), updates, traits.queries)
    limits = experiment.network.detect_s, stop.sim_time_s
    task, initial = learner.engine.task, learner.initial
    lift = None if learner.dry else partial(lifted, own=initial)
    grid = SimGrid(world, clients, *limits, policy.quorum, policy.retries, drop=drop, lift=lift)
    saves = Saves(strategy, observer.keeper, experiment)
    select = traits.selector
    notes = FlowerNotes(strategy, observer, learner.dry)
    observer.record.fact("weighting", weighting_of(strategy))

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        told = select if select is not None and not learner.dry and observer.due(server_round) else None
        for name, value, node in told.metrics(server_round) if told is not None else ():
            observer.record.metric(server_round, world.clock.now, name, value, node)
        saves.arrays = None if arrays is start else arrays
        model = Deferred.phantom()
        if lift is not None:
            model = unpack(lift(arrays), task.device, task.dtype)
        ended = observer.on_round(server_round, {SYSTEM: model}, grid.updates)
        saves.go_on(server_round, arrays)
        if ended:
            raise TargetReached("the target accuracy is reached")
        return MetricRecord(dict(observer.scores)) if observer.scores else None

    start = pack(initial, task.layout, str(task.dtype).removeprefix("torch."))
    try:
        session = compat.session(experiment.seed, grid.server.id, grid.sleep, logging.WARNING)
        with session, once("flwr"), notes.taken(), _history(strategy), saves.quiet():
            strategy.start(
                grid,
                initial_arrays=start,
                num_rounds=stop.rounds or ENDLESS,
                timeout=policy.timeout_s or math.inf,
                evaluate_fn=measure,
            )
    except (TimeUp, TargetReached):
        pass
    except StalledError as error:
        if error.round is None:
            raise at_round(error, observer.round + 1) from error
        raise
    except (RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        name = type(strategy).__name__
        raise RunError(reason, None, observer.round + 1, world.clock.now_s, name) from error
    finally:
        report(grid.dropped, observer)


class Saves:
    """Lets a run's keeper save a strategy with the run, and restore it.

    Args:
        strategy: any, with what is around it.
        keeper: the run's, or None.
        experiment: says whether other checkpoints than usual were asked for.

    Raises:
        ConfigError: if they were, and the strategy cannot be saved.
    """

    def __init__(self, strategy: Strategy, keeper: Keeper | None, experiment: Experiment) -> None:
        self._strategy, self._keeper = strategy, keeper
        self.arrays: ArrayRecord | None = None
        if keeper is None or keeper.rule is None:
            return
        keeper.state = self._state
        try:
            state.check(strategy)
        except BadValue as error:
            # The file in a run's folder says everything, so that what is there may be nobody's wish.
            if experiment.record.checkpoint != type(experiment.record)().checkpoint:
                raise experiment.problem(("strategy",), error) from error
            log.info("this run makes no checkpoints: %s", error.rule)
            keeper.stop()

    def _state(self) -> dict[str, Any]:
        return state.state_of(self._strategy, self.arrays)

    def go_on(self, round: int, arrays: ArrayRecord) -> None:
        """Restore the strategy, and the model in its loop's hands, at the end of the checkpoint's round."""
        goal = None if self._keeper is None else self._keeper.goal
        if goal is not None and goal.past.round == round and goal.state is not None:
            state.restore(self._strategy, arrays, goal.state)

    def quiet(self) -> AbstractContextManager[Any]:
        """Let NumPy say nothing of zeros that stand for what is not computed again."""
        repeats = self._keeper is not None and self._keeper.goal is not None
        return np.errstate(all="ignore") if repeats else nullcontext()


def _history(strategy: Strategy) -> AbstractContextManager[None]:
    """Let Flower's loop forget its history, which the record has, unless the strategy has a loop of its own."""
    known = type(strategy).start.__module__.startswith(("flwr.", "fedsim.", "strategies."))
    return compat.forgetful() if known else nullcontext()
