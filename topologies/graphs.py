"""Graphs with a name: regular shapes and random families.

Nodes and links come in ascending order, so that whoever walks a graph walks it the same way on every machine.
"""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np

from fedsim.errors import BadValue
from fedsim.machine import LINK_BYTES, require_room
from fedsim.rng import stream
from fedsim.world.graph import Graph
from fedsim.world.links import MANY, packed

__all__ = [
    "Graph",
    "complete",
    "empty",
    "erdos_renyi",
    "exponential",
    "random_regular",
    "require_connected",
    "require_links",
    "ring",
    "small_world",
    "star",
    "torus",
]


def star(n: int) -> Graph:
    """Link every node to the last one, where the server sits if there is one.

    Args:
        n: number of nodes, the hub included.

    Returns:
        The star with hub n-1; one with more than 10,000 links cannot be changed, but its ``copy()`` can.

    Raises:
        BadValue: if n < 2.

    >>> list(star(4).edges)
    [(0, 3), (1, 3), (2, 3)]
    """
    require_two(n)
    if n > MANY:
        return packed(
            n, np.stack([np.arange(n - 1, dtype=np.int32), np.full(n - 1, n - 1, np.int32)], axis=1)
        )
    return require_connected(ordered(nx.star_graph([n - 1, *range(n - 1)])), "n", n)


def complete(n: int) -> Graph:
    """Link every node to every other one.

    Args:
        n: number of nodes.

    Returns:
        The complete graph, with n(n-1)/2 links; one with more than 10,000 cannot be changed, but its ``copy()`` can.

    Raises:
        BadValue: if n < 2.

    >>> complete(5).number_of_edges()
    10
    """
    require_two(n)
    require_links("n", n, n * (n - 1) / 2)
    if n * (n - 1) / 2 > MANY:
        return packed(n, np.stack(np.triu_indices(n, 1), axis=1, dtype=np.int32))
    return require_connected(ordered(nx.complete_graph(n)), "n", n)


def empty(n: int) -> Graph:
    """Link nobody; on an overlay network (``network.overlay``), every node still reaches every other one.

    Args:
        n: number of nodes.

    Returns:
        The graph without links.

    >>> empty(3).number_of_edges()
    0
    """
    return ordered(nx.empty_graph(n))


def ring(n: int) -> Graph:
    """Link node i to i-1 and i+1, modulo n.

    Args:
        n: number of nodes; two nodes share a single link.

    Returns:
        The cycle over n nodes.

    Raises:
        BadValue: if n < 2.

    >>> list(ring(4).edges)
    [(0, 1), (0, 3), (1, 2), (2, 3)]
    """
    require_two(n)
    return require_connected(ordered(nx.cycle_graph(n)), "n", n)


def torus(n: int, *, rows: int | None = None) -> Graph:
    """Link every node of a grid to its four neighbours; the grid's opposite sides meet.

    Args:
        n: number of nodes; node i sits in row i // columns, column i % columns.
        rows: number of rows; by default, the grid is as square as n allows.

    Returns:
        The torus, in which every node has degree 4.

    Raises:
        BadValue: if the nodes do not fill a grid with sides of at least 3.

    >>> list(torus(12, rows=3)[0])
    [1, 3, 4, 8]
    """
    height, width = _sides(n) if rows is None else _sides_with(n, rows)
    grid = nx.grid_2d_graph(height, width, periodic=True)
    return require_connected(ordered(nx.convert_node_labels_to_integers(grid)), "n", n)


