"""Partitions: which client holds which training samples.

A partition is a function of the labels and the number of clients. It decides the owner of every sample, so no
sample is lost or held twice, whatever the rule, and returns one sorted index array for each client. One that leaves
samples to nobody says so (:class:`Some`).
"""

from __future__ import annotations

import heapq
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue

Labels = NDArray[Any]
Indices = NDArray[np.int64]


class Some(list[Indices]):
    """What a partition returns that leaves samples to nobody on purpose; one that forgets some returns a list."""


def iid(labels: Labels, clients: int, *, rng: np.random.Generator) -> list[Indices]:
    """Deal the shuffled samples out evenly: sizes differ by at most one.

    Args:
        labels: [N] the training labels; only their number matters.
        clients: how many clients there are, at most N.
        rng: where the shuffle comes from.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples.

    Raises:
        BadValue: if there are more clients than samples.

    >>> [part.size for part in iid(np.zeros(7), 3, rng=np.random.default_rng(0))]
    [3, 2, 2]
    """
    _check_enough(labels, clients, 1)
    owner = np.empty(len(labels), dtype=np.int64)
    owner[rng.permutation(len(labels))] = np.arange(len(labels)) % clients
    return _by_owner(owner, clients)


def dirichlet(
    labels: Labels, clients: int, *, alpha: float, minimum: int = 1, rng: np.random.Generator
) -> list[Indices]:
    """Divide each class among the clients in proportions drawn from a symmetric Dirichlet distribution.

    Args:
        labels: [N] the training labels, whole numbers.
        clients: how many clients there are.
        alpha: the concentration, in (0, 1e9]; small values give each class to few clients, large ones
            divide it evenly.
        minimum: how many samples every client holds at least. A client that drew fewer is given random
            samples of whoever holds most at that moment.
        rng: where proportions and shuffles come from.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples.

    Raises:
        BadValue: if a parameter is out of range, or there are fewer than ``clients * minimum`` samples.

    References:
        Yurochkin et al., Bayesian nonparametric federated learning of neural networks, ICML 2019.

    >>> labels = np.repeat([0, 1], 50)
    >>> [part.size for part in dirichlet(labels, 3, alpha=1e6, rng=np.random.default_rng(0))]
    [34, 32, 34]
    """
    if not 0 < alpha <= 1e9:
        raise BadValue("alpha", alpha, "must be above 0 and at most 1e9", "for even shares use iid")
    _check_classes("dirichlet", labels)
    _check_enough(labels, clients, minimum)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        sizes = cut(rng.dirichlet(np.full(clients, alpha)), len(members))
        owner[members] = np.repeat(np.arange(clients), sizes)
    return _by_owner(top_up(owner, clients, minimum, rng), clients)


def shards(
    labels: Labels, clients: int, *, labels_per_client: int = 2, minimum: int = 1, rng: np.random.Generator
) -> list[Indices]:
    """Give each client samples of only a few labels (the "pathological" partition).

    Random permutations of the labels are laid end to end and cut into runs of ``labels_per_client`` labels,
    one for each client; every place in a run is worth an equal share of its label's samples.

    A client holds exactly c = ``labels_per_client`` labels if c divides the number of labels. Otherwise a run
    can straddle two permutations and name a label twice, with two shares of it, so that its client holds
    between c/2 (rounded up) and c labels. There are two exceptions. Where all runs together are shorter than
    one permutation, the labels that nobody would hold are dealt out in addition, one by one. Where a label
    has fewer samples than shares, a client can miss it, and a client left below ``minimum`` is given random
    samples, of any label, of whoever holds most.

    Args:
        labels: [N] the training labels, whole numbers.
        clients: how many clients there are.
        labels_per_client: the length of a run, at most the number of distinct labels.
        minimum: how many samples every client holds at least.
        rng: where permutations and shuffles come from.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples.

    Raises:
        BadValue: if a parameter is out of range, or there are fewer than ``clients * minimum`` samples.

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data,
        AISTATS 2017 (the idea, for two labels).

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> parts = shards(labels, 4, rng=np.random.default_rng(0))
    >>> [(part.size, np.unique(labels[part]).size) for part in parts]
    [(6, 2), (6, 2), (6, 2), (6, 2)]
    """
    _check_classes("shards", labels)
    _check_enough(labels, clients, minimum)
    distinct, codes = np.unique(labels, return_inverse=True)
    if not 1 <= labels_per_client <= len(distinct):
        rule = f"must be between 1 and {len(distinct)}, the number of distinct labels"
        raise BadValue("labels_per_client", labels_per_client, rule)
    named, holders = _runs(len(distinct), clients, labels_per_client, rng)
    owner = np.empty(len(labels), dtype=np.int64)
    for code in range(len(distinct)):
        members = rng.permutation(np.flatnonzero(codes == code))
        owner[members] = np.resize(holders[named == code], len(members))
    return _by_owner(top_up(owner, clients, minimum, rng), clients)


