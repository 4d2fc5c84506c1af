"""Runs a Flower strategy, ours or anybody's, in the simulated world."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsim import parts
from fedsim.errors import BadValue, FedsimError, RunError, StalledError, at_round
from fedsim.flower import compat
from fedsim.flower.central import Central
from fedsim.flower.records import pack, unpack
from fedsim.flower.select import Selector
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.failures import Dropped, warn
from fedsim.flower.simulate.grid import SimGrid, TimeUp
from fedsim.flower.simulate.instruction import trains
from fedsim.flower.simulate.notes import Notes
from fedsim.flower.simulate.weighting import weighting_of
from fedsim.learn.around import Around, Transform
from fedsim.learn.curriculum.order import OWN
from fedsim.learn.curriculum.update import ordered
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.logs import once
from fedsim.running.observer import SYSTEM, Observer
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

ENDLESS = 10**9


class TargetReached(FedsimError):
    """The experiment's target is reached; ends the strategy's loop."""


def check_strategy(strategy: Any, clients: int) -> None:
    """Check a Flower strategy against the number of clients.

    A strategy of ours does so in its own ``check``; Flower's wait for ever for clients that do not exist.

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


def run_server(
    experiment: Experiment, strategy: Strategy, world: World, learner: Learner, observer: Observer
) -> None:
    """Run a strategy until the experiment's stop condition.

    Args:
        experiment: says when to stop.
        strategy: any Flower strategy.
        world: the event plane, with a server.
        learner: the compute plane.
        observer: told of every round.
    """
    select = getattr(strategy, "select", None)
    updates = {**updates_of(strategy, experiment), **getattr(select, "updates", {})}
    policy = experiment.strategy
    drop = policy.on_failure == "drop"
    queries = getattr(strategy, "queries", {})
    clients = BuiltinClients(replace(learner, drop=drop), updates, queries)
    limits = experiment.network.detect_s, experiment.stop.sim_time_s
    grid = SimGrid(world, clients, *limits, policy.quorum, policy.retries, drop=drop)
    task = learner.engine.task
    dtype = str(task.dtype).removeprefix("torch.")

    notes = Notes(strategy, observer, learner.dry)
    observer.record.fact("weighting", weighting_of(strategy))

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        notes.facts(server_round)
        if isinstance(select, Selector) and not learner.dry and observer.due(server_round):
            for name, value, node in select.facts():
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
                initial_arrays=pack(learner.initial, task.layout, dtype),
                num_rounds=experiment.stop.rounds or ENDLESS,
                timeout=experiment.strategy.timeout_s or math.inf,
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
        _report(grid.dropped, observer)


def _history(strategy: Strategy) -> AbstractContextManager[None]:
    """Let Flower's loop forget its history, which the record has, unless the strategy has a loop of its own."""
    known = type(strategy).start.__module__.startswith(("flwr.", "fedsim.", "strategies."))
    return compat.forgetful() if known else nullcontext()


def _report(dropped: Sequence[Dropped], observer: Observer) -> None:
    """Say which updates were not used, in the log and in the record."""
    observer.dropped = len(dropped)
    if dropped:
        observer.record.fact("dropped_updates", [asdict(one) for one in dropped])
    warn(dropped, "updates failed and were dropped")


def updates_of(strategy: Any, experiment: Experiment) -> Mapping[str, LocalUpdate]:
    """Return what clients do, by message type, with curriculum and transforms around all that trains.

    Without updates of the strategy's own, clients do plain local SGD.

    Raises:
        ConfigError: for a transform that is unknown, refuses its parameters, or does not fit the others, or for a
            curriculum that the clients cannot follow.
    """
    own = getattr(strategy, "updates", None)
    updates = dict(own) if own is not None else {"train": LocalSGD(experiment.strategy.local)}
    asked = getattr(getattr(strategy, "select", None), "updates", {})
    with experiment.blame("strategy"):
        remembers = any(OWN in one.keeps for one in asked.values())
        updates = ordered(updates, experiment.strategy.local, remembers)
    for index, transform in enumerate(transforms_of(experiment)):
        if isinstance(transform, Transform):
            with experiment.blame("strategy", "around", index):
                for action in filter(trains, updates):
                    updates[action] = Around(updates[action], transform, f"{action}.{index}")
    return updates


def transforms_of(experiment: Experiment) -> list[Transform | Central]:
    """Return what the experiment puts around updates and strategy, in order.

    Raises:
        ConfigError: for one that is unknown or refuses its parameters.
    """
    found = []
    for index, block in enumerate(experiment.strategy.around):
        with experiment.blame("strategy", "around", index):
            part = experiment.find("transforms", block.name)
            one = parts.call(part, block.params, {"seed": experiment.seed})
            if not isinstance(one, Transform | Central):
                raise BadValue("name", block.name, "is neither a Transform nor a Central")
            found.append(one)
    return found
