"""Whether a model's buffers can be held as the experiment says."""

from __future__ import annotations

from typing import Any

from fedsim.errors import MISSING, BadValue
from fedsim.learn.around import Transform
from fedsim.learn.codec import Codec
from fedsim.learn.local import LocalUpdate
from fedsim.learn.task import Task
from fedsim.methods.around import Central
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.peer import PeerStrategy
from fedsim.methods.rounds import Rounds
from fedsim.running.updates import transforms_of, updates_of
from fedsim.spec.experiment import Experiment

LINEAR = ("FedAvg", "FedProx", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")
"""Those of Flower's strategies whose new model lies among the clients' own, in its buffers, too."""

HINT = "take strategy.buffers: local, or a model with GroupNorm"


def check_buffers(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse a model with buffers where something would be done to them that means nothing for such numbers.

    Args:
        experiment: says whose the buffers are.
        strategy: what runs.
        task: has the model.

    Raises:
        ConfigError: naming the buffer and what does not fit.
    """
    if task.held == "fedbn" or task.kept:
        with experiment.blame("strategy"):
            _check_own(experiment, strategy, task)
    if not task.buffers:
        return
    name, which = experiment.strategy.name, f"the model's buffers, such as {task.buffers[0]}"
    with experiment.blame("strategy"):
        if isinstance(strategy, Rounds) and strategy.two_models:
            rule = f"clients of {name} have two models, and {which}, would be one for both"
            raise BadValue("name", name, rule, "take a model with GroupNorm")
        if not isinstance(strategy, Rounds | Arrivals | PeerStrategy):
            _check_flowers(strategy, task, name, which)
        if isinstance(strategy, PeerStrategy) or task.held != "average":
            return
        if any(isinstance(one, Central) for one in transforms_of(experiment)):
            rule = f"the server's clipping and noise would count {which}, as weights"
            raise BadValue("buffers", task.held, rule, HINT)
        if any(update.codec is not None for update in updates_of(strategy, experiment).values()):
            rule = f"a transform that compresses would take {which}, for weights"
            raise BadValue("buffers", task.held, rule, HINT)


def _check_own(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse weights of the clients' own where there are none, or clients send something else than their weights."""
    key, value = ("kept", MISSING) if task.kept else ("buffers", task.held)
    if task.held == "fedbn" and not task.norms:
        rule = "the model has no batch normalisation with a scale and a shift of its own"
        raise BadValue("buffers", task.held, rule, "take average")
    name, updates = experiment.strategy.name, updates_of(strategy, experiment)
    if not isinstance(strategy, Rounds | Arrivals | PeerStrategy):
        rule = f"{name} sends every array of a model, and with them {task.mine[0]}"
        raise BadValue(key, value, rule, "take strategies.server.fedavg:FedAvg")
    if isinstance(strategy, PeerStrategy):
        updates = {name: one for name, one in vars(strategy).items() if isinstance(one, LocalUpdate)}
        if any(isinstance(one, Codec) for one in vars(strategy).values()):
            rule = f"{name} compresses models, and would count {task.mine[0]}"
            raise BadValue(key, value, rule, "take dpsgd")
    more = any(one.takes + one.sends + one.models != ("arrays",) * 3 for one in updates.values() if one.sends)
    if task.kept and any(one.keeps for one in updates.values()):
        rule = f"clients of {name} keep whole models from visit to visit here, and {task.mine[0]} would count"
        raise BadValue(key, value, rule, "leave out what asks for these, such as a curriculum's score: local")
    if more or any(isinstance(one, Transform | Central) for one in transforms_of(experiment)):
        rule = (
            f"clients of {name} send more than their weights, or have it changed: {task.mine[0]} would count"
        )
        hint = "take local, or fedavg without anything around it"
        raise BadValue(key, value, rule, hint)


def check_deployed(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse a deployment in which the buffers would not become what a simulation makes of them.

    Args:
        experiment: says whose the buffers are.
        strategy: what runs.
        task: has the model.

    Raises:
        ConfigError: naming the buffer.
    """
    if not (task.buffers or task.norms):  # what a strategy leaves with the clients, a deployed one keeps, too
        return
    which = [*task.buffers, *task.norms][0]
    with experiment.blame("strategy"):
        if task.held != "average" or type(innermost(strategy)).__name__ not in LINEAR:
            rule = f"a deployment averages buffers, such as {which}, with the models of fedavg alone"
            raise BadValue("buffers", task.held, rule, "take average with fedavg, or a model with GroupNorm")


def innermost(strategy: Any) -> Any:
    """Return the strategy that others are wrapped around."""
    while hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    return strategy


def _check_flowers(strategy: Any, task: Task, name: str, which: str) -> None:
    """Refuse what Flower's messages and steps do not allow."""
    if task.held != "average":
        rule = f"{name} sends every array of a model, and with them {which}"
        raise BadValue("buffers", task.held, rule, "take average, or strategies.server.fedavg:FedAvg")
    strategy = innermost(strategy)
    own = type(strategy).__module__.startswith("flwr.")
    if own and type(strategy).__name__ not in LINEAR:
        rule = f"{name} takes steps of the server's own with {which}"
        raise BadValue("buffers", task.held, rule, "take fedavg, or a model with GroupNorm")
