"""Mixing weights: how much a node listens to each neighbour when models are averaged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topologies.graphs import Graph


def neighbour_weights(graph: Graph) -> dict[int, dict[int, float]]:
    """Return every node's Metropolis-Hastings weights for itself and its neighbours.

    The weight of a link is 1 / (1 + max(degree, neighbour's degree)); a node keeps what is left of 1. Time
    and memory grow with the links, not with the square of the nodes. A link to oneself does not count.

    Args:
        graph: an undirected graph.

    Returns:
        ``weights[i][j]``: the share of j's model in i's average, without unit. First i itself, then its
        neighbours, in ascending order.

    References:
        Xiao, Boyd and Kim, Distributed average consensus with least-mean-square deviation, JPDC 2007.

    >>> from topologies.graphs import star
    >>> neighbour_weights(star(4))[0]
    {0: 0.75, 3: 0.25}
    """
    neighbours = {i: sorted(set(graph[i]) - {i}) for i in sorted(graph)}
    weights = {}
    for i, others in neighbours.items():
        shares = {j: 1 / (1 + max(len(others), len(neighbours[j]))) for j in others}
        weights[i] = {i: 1 - sum(shares.values()), **shares}
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
    (in the Euclidean norm over the nodes).

    Args:
        graph: an undirected graph over the nodes 0 … n-1; the whole [n, n] matrix is built.

    Returns:
        1 - the second largest absolute eigenvalue of the Metropolis-Hastings matrix, without unit.

    References:
        Lian et al., Can decentralized algorithms outperform centralized algorithms?, NeurIPS 2017.

    >>> from topologies.graphs import ring
    >>> round(spectral_gap(ring(4)), 6)
    0.666667
    """
    sizes = np.sort(np.abs(np.linalg.eigvalsh(metropolis_hastings(graph))))
    return max(0.0, float(1 - sizes[-2])) if len(sizes) > 1 else 1.0