def quantity(
    labels: Labels, clients: int, *, sigma: float = 1.0, minimum: int = 1, rng: np.random.Generator
) -> list[Indices]:
    """Deal shuffled samples out in log-normal sizes: clients differ in how much they hold, not in what.

    Args:
        labels: [N] the training labels; only their number matters.
        clients: how many clients there are.
        sigma: the standard deviation of the sizes' logarithm; 0 means equal sizes.
        minimum: how many samples every client holds at least.
        rng: where sizes and the shuffle come from.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples.

    Raises:
        BadValue: if a parameter is out of range, or there are fewer than ``clients * minimum`` samples.

    >>> [part.size for part in quantity(np.zeros(100), 4, sigma=0, rng=np.random.default_rng(0))]
    [25, 25, 25, 25]
    """
    if not 0 <= sigma <= 1e9:
        raise BadValue("sigma", sigma, "must be between 0 and 1e9")
    _check_enough(labels, clients, minimum)
    logarithms = sigma * rng.standard_normal(clients)
    # Only the ratios matter; the largest weight is set to 1, because exp overflows for a large sigma.
    sizes = cut(np.exp(logarithms - logarithms.max()), len(labels))
    owner = rng.permutation(np.repeat(np.arange(clients), sizes))
    return _by_owner(top_up(owner, clients, minimum, rng), clients)


def natural(
    labels: Labels,
    clients: int,
    *,
    fewer: Literal["merge", "choose", "largest"] | None = None,
    groups: NDArray[Any] | None = None,
    rng: np.random.Generator | None = None,
) -> list[Indices]:
    """Make each of the dataset's own groups (a writer, a speaker, a user) one client.

    Args:
        labels: [N] the training labels; only their number matters.
        clients: how many clients there are; it must equal the number of groups, unless ``fewer`` says what is to be
            done where there are fewer clients than groups.
        fewer: merge deals whole groups out at random, so that the numbers of groups differ by at most one; choose
            draws as many groups as there are clients, and largest takes those with the most samples, the first of
            equals: what the others have belongs to nobody.
        groups: [N] each sample's group, numbered from 0 without a gap; supplied with the dataset.
        rng: where groups are drawn from.

    Returns:
        One sorted int64 array of sample indices for each client; disjoint, together all samples, or those of the
        groups chosen.

    Raises:
        BadValue: if the dataset has no groups, or their number does not fit.

    >>> natural(np.zeros(4), 2, groups=np.array([1, 0, 1, 1]))
    [array([1]), array([0, 2, 3])]
    """
    _check_enough(labels, clients, 1)
    if groups is None:
        hint = "use iid, dirichlet, shards or quantity"
        raise BadValue("name", "natural", "this dataset does not say which client a sample belongs to", hint)
    if len(groups) != len(labels):
        raise BadValue(
            "groups", len(groups), f"there must be one group for each of the {len(labels)} samples"
        )
    present = np.unique(groups)
    if len(present) < clients or (len(present) != clients and fewer is None):
        rule = f"the dataset has {len(present)} natural clients, which cannot be {clients}"
        hint = f"set the number of clients to {len(present)}"
        hint += "" if len(present) < clients else ", or say partition.fewer: merge, choose or largest"
        raise BadValue("clients", clients, rule, hint)
    if not np.array_equal(present, np.arange(len(present))):
        rule = f"groups must be numbered 0 to {len(present) - 1}, not {present[0]} to {present[-1]}"
        raise BadValue("groups", present.tolist(), rule)
    if len(present) == clients:
        return _by_owner(groups.astype(np.int64), clients)
    rng = np.random.default_rng(0) if rng is None else rng
    if fewer == "merge":
        owner = np.empty(len(present), dtype=np.int64)
        owner[rng.permutation(len(present))] = np.arange(len(present)) % clients
        return _by_owner(owner[groups], clients)
    if fewer == "largest":
        chosen = np.sort(np.argsort(-np.bincount(groups), kind="stable")[:clients])
    else:
        chosen = np.sort(rng.choice(len(present), clients, replace=False))
    return Some(np.flatnonzero(groups == group) for group in chosen)


