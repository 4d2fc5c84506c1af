"""Whether a model's buffers can be held as the experiment says."""

from __future__ import annotations

from typing import Any

from fedsim.errors import BadValue
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
    if task.held == "fedbn":
        with experiment.blame("strategy"):
            _check_fedbn(experiment, strategy, task)
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


def _check_fedbn(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse FedBN where no layer is a batch normalisation, or it would not train by the client's own gradients."""
    if not task.norms:
        rule = "the model has no batch normalisation with a scale and a shift of its own"
        raise BadValue("buffers", task.held, rule, "take average")
    name, updates = experiment.strategy.name, updates_of(strategy, experiment)
    if not isinstance(strategy, Rounds | Arrivals | PeerStrategy):
        rule = f"{name} sends every array of a model, and with them {task.norms[0]}"
        raise BadValue("buffers", task.held, rule, "take strategies.server.fedavg:FedAvg")
    if isinstance(strategy, PeerStrategy):
        updates = {name: one for name, one in vars(strategy).items() if isinstance(one, LocalUpdate)}
        if any(isinstance(one, Codec) for one in vars(strategy).values()):
            rule = f"{name} compresses models, and would count {task.norms[0]}"
            raise BadValue("buffers", task.held, rule, "take dpsgd")
    hint = "take local, or fedavg without anything around it"
    if not all(_follows_its_own(one) for one in updates.values() if one.sends):
        rule = (
            f"weights of {name} follow what is made of everybody's gradients: {task.norms[0]} would have none"
        )
        raise BadValue("buffers", task.held, rule, hint)
    if any(isinstance(one, Transform | Central) for one in transforms_of(experiment)):
        rule = f"what clients of {name} send is changed on its way, and {task.norms[0]} would count"
        raise BadValue("buffers", task.held, rule, hint)


def _follows_its_own(update: LocalUpdate) -> bool:
    """Tell whether weights that nobody else has are trained as by local SGD, or stay as they are."""
    plain = update.takes + update.sends + update.models == ("arrays",) * 3
    return plain or update.moved is not None


def check_deployed(experiment: Experiment, strategy: Any, task: Task) -> None:
    """Refuse a deployment in which the buffers would not become what a simulation makes of them.

    Args:
        experiment: says whose the buffers are.
        strategy: what runs.
        task: has the model.

    Raises:
        ConfigError: naming the buffer.
    """
    if not (task.buffers or task.norms):
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
