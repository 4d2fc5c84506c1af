"""Runs a Flower strategy that is not ours in the simulated world."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsim.errors import BadValue, FedsimError, RunError, StalledError, at_round
from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.flower.simulate.notes import FlowerNotes
from fedsim.flower.simulate.weighting import weighting_of
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalUpdate
from fedsim.logs import once
from fedsim.methods.metrics import SYSTEM
from fedsim.running.exchange import TimeUp
from fedsim.running.observer import Observer
from fedsim.running.servers import report
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

ENDLESS = 10**9


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
    if hasattr(strategy, "check"):
        strategy.check(clients)
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
    policy, stop = experiment.strategy, experiment.stop
    drop = policy.on_failure == "drop"
    clients = BuiltinClients(replace(learner, drop=drop), updates, getattr(strategy, "queries", {}))
    limits = experiment.network.detect_s, stop.sim_time_s
    grid = SimGrid(world, clients, *limits, policy.quorum, policy.retries, drop=drop)
    task = learner.engine.task
    select = getattr(strategy, "select", None)
    notes = FlowerNotes(strategy, observer, learner.dry)
    observer.record.fact("weighting", weighting_of(strategy))

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        told = select if select is not None and not learner.dry and observer.due(server_round) else None
        for name, value, node in told.metrics(server_round) if told is not None else ():
            observer.record.metric(server_round, world.clock.now, name, value, node)
        model = Deferred.phantom() if learner.dry else unpack(arrays, task.device, task.dtype)
        if observer.on_round(server_round, {SYSTEM: model}, grid.updates):
            raise TargetReached("the target accuracy is reached")
        return MetricRecord(dict(observer.scores)) if observer.scores else None

    try:
        session = compat.session(experiment.seed, grid.server.id, grid.sleep, logging.WARNING)
        with session, once("flwr"), notes.taken(), _history(strategy):
            strategy.start(
                grid,
                initial_arrays=pack(learner.initial, task.layout, str(task.dtype).removeprefix("torch.")),
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


def _history(strategy: Strategy) -> AbstractContextManager[None]:
    """Let Flower's loop forget its history, which the record has, unless the strategy has a loop of its own."""
    known = type(strategy).start.__module__.startswith(("flwr.", "fedsim.", "strategies."))
    return compat.forgetful() if known else nullcontext()
