"""What clients and peers compute in an experiment: local updates, with curriculum and transforms around them."""

from __future__ import annotations

from typing import Any

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.around import Around, Transform
from fedsim.learn.curriculum.order import OWN
from fedsim.learn.curriculum.update import ordered
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.methods.around import Central
from fedsim.methods.server import trains
from fedsim.methods.traits import Traits
from fedsim.rng import key
from fedsim.spec.experiment import Experiment


def updates_of(strategy: Any, experiment: Experiment) -> dict[str, LocalUpdate]:
    """Return what clients do, by message type, with curriculum and transforms around all that trains.

    Without updates of the strategy's own, clients do plain local SGD.

    Raises:
        ConfigError: for a transform that is unknown, refuses its parameters, or does not fit the others, or for a
            curriculum that the clients cannot follow.
    """
    traits = Traits.of(strategy)
    own, asked = traits.updates, traits.selector.updates if traits.selector is not None else {}
    with experiment.blame("strategy"):
        updates = dict(own) if own is not None else {"train": LocalSGD(experiment.strategy.local)}
        remembers = any(OWN in one.keeps for one in asked.values())
        updates = dict(ordered(updates, experiment.strategy.local, remembers))
    for index, transform in enumerate(transforms_of(experiment)):
        if isinstance(transform, Transform):
            with experiment.blame("strategy", "around", index):
                for action in filter(trains, updates):
                    updates[action] = Around(updates[action], transform, f"{action}.{index}")
    return {**updates, **asked}


def transforms_of(experiment: Experiment) -> list[Transform | Central]:
    """Return what the experiment puts around updates and strategy, in order; no two of one name draw the same.

    Raises:
        ConfigError: for one that is unknown or refuses its parameters.
    """
    found = []
    names = [block.name for block in experiment.strategy.around]
    for index, block in enumerate(experiment.strategy.around):
        with experiment.blame("strategy", "around", index):
            part, before = parts.find("transforms", block.name), names[:index].count(block.name)
            seed = key(experiment.seed, "around", before) % 2**63 if before else experiment.seed
            one = parts.call(part, block.params, {"seed": seed})
            if not isinstance(one, Transform | Central):
                raise BadValue("name", block.name, "is neither a Transform nor a Central")
            found.append(one)
    return found
