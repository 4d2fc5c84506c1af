"""Runs a Flower strategy, ours or anybody's, in the simulated world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedsim.config import Experiment
from fedsim.errors import BadValue, FedsimError, RunError
from fedsim.flower import compat
from fedsim.flower.arrays import pack, unpack
from fedsim.flower.grid import SimGrid, TimeUp
from fedsim.flower.simclient import BuiltinClients
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.observer import SYSTEM, Observer
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
    clients = BuiltinClients(learner, updates_of(strategy, experiment))
    policy = experiment.strategy
    limits = experiment.network.detect_s, experiment.stop.sim_time_s
    grid = SimGrid(world, clients, *limits, policy.quorum, policy.retries)
    task = learner.engine.task
    dtype = str(task.dtype).removeprefix("torch.")

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        model = Deferred.phantom() if learner.dry else unpack(arrays, task.device, task.dtype)
        if observer.on_round(server_round, {SYSTEM: model}, grid.updates):
            raise TargetReached("the target accuracy is reached")
        return MetricRecord(dict(observer.scores)) if observer.scores else None

    try:
        with compat.session(experiment.seed, grid.server.id, grid.sleep):
            strategy.start(
                grid,
                initial_arrays=pack(learner.initial, task.layout, dtype),
                num_rounds=experiment.stop.rounds or ENDLESS,
                timeout=experiment.strategy.timeout_s or math.inf,
                evaluate_fn=measure,
            )
    except (TimeUp, TargetReached):
        pass
    except RunError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        name = type(strategy).__name__
        raise RunError(reason, None, observer.round + 1, world.clock.now_s, name) from error


def updates_of(strategy: Any, experiment: Experiment) -> Mapping[str, LocalUpdate]:
    """Return a strategy's own local updates by message type, or plain local SGD."""
    own = getattr(strategy, "updates", None)
    return own if own is not None else {"train": LocalSGD(experiment.strategy.local)}
