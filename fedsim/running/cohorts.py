"""Whom a server has learned from: how many clients, which labels, and how far their models went."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.deferred import Deferred, compute, noted
from fedsim.learn.local import LocalUpdate
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply

LATELY = 10
"""So many rounds are lately."""


class Cohorts:
    """Counts, round by round, whose data a server has learned from.

    Args:
        labels: how many training samples of each class each client has [K, C]; no columns where there are no classes.
        trained: the actions whose replies hold a model, and no gradient or difference.
        weights: how many numbers of a model are weights; what is behind them moves nobody. None counts all.

    >>> cohorts = Cohorts(np.array([[4, 0], [0, 4]]))
    >>> came = [Reply(1, "train", {}, {}, 4)]
    >>> [(name, value) for name, value, _ in cohorts.told(Deferred.phantom(), came)]
    [('clients_seen', 1), ('clients_lately', 1), ('labels_lately', 1.0)]
    """

    def __init__(
        self, labels: NDArray[np.int64], trained: Collection[str] = ("train",), weights: int | None = None
    ) -> None:
        self._labels, self._trained, self._weights = labels, trained, weights
        self._seen: set[int] = set()
        self._lately: deque[list[int]] = deque(maxlen=LATELY)

    def told(self, model: Deferred, replies: Sequence[Reply]) -> Iterator[Metric]:
        """Return what there is to say of a round.

        Args:
            model: the weights that its clients were sent [P].
            replies: what came back.

        Returns:
            ``clients_seen``: how many different clients have ever answered; ``clients_lately``: how many in the last
            ten rounds; ``labels_lately``: the exponential of the entropy of the labels that those had, each counted as
            often as it answered, which is the number of classes if all are as frequent; ``drift``: the mean distance of
            the models that came from the one that was sent; ``agreement``: the length of the mean of these moves, as a
            share of their mean length: 1 where all go the same way. The last two are of those who send a model.
        """
        nodes = [reply.node for reply in replies]
        self._seen.update(nodes)
        self._lately.append(nodes)
        visits = [node for one in self._lately for node in one]
        yield Metric("clients_seen", len(self._seen))
        yield Metric("clients_lately", len(set(visits)))
        if self._labels.shape[1] and visits:
            yield Metric("labels_lately", effective(self._labels[visits].sum(0)))
        trained = [reply for reply in replies if reply.action in self._trained]
        models = [reply.vectors["arrays"] for reply in trained if "arrays" in reply.vectors]
        if models and not any(one.is_phantom for one in (model, *models)):
            found = noted([model, *models], "moves", lambda: moves(model, models, self._weights))
            yield from (Metric(name, found[name]) for name in ("drift", "agreement"))


def effective(counts: NDArray[np.int64]) -> float:
    """Return how many equally frequent classes are as mixed as these: the exponential of the entropy.

    >>> effective(np.array([5, 5, 0])), effective(np.array([7, 0, 0]))
    (2.0, 1.0)
    """
    shares = counts[counts > 0] / counts.sum()
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 9)


def moves(model: Deferred, models: Sequence[Deferred], weights: int | None = None) -> dict[str, float]:
    """Return how far models have gone from another one, and how much they agree on the way.

    Args:
        model: where they began [P].
        models: where they are [P].
        weights: so many of their numbers count; None counts all.

    >>> import torch
    >>> sent, *came = (Deferred.known(torch.tensor(x)) for x in ([1.0, 1.0], [4.0, 5.0], [4.0, -3.0]))
    >>> moves(sent, came)
    {'drift': 5.0, 'agreement': 0.6}
    """
    compute([model, *models])
    start = model.value()[:weights].double()
    gone = [one.value()[:weights].double() - start for one in models]
    drift = sum(float(one.norm()) for one in gone) / len(gone)
    mean = float(sum(gone[1:], gone[0]).norm()) / len(gone)
    return {"drift": drift, "agreement": mean / drift if drift else 1.0}


def cohorts_of(
    updates: Mapping[str, LocalUpdate],
    dataset: Dataset,
    owned: Sequence[NDArray[np.int64]],
    weights: int | None = None,
) -> Cohorts:
    """Return what counts the cohorts of a run.

    Args:
        updates: what clients do, by action.
        dataset: says which classes there are, if any.
        owned: the training samples of each client.
        weights: how many numbers of a model are weights.
    """
    counts = np.zeros((len(owned), dataset.classes or 0), dtype=np.int64)
    labels = np.asarray(dataset.y)
    for client, own in enumerate(owned):
        if dataset.classes:  # labels below 0 are padding
            counts[client] = np.bincount(labels[own][labels[own] >= 0], minlength=dataset.classes)
    return Cohorts(
        counts, [action for action, update in updates.items() if "arrays" in update.models], weights
    )


def check_cohorts(asked: bool, strategy: object) -> None:
    """Refuse to count cohorts where there are none.

    Raises:
        BadValue: if the strategy has no server that clients answer, or is one of Flower's.
    """
    if asked and (
        not isinstance(strategy, Rounds | Arrivals) or (isinstance(strategy, Rounds) and strategy.pooled)
    ):
        hint = "take one such as fedprox, with mu: 0.0 for plain averaging"
        rule = "counts whom the server of one of our own strategies has learned from, and this is none"
        raise BadValue("cohorts", asked, rule, hint)
