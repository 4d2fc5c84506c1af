"""Mixing weights: how much a node listens to each neighbour when models are averaged."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedsim.errors import BadValue
from fedsim.world.graph import rounds
from topologies.graphs import Graph

EXACT = 1e-9
LARGEST = 512


def neighbour_weights(graph: Graph) -> dict[int, dict[int, float]]:
    """Return every node's Metropolis-Hastings weights for itself and its neighbours.

    The weight of a link is its attribute ``weight`` or, where there is none, 1 / (1 + max(degree, neighbour's
    degree)); a node keeps what is left of 1. Time and memory grow with the links, not with the square of the
    nodes. A link to oneself does not count.

    Args:
        graph: an undirected graph.

    Returns:
        ``weights[i][j]``: the share of j's model in i's average, without unit. First i itself, then its
        neighbours, in ascending order.

    Raises:
        BadValue: if the graph is directed, or a node's links weigh more than 1.

    References:
        Xiao, Boyd and Kim, Distributed average consensus with least-mean-square deviation, JPDC 2007.

    >>> from topologies.graphs import star
    >>> neighbour_weights(star(4))[0]
    {0: 0.75, 3: 0.25}
    """
    if graph.is_directed():
        raise BadValue("graph", str(graph), "Metropolis-Hastings weights need links that work both ways")
    neighbours = {i: sorted(set(graph[i]) - {i}) for i in sorted(graph)}
    weights = {}
    for i, others in neighbours.items():
        shares = {
            j: graph.edges[i, j].get("weight", 1 / (1 + max(len(others), len(neighbours[j])))) for j in others
        }
        own = 1 - sum(shares.values())
        if own < -EXACT:
            raise BadValue("weight", 1 - own, f"the links of node {i} must weigh at most 1 together")
        weights[i] = {i: max(0.0, own), **shares}
    return weights


def metropolis_hastings(graph: Graph) -> npt.NDArray[np.float64]:
    """Return the Metropolis-Hastings mixing matrix of a graph.

    Args:
        graph: an undirected graph over the nodes 0 … n-1.

    Returns:
        A matrix [n, n] that is symmetric and doubly stochastic; row i holds node i's weights.

    References:
        Xiao, Boyd and Kim, Distributed average consensus with least-mean-square deviation, JPDC 2007.

    >>> from topologies.graphs import star
    >>> metropolis_hastings(star(3)).round(3).tolist()
    [[0.667, 0.0, 0.333], [0.0, 0.667, 0.333], [0.333, 0.333, 0.333]]
    """
    matrix = np.zeros((len(graph), len(graph)))
    for i, row in neighbour_weights(graph).items():
        matrix[i, list(row)] = list(row.values())
    return matrix


def spectral_gap(graph: Graph) -> float:
    """Return how fast averaging over a graph forgets differences: 1 is at once, 0 is never.

    One round of mixing brings the nodes' values nearer to their mean by at least the factor 1 - gap
    (in the Euclidean norm over the nodes); with graphs that change, that is so for the geometric mean over a pass.

    Args:
        graph: a topology over the nodes 0 … n-1, undirected in every round; whole [n, n] matrices are built.

    Returns:
        1 - the second largest absolute eigenvalue of the mixing matrix, without unit. For m graphs that repeat, it
        is 1 - the m-th root of the second largest singular value of their product.

    References:
        Lian et al., Can decentralized algorithms outperform centralized algorithms?, NeurIPS 2017.

    >>> from topologies.graphs import ring
    >>> round(spectral_gap(ring(4)), 6)
    0.666667
    """
    graphs = rounds(graph)
    if len(graph) < 2:
        return 1.0
    if len(graphs) == 1:
        slowest = float(np.sort(np.abs(np.linalg.eigvalsh(metropolis_hastings(graphs[0]))))[-2])
    else:
        slowest = _left(graphs) ** (1 / len(graphs))
    return max(0.0, 1 - slowest)


def mixing_rounds(graph: Graph, share: float = 0.01) -> float:
    """Return after how many rounds of averaging the nodes' distance from their mean is at most a share of what it was.

    Args:
        graph: a topology over the nodes 0 … n-1, undirected in every round.
        share: what may be left of the distance, from 0 to 1 without either.

    Returns:
        A whole number of rounds by the bound that :func:`spectral_gap` gives (of passes, where the graphs change
        and do not reach the exact mean within one), or infinity.

    Raises:
        BadValue: if the share is out of range.

    References:
        Levin, Peres and Wilmer, Markov Chains and Mixing Times, AMS 2009, chapter 12.

    >>> from topologies.graphs import complete, ring
    >>> mixing_rounds(complete(8)), mixing_rounds(ring(4))
    (1, 5)
    """
    if not 0 < share < 1:
        raise BadValue("share", share, f"must be above 0 and below 1, is {share}")
    graphs = rounds(graph)
    rate = 1 - spectral_gap(graph)
    if rate >= 1 - EXACT:
        return math.inf
    if len(graphs) == 1:
        return max(1, math.ceil(math.log(share) / math.log(rate) - EXACT)) if rate > EXACT else 1
    for first in range(1, len(graphs) + 1):
        if _left(graphs[:first]) <= share:
            return first
    return len(graphs) * math.ceil(math.log(share) / (len(graphs) * math.log(rate)) - EXACT)


def facts(graph: Graph) -> dict[str, float]:
    """Return spectral gap and mixing time by name, as far as that is quick: for at most 512 nodes.

    >>> from topologies.graphs import ring
    >>> facts(ring(4))
    {'spectral_gap': 0.666667, 'mixing_rounds': 5}
    """
    if len(graph) > LARGEST:
        return {}
    found = {"spectral_gap": round(spectral_gap(graph), 6), "mixing_rounds": mixing_rounds(graph)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _left(graphs: tuple[Graph, ...]) -> float:
    """Return the largest share of a distance from the mean that is left after one round with each graph."""
    size = len(graphs[0])
    product = np.full((size, size), -1 / size) + np.eye(size)
    for graph in graphs:
        product = metropolis_hastings(graph) @ product
    return float(np.linalg.svd(product, compute_uv=False)[0])
