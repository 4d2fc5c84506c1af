"""Topologies that change: a list of graphs, one for each round, that repeats.

A link's attribute ``weight`` says how much its ends listen to each other in that round; where there is none, mixing
takes Metropolis-Hastings weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx

from fedsim.errors import BadValue
from fedsim.rng import stream
from fedsim.world.graph import Graph
from topologies.directed import circulant, offsets
from topologies.graphs import ordered, require_links, require_two

Nodes = Sequence[int]


def one_peer_exponential(n: int) -> list[Graph]:
    """Let every node send to one other in each round: 1 further on, then 2, then 4, then 8 …

    Args:
        n: number of nodes; where it is a power of two, averaging over one pass gives everybody the exact mean.

    Returns:
        The directed graphs of ceil(log2(n)) rounds.

    Raises:
        BadValue: if n < 2.

    References:
        Ying et al., Exponential graph is provably efficient for decentralized deep training, NeurIPS 2021.

    >>> [list(graph[6]) for graph in one_peer_exponential(8)]
    [[7], [0], [2]]
    """
    require_two(n)
    return [circulant(n, [step]) for step in offsets(n)]


def random_matchings(n: int, *, length: int = 16, seed: int) -> list[Graph]:
    """Pair the nodes at random in every round; with an odd number, one stays alone.

    Args:
        n: number of nodes.
        length: rounds after which the pairs repeat, at least 1.
        seed: the experiment's seed.

    Returns:
        One matching for each round; all of them together connect the nodes.

    Raises:
        BadValue: if the matchings together are disconnected.

    References:
        Boyd, Ghosh, Prabhakar and Shah, Randomized gossip algorithms, IEEE Transactions on Information Theory 2006.

    >>> [graph.number_of_edges() for graph in random_matchings(7, length=3, seed=1)]
    [3, 3, 3]
    """
    require_two(n)
    if length < 1:
        raise BadValue("length", length, f"must be at least 1, is {length}")
    require_links("length", length, length * n / 2)
    graphs = []
    for round in range(length):
        order = stream(seed, "topology", round=round).permutation(n).tolist()
        graphs.append(_graph(range(n), [(a, b, 0.5) for a, b in zip(order[::2], order[1::2], strict=False)]))
    parts = nx.number_connected_components(nx.compose_all(graphs))
    if parts > 1:
        raise BadValue(
            "length", length, f"{length} matchings of {n} nodes leave {parts} components", "take more"
        )
    return graphs


def base_graph(n: int, *, degree: int = 1) -> list[Graph]:
    """Average n nodes exactly in a finite number of rounds with few neighbours each: the Base-(k+1) graph.

    Args:
        n: number of nodes, any number.
        degree: largest number of neighbours in a round (the paper's k), at least 1.

    Returns:
        The undirected graphs of at most 2 log_{k+1}(n) + 2 rounds, weighted such that they give the exact mean.

    Raises:
        BadValue: if n < 2 or degree < 1.

    References:
        Takezawa, Sato, Bao, Niwa and Yamada, Beyond exponential graph: communication-efficient topologies for
        decentralized learning via finite-time convergence, NeurIPS 2023, algorithms 1 to 3.

    >>> [list(graph.edges(data="weight")) for graph in base_graph(4)]
    [[(0, 2, 0.5), (1, 3, 0.5)], [(0, 1, 0.5), (2, 3, 0.5)]]
    """
    require_two(n)
    if degree < 1:
        raise BadValue("degree", degree, f"must be at least 1, is {degree}")
    nodes, degree = range(n), min(degree, n - 1)
    plain = _simple(nodes, degree)
    smooth, rough = _split(n, degree)
    if smooth > 1 and rough > 1:
        groups = [nodes[i * rough : (i + 1) * rough] for i in range(smooth)]
        across = [[group[i] for group in groups] for i in range(rough)]
        both = _beside([_simple(group, degree) for group in groups])
        both += _beside([_hypercube(column, degree) for column in across])
        plain = min(plain, both, key=len)
    return [_graph(nodes, links) for links in plain]


Links = list[tuple[int, int, float]]


def _hypercube(nodes: Nodes, degree: int) -> list[Links]:
    """Return algorithm 1: in each round, one coordinate of the nodes' grid is averaged over."""
    stride, result = len(nodes), []
    for size in _factors(len(nodes), degree + 1) or []:
        stride //= size
        lines = [[i + k * stride for k in range(size)] for i in range(len(nodes)) if i // stride % size == 0]
        result.append(
            [
                (nodes[a], nodes[b], 1 / size)
                for line in lines
                for i, a in enumerate(line)
                for b in line[i + 1 :]
            ]
        )
    return result


def _simple(nodes: Nodes, degree: int) -> list[Links]:
    """Return algorithm 2: each part (one for each digit of n) averages; they exchange; each averages what it got."""
    n, base = len(nodes), degree + 1
    if _factors(n, base) is not None:
        return _hypercube(nodes, degree)
    parts, first = [], 0
    for size, digit in _digits(n, base):
        groups = [nodes[first + a * size : first + (a + 1) * size] for a in range(digit)]
        parts.append(groups)
        first += digit * size
    whole = [_hypercube([node for group in part for node in group], degree) for part in parts]
    lead = len(whole[0])
    tracks = [[*rounds, *[[]] * (lead - len(rounds))] for rounds in whole]
    rest = nodes
    for stage, part in enumerate(parts[:-1]):
        here, rest = rest, rest[len(part) * len(part[0]) :]
        weight = len(part[0]) / len(here)
        swap = [(group[i], node, weight) for group in part for i, node in enumerate(rest)]
        inside = _beside([_hypercube(group, degree) for group in part])
        tracks[stage] += [*[[]] * (lead + stage - len(tracks[stage])), swap, *inside]
    return _beside(tracks)


def _beside(tracks: Sequence[list[Links]]) -> list[Links]:
    """Let sequences over disjoint nodes run at the same time."""
    longest = max(len(track) for track in tracks)
    return [[link for track in tracks if r < len(track) for link in track[r]] for r in range(longest)]


def _factors(n: int, largest: int) -> list[int] | None:
    """Return the fewest factors of n of at most that size, the largest first, or None if there are none.

    >>> _factors(12, 4), _factors(10, 4)
    ([4, 3], None)
    """
    if n == 1:
        return []
    found = [
        [size, *rest]
        for size in range(min(largest, n), 1, -1)
        if n % size == 0 and (rest := _factors(n // size, size)) is not None
    ]
    return min(found, key=len, default=None)


def _digits(n: int, base: int) -> list[tuple[int, int]]:
    """Return the powers of the base and their digits in n, the largest first, without zeros.

    >>> _digits(21, 3)
    [(9, 2), (3, 1)]
    """
    digits, power = [], 1
    while n:
        n, digit = divmod(n, base)
        digits += [(power, digit)] if digit else []
        power *= base
    return digits[::-1]


def _split(n: int, degree: int) -> tuple[int, int]:
    """Return the part of n whose prime factors are at most degree + 1, and the rest.

    >>> _split(90, 2)
    (18, 5)
    """
    rough = n
    for prime in range(2, degree + 2):
        while rough % prime == 0:
            rough //= prime
    return n // rough, rough


def _graph(nodes: Nodes, links: Links) -> Graph:
    graph = Graph()
    graph.add_nodes_from(nodes)
    graph.add_weighted_edges_from(links)
    return ordered(graph)
