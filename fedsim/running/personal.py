"""What clients get: models that they train for themselves alone, and how evenly what they get is spread over them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedsim.learn.buffers import judged
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalSGD
from fedsim.record.better import rises
from fedsim.spec.experiment import Local

OWN, MEASURED = -1, -2
"""The visits of a client that trains for itself, and of one that does so to be measured: no update has such numbers."""


class Tuning:
    """Trains models on clients' own data, for each client alone: nothing of it is sent, and no time passes.

    Args:
        learner: model, data and engine.
        local: how clients train, but for the number of steps and the order of samples.
    """

    def __init__(self, learner: Learner, local: Local) -> None:
        self._learner, self._local = learner, local
        self._updates: dict[int, LocalSGD] = {}

    def __call__(self, place: Place, model: Deferred, steps: int) -> Deferred:
        """Return the model [P] that a client makes of another one.

        Args:
            place: whose data it is, and when; its visit is none of a method's.
            model: what it begins with [P], with what is the client's own.
            steps: local steps; none leave the model as it is.
        """
        if not steps:
            return model
        learner = self._learner
        result = learner.train(self._update(steps), place.node, {"arrays": model}, place)
        kept = {name: result.pick(name) for name in learner.keeps}
        return judged(learner.engine.task, result.pick("arrays"), [kept])

    def _update(self, steps: int) -> LocalSGD:
        """Return one object for all, since what does the same is done together."""
        if steps not in self._updates:
            plain = {"epochs": None, "steps": steps, "curriculum": None}
            self._updates[steps] = LocalSGD(self._local.model_copy(update=plain))
        return self._updates[steps]


def shares(values: Mapping[int, float], name: str) -> dict[str, float]:
    """Return how a score is spread over clients: its mean, the mean of the worst tenth, and its Gini coefficient.

    Args:
        values: by client.
        name: of the score, which says whether more of it is better: see :func:`fedsim.record.better.rises`.

    >>> shares({0: 0.0, 1: 0.5, 2: 1.0}, "accuracy")
    {'_mean': 0.5, '_worst_decile': 0.0, '_gini': 0.4444444444444444}
    """
    ranked = sorted(values.values())
    count = len(ranked)
    tenth = math.ceil(count / 10)
    worst = ranked[:tenth] if rises(name) else ranked[-tenth:]
    return {
        "_mean": math.fsum(ranked) / count,
        "_worst_decile": math.fsum(worst) / tenth,
        "_gini": gini(ranked),
    }


def gini(ranked: list[float]) -> float:
    """Return the Gini coefficient of numbers that are not negative: 0 where all are equal, near 1 where one has all.

    Args:
        ranked: the numbers, the smallest first.

    >>> gini([1.0, 1.0]), gini([0.0, 0.0, 0.0, 1.0]), gini([0.0, 0.0])
    (0.0, 0.75, 0.0)
    """
    total, count = math.fsum(ranked), len(ranked)
    if not total > 0:
        return 0.0
    return math.fsum((2 * place - count - 1) * value for place, value in enumerate(ranked, 1)) / (
        count * total
    )
