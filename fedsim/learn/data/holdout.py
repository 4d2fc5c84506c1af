"""Samples that nobody trains on: a validation set, and a test of each client's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedsim.errors import BadValue
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.partition import Indices, stratified_split
from fedsim.learn.data.samples import numbered_groups
from fedsim.rng import stream


def validation(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold a share of the training samples out.

    Args:
        dataset: all samples.
        share: which part of each class, or of all samples where there are no classes.
        seed: which samples those are.

    Returns:
        The dataset without them, and one whose test they are: whoever looks at its scores while a run is going on, to
        stop it or to tune it, has not looked at the test.

    Raises:
        BadValue: with the key ``val_share``, if nothing would be left.
    """
    labels = (
        dataset.y.numpy() if dataset.classes and dataset.y.dim() == 1 else np.zeros(len(dataset.y), np.int64)
    )
    if len(labels) < 2:
        raise BadValue("val_share", share, f"there must be 2 training samples, not {len(labels)}")
    kept, held = stratified_split(labels, share, stream(seed, "validation"))
    if not len(held):
        kept, held = stratified_split(np.zeros(len(labels), np.int64), share, stream(seed, "validation"))
    whose = dataset.groups
    groups, held_groups = (
        numbered_groups(None, None) if whose is None else numbered_groups(whose[kept], whose[held])
    )
    difficulty = None if dataset.difficulty is None else dataset.difficulty[kept]
    rest = replace(
        dataset,
        x=dataset.x[kept],
        y=dataset.y[kept],
        groups=groups,
        difficulty=difficulty,
        test_groups=None,
    )
    return rest, replace(rest, x_test=dataset.x[held], y_test=dataset.y[held], test_groups=held_groups)


def own_tests(dataset: Dataset, owned: Sequence[Indices]) -> list[Indices]:
    """Return which of a dataset's test samples are each client's own: those of its groups.

    Args:
        dataset: all samples.
        owned: the training samples of each client.

    Returns:
        Their places among the test samples, sorted, for each client; nothing at all where the dataset does not say
        whose they are, or where one group's samples lie with several clients.
    """
    if dataset.groups is None or dataset.test_groups is None:
        return []
    mine = [np.unique(dataset.groups[own]) for own in owned]
    if len(np.unique(np.concatenate(mine))) < sum(map(len, mine)):
        return []
    return [np.flatnonzero(np.isin(dataset.test_groups, groups)) for groups in mine]


def client_tests(owned: Sequence[Indices], share: float, seed: int) -> tuple[list[Indices], list[Indices]]:
    """Hold a share of each client's samples out.

    Args:
        owned: the samples of each client, sorted.
        share: which part of them, rounded; at least one sample is held out, and one is left.
        seed: which samples those are; a client's depend on no other client.

    Returns:
        What each client trains on, and what it is tested on, sorted.

    Raises:
        BadValue: with the key ``client_test_share``, naming a client with one sample alone.

    >>> train, test = client_tests([np.arange(10), np.array([10, 11])], 0.2, seed=0)
    >>> [len(own) for own in train], [len(own) for own in test]
    ([8, 1], [2, 1])
    """
    train, test = [], []
    for client, own in enumerate(owned):
        if len(own) < 2:
            rule = f"client {client} has {len(own)} sample, and needs one to train on and one for its test"
            raise BadValue("client_test_share", share, rule, "give it more, as with partition.minimum: 2")
        size = min(max(round(share * len(own)), 1), len(own) - 1)
        held = stream(seed, "client test", client).choice(len(own), size, replace=False)
        mask = np.zeros(len(own), dtype=bool)
        mask[held] = True
        train.append(own[~mask])
        test.append(own[mask])
    return train, test