def random_regular(n: int, *, degree: int, seed: int) -> Graph:
    """Give every node the same number of neighbours, chosen at random.

    Args:
        n: number of nodes.
        degree: neighbours of every node; at least 1, below n, and n x degree even.
        seed: the experiment's seed.

    Returns:
        A random regular graph.

    Raises:
        BadValue: if there is no such graph, or if the one drawn is disconnected.

    References:
        Kim and Vu, Generating random regular graphs, STOC 2003.

    >>> sorted(set(dict(random_regular(10, degree=3, seed=1).degree).values()))
    [3]
    """
    require_two(n)
    if not 1 <= degree < n:
        raise BadValue("degree", degree, f"must be at least 1 and at most n - 1 = {n - 1}")
    if n * degree % 2:
        raise BadValue("degree", degree, f"nodes x degree must be even ({n} x {degree})")
    require_links("degree", degree, n * degree / 2)
    # The generator tries until it succeeds, which takes minutes for dense graphs: draw the missing links.
    sparse = min(degree, n - 1 - degree)
    graph = nx.random_regular_graph(sparse, n, seed=stream(seed, "topology"))
    graph = graph if sparse == degree else nx.complement(graph)
    return require_connected(ordered(graph), "degree", degree, "try another seed or a larger degree")


def erdos_renyi(n: int, *, p: float, seed: int) -> Graph:
    """Link every pair of nodes with the same probability.

    Args:
        n: number of nodes.
        p: probability of each link, from 0 to 1; graphs well above ln(n)/n are nearly always connected.
        seed: the experiment's seed.

    Returns:
        A random graph with about p n(n-1)/2 links.

    Raises:
        BadValue: if p is no probability, or if the graph drawn is disconnected.

    References:
        Erdős and Rényi, On random graphs I, Publicationes Mathematicae 1959;
        Batagelj and Brandes, Efficient generation of large random networks, Physical Review E 2005.

    >>> erdos_renyi(20, p=0.5, seed=1).number_of_nodes()
    20
    """
    require_two(n)
    require_probability("p", p)
    require_links("p", p, p * n * (n - 1) / 2)
    # The generator divides by log(1 - p), which is 0 when p is too small to be subtracted from 1.
    graph = nx.fast_gnp_random_graph(n, p if 1 - p < 1 else 0, seed=stream(seed, "topology"))
    hint = f"try another seed or a larger p (ln(n)/n = {math.log(n) / n:.3g})"
    return require_connected(ordered(graph), "p", p, hint)


def small_world(n: int, *, neighbours: int, rewire: float, seed: int) -> Graph:
    """Take a ring with links to the nearest nodes and move the far end of some of them at random.

    Args:
        n: number of nodes.
        neighbours: nearest nodes that each node is linked to at first, half on each side; even, below n.
        rewire: probability that a link is rewired, from 0 (a lattice) to 1 (nearly random).
        seed: the experiment's seed.

    Returns:
        A graph with n x neighbours / 2 links.

    Raises:
        BadValue: if the parameters are infeasible, or if the graph drawn is disconnected.

    References:
        Watts and Strogatz, Collective dynamics of small-world networks, Nature 1998.

    >>> small_world(20, neighbours=4, rewire=0.1, seed=1).number_of_edges()
    40
    """
    require_two(n)
    if neighbours % 2 or not 2 <= neighbours < n:
        raise BadValue("neighbours", neighbours, f"must be even, at least 2 and at most n - 1 = {n - 1}")
    require_probability("rewire", rewire)
    require_links("neighbours", neighbours, n * neighbours / 2)
    graph = nx.watts_strogatz_graph(n, neighbours, rewire, seed=stream(seed, "topology"))
    hint = "try another seed, more neighbours or less rewiring"
    return require_connected(ordered(graph), "neighbours", neighbours, hint)


def exponential(n: int) -> Graph:
    """Link node i to i ± 1, 2, 4, 8 … modulo n: about 2 log2(n) neighbours, and any node in log2(n) hops.

    Args:
        n: number of nodes.

    Returns:
        The static exponential graph, without directions.

    Raises:
        BadValue: if n < 2.

    References:
        Ying et al., Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021.

    >>> list(exponential(16)[0])
    [1, 2, 4, 8, 12, 14, 15]
    """
    require_two(n)
    offsets = [2**j for j in range((n - 1).bit_length())]
    return require_connected(ordered(nx.circulant_graph(n, offsets)), "n", n)


