"""Directed graphs, whose links carry messages one way only, for methods such as stochastic gradient push."""

from __future__ import annotations

import networkx as nx

from fedsim.world.graph import Graph
from topologies.graphs import require_two


def directed_ring(n: int) -> Graph:
    """Let node i send to i+1, modulo n.

    Args:
        n: number of nodes.

    Returns:
        The directed cycle.

    Raises:
        BadValue: if n < 2.

    >>> list(directed_ring(3).edges)
    [(0, 1), (1, 2), (2, 0)]
    """
    require_two(n)
    return circulant(n, [1])


def directed_exponential(n: int) -> Graph:
    """Let node i send to i + 1, 2, 4, 8 … modulo n: about log2(n) receivers, and any node in log2(n) hops.

    Args:
        n: number of nodes.

    Returns:
        The static directed exponential graph.

    Raises:
        BadValue: if n < 2.

    References:
        Ying et al., Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021.

    >>> list(directed_exponential(6)[5])
    [0, 1, 3]
    """
    require_two(n)
    return circulant(n, offsets(n))


def circulant(n: int, steps: list[int]) -> Graph:
    """Let node i send to i + each of the steps, modulo n; nodes and links in ascending order.

    >>> list(circulant(4, [1, 2]).edges)
    [(0, 1), (0, 2), (1, 2), (1, 3), (2, 0), (2, 3), (3, 0), (3, 1)]
    """
    graph: Graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from((i, j) for i in range(n) for j in sorted((i + step) % n for step in steps))
    return graph


def offsets(n: int) -> list[int]:
    """Return the powers of two below n.

    >>> offsets(8), offsets(9)
    ([1, 2, 4], [1, 2, 4, 8])
    """
    return [2**j for j in range((n - 1).bit_length())]