def stratified_split(
    labels: NDArray[Any], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split samples at random into training and test, each class in the same proportion.

    Args:
        labels: [N] the class of each sample.
        share: the part of each class that goes to the test, between 0 and 1; rounded to whole samples, but a
            class with two samples or more has one on either side, and a single sample is for training.
        rng: which samples go where.

    Returns:
        The sorted indices of the training and of the test samples.

    Raises:
        BadValue: if the share is not between 0 and 1; the key is ``test_share``.

    >>> train, test = stratified_split(np.repeat([0, 1], [10, 5]), 0.2, np.random.default_rng(0))
    >>> train.size, (test < 10).sum().item(), (test >= 10).sum().item()
    (12, 2, 1)
    """
    if not 0 < share < 1:
        raise BadValue("test_share", share, "must be between 0 and 1, both excluded")
    in_test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        size = min(max(round(share * len(members)), 1), len(members) - 1)
        in_test[members[:size]] = True
    return np.flatnonzero(~in_test), np.flatnonzero(in_test)


def _runs(
    distinct: int, clients: int, labels_per_client: int, rng: np.random.Generator
) -> tuple[Indices, Indices]:
    """Return the label (0..distinct-1) and the holder of each share."""
    places = clients * labels_per_client
    permutations = [rng.permutation(distinct) for _ in range(-(-places // distinct))]
    named = np.concatenate(permutations)
    holders = np.arange(len(named)) // labels_per_client
    if len(permutations) == 1:
        holders[places:] = np.arange(len(named) - places) % clients
        return named, holders
    return named[:places], holders[:places]


def cut(weights: NDArray[np.float64], total: int) -> Indices:
    """Round ``total`` shared in proportion to ``weights`` to whole numbers with exactly that sum.

    >>> cut(np.array([1.0, 1.0, 2.0]), 10).tolist()
    [2, 3, 5]
    """
    edges = np.cumsum(weights)
    cuts: Indices = np.rint(edges / edges[-1] * total).astype(np.int64)
    return np.diff(cuts, prepend=0)


def top_up(owner: Indices, clients: int, minimum: int, rng: np.random.Generator) -> Indices:
    """Move random samples from the largest client until each holds ``minimum``.

    >>> top_up(np.array([0, 0, 0, 1]), 3, 1, np.random.default_rng(0)).tolist().count(2)
    1
    """
    owner, held = owner.copy(), np.bincount(owner, minlength=clients).tolist()
    most = [(-count, client) for client, count in enumerate(held)]
    heapq.heapify(most)
    members: dict[int, Indices] = {}
    for client in [client for client, count in enumerate(held) if count < minimum]:
        while held[client] < minimum:
            # As there are clients * minimum samples, whoever holds most can spare one; of several, the first.
            while -most[0][0] != held[most[0][1]]:
                heapq.heappop(most)  # what somebody held before
            giver = most[0][1]
            own = members.get(giver)
            own = np.flatnonzero(owner == giver) if own is None else own
            sample = rng.choice(own)
            owner[sample] = client
            members[giver] = own[own != sample]
            members.pop(client, None)
            for one, change in ((giver, -1), (client, 1)):
                held[one] += change
                heapq.heappush(most, (-held[one], one))
    return owner


def _by_owner(owner: Indices, clients: int) -> list[Indices]:
    order = np.argsort(owner, kind="stable").astype(np.int64)
    held = np.bincount(owner, minlength=clients)
    return [part.copy() for part in np.split(order, np.cumsum(held)[:-1])]


def _check_enough(labels: Labels, clients: int, minimum: int) -> None:
    if clients < 1:
        raise BadValue("clients", clients, "there must be at least 1 client")
    if minimum < 1:
        raise BadValue("minimum", minimum, "every client needs at least 1 sample")
    if clients * minimum > len(labels):
        rule = f"{clients} clients with at least {minimum} sample(s) each need {clients * minimum} samples"
        raise BadValue("clients", clients, f"{rule}, and there are {len(labels)}")


def _check_classes(name: str, labels: Labels) -> None:
    if labels.ndim > 1:
        rule = "divides classes, and these samples have several labels each"
        raise BadValue("name", name, rule, "use iid, quantity or natural")
    if not np.issubdtype(labels.dtype, np.integer):
        rule = f"divides classes, and these labels are numbers of type {labels.dtype}"
        raise BadValue("name", name, rule, "use iid, quantity or natural")