def require_two(n: int) -> None:
    """Refuse a world of fewer than two nodes.

    Raises:
        BadValue: if n < 2.

    >>> require_two(1)
    Traceback (most recent call last):
    fedsim.errors.BadValue: n: 1: a topology needs at least 2 nodes
    """
    if n < 2:
        raise BadValue("n", n, "a topology needs at least 2 nodes")


def require_links(key: str, value: Any, links: float) -> None:
    """Refuse more links than this machine has memory for, before any of them is made.

    Raises:
        BadValue: blames ``key``; says how many links there would be, and what they take.

    >>> require_links("n", 10**9, 5e17)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: n: 1000000000: needs about 2.5e+11 GB for 5e+17 links, and this machine has ...
    """
    require_room(key, value, links * LINK_BYTES, f"{links:.3g} links")


def require_connected(graph: Graph, key: str, value: Any, hint: str = "") -> Graph:
    """Return the graph as it is, or refuse it when some node cannot reach another.

    Args:
        graph: the graph to check.
        key: the parameter to blame.
        value: what that parameter was.
        hint: what to do about it.

    Returns:
        The same graph.

    Raises:
        BadValue: if the graph is disconnected; says into how many components, and how large the largest is.

    >>> require_connected(nx.Graph([(0, 1), (2, 3), (3, 4)]), "p", 0.1, "try another seed")
    Traceback (most recent call last):
    fedsim.errors.BadValue: p: 0.1: gives 2 components, the largest with 3 of 5 nodes; try another seed
    """
    sizes = [len(component) for component in nx.connected_components(graph)]
    if len(sizes) > 1:
        rule = f"gives {len(sizes)} components, the largest with {max(sizes)} of {len(graph)} nodes"
        raise BadValue(key, value, rule, hint)
    return graph


def ordered(graph: Graph) -> Graph:
    """Return a copy with nodes, links and every node's neighbours in ascending order.

    >>> list(ordered(nx.Graph([(2, 1), (2, 0)])).edges)
    [(0, 2), (1, 2)]
    """
    links = [(min(a, b), max(a, b), data) for a, b, data in graph.edges(data=True)]
    copy = Graph()
    copy.add_nodes_from((i, graph.nodes[i]) for i in sorted(graph))
    copy.add_edges_from(sorted(links, key=lambda link: link[:2]))
    return copy


def require_probability(key: str, value: float) -> None:
    """Refuse a number that is no probability.

    Raises:
        BadValue: if it is below 0 or above 1.

    >>> require_probability("p", 2.0)
    Traceback (most recent call last):
    fedsim.errors.BadValue: p: 2.0: must be a probability from 0 to 1, is 2.0
    """
    if not 0 <= value <= 1:
        raise BadValue(key, value, f"must be a probability from 0 to 1, is {value}")


def _squarest(n: int) -> tuple[int, int]:
    rows = next(rows for rows in range(math.isqrt(n), 0, -1) if n % rows == 0)
    return rows, n // rows


def _sides(n: int) -> tuple[int, int]:
    if n >= 9 and min(_squarest(n)) >= 3:
        return _squarest(n)
    # One of any three numbers is a multiple of 3, so from 9 nodes on some neighbour always works.
    near = [m for m in range(max(9, n - 2), max(9, n) + 3) if min(_squarest(m)) >= 3]
    works = max(near, key=lambda m: _squarest(m)[0] / _squarest(m)[1])
    rows, columns = _squarest(works)
    rule = f"{n} nodes do not fill a grid with sides of at least 3"
    raise BadValue("n", n, rule, f"{works} nodes do ({rows} x {columns})")


def _sides_with(n: int, rows: int) -> tuple[int, int]:
    if rows < 3:
        raise BadValue("rows", rows, f"must be at least 3, is {rows}")
    if n % rows or n // rows < 3:
        works = rows * max(3, round(n / rows))
        rule = f"{n} nodes do not fill {rows} rows with at least 3 nodes each"
        raise BadValue("rows", rows, rule, f"{works} nodes do ({rows} x {works // rows})")
    return rows, n // rows
