"""Partitions whose clients differ in how hard their samples are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue
from fedsim.learn.data.partition import Indices, Labels, cut, top_up
from fedsim.parts import Count, Positive, Share


def by_difficulty(
    labels: Labels,
    clients: int,
    *,
    order: Literal["inc", "dec", "rand"] = "inc",
    share: Share = 1.0,
    by: Literal["expert", "known"] = "expert",
    alpha: Positive | None = None,
    minimum: Count = 1,
    rng: np.random.Generator,
    difficulty: Callable[[], NDArray[np.float64]],
    known: NDArray[Any] | None = None,
) -> list[Indices]:
    """Sort the samples by difficulty and cut them in that order, so that clients differ in it.

    Args:
        labels: [N] the training labels.
        clients: how many clients there are.
        order: whether client 0 has the easiest samples (inc), the hardest (dec), or any (rand).
        share: the share of the samples, drawn at random, that is sorted; the others follow in random order.
        by: what says how hard a sample is: the loss of the expert, or what the dataset knows of it.
        alpha: concentration of the classes' Dirichlet shares, within each of which the order holds; None cuts the
            whole list into equal parts.
        minimum: how many samples every client holds at least.
        rng: shuffles and draws.
        difficulty: the expert's losses [N]; supplied.
        known: the dataset's own difficulties [N]; supplied.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples.

    Raises:
        BadValue: if the dataset does not know how hard its samples are, or there are too few of them.

    References:
        Vahidian et al., When do curricula work in federated learning?, ICCV 2023.

    >>> hard = np.array([3.0, 1.0, 2.0, 0.0])
    >>> rng = np.random.default_rng(0)
    >>> by_difficulty(np.zeros(4, int), 2, by="known", known=hard, rng=rng, difficulty=lambda: hard)
    [array([1, 3]), array([0, 2])]
    """
    if by == "known" and known is None:
        hint = "take expert, or a dataset such as noisy"
        raise BadValue("by", by, "this dataset does not know how hard its samples are", hint)
    if clients * minimum > len(labels):
        rule = f"{clients} clients with at least {minimum} sample(s) each need {clients * minimum} samples"
        raise BadValue("clients", clients, f"{rule}, and there are {len(labels)}")
    if by == "known" and known is not None and np.shape(known) != (len(labels),):
        raise BadValue("by", by, f"{np.shape(known)} known difficulties for {len(labels)} samples")
    if alpha is not None and labels.dtype.kind not in "iu":
        raise BadValue("alpha", alpha, "divides classes, and these data have none", "leave it out")
    listed = rng.permutation(len(labels))
    if order != "rand":
        hard = difficulty() if known is None or by == "expert" else np.asarray(known)
        chosen = int(share * len(labels) + 1e-9)
        head = listed[:chosen]
        head = head[np.argsort(hard[head] if order == "inc" else -hard[head], kind="stable")]
        listed = np.concatenate([head, listed[chosen:]])
    owner = np.empty(len(labels), dtype=np.int64)
    if alpha is None:
        owner[listed] = np.arange(len(labels)) * clients // len(labels)
    else:
        for label in np.unique(labels):
            members = listed[labels[listed] == label]
            owner[members] = np.repeat(
                np.arange(clients), cut(rng.dirichlet(np.full(clients, alpha)), len(members))
            )
    owner = top_up(owner, clients, minimum, rng)
    return [np.flatnonzero(owner == client).astype(np.int64) for client in range(clients)]
