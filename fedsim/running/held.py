"""Whether a model's buffers can be held as the experiment says."""

from __future__ import annotations

from typing import Any

from fedsim.errors import BadValue
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
    if not task.buffers:
        return
    name, which = experiment.strategy.name, f"the model's buffers, such as {task.buffers[0]}"
    with experiment.blame("strategy"):
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


def check_deployed(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse a deployment in which the buffers would not become what a simulation makes of them.

    Args:
        experiment: says whose the buffers are.
        strategy: what runs.
        task: has the model.

    Raises:
        ConfigError: naming the buffer.
    """
    if not task.buffers:
        return
    with experiment.blame("strategy"):
        if task.held != "average" or type(innermost(strategy)).__name__ not in LINEAR:
            rule = (
                f"a deployment averages buffers, such as {task.buffers[0]}, with the models of fedavg alone"
            )
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
