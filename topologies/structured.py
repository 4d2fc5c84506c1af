"""Graphs with a shape: nodes in space, in communities, in a hierarchy."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Literal

import networkx as nx

from fedsim.errors import BadValue
from fedsim.machine import require_room
from fedsim.ranges import Whole
from fedsim.rng import stream
from fedsim.world.graph import Graph
from topologies.graphs import ordered, require_connected, require_links, require_probability, require_two


def geometric(n: int, *, radius: float, seed: int) -> Graph:
    """Drop nodes at random into a unit square and link those that are near each other.

    Args:
        n: number of nodes.
        radius: largest distance of linked nodes, above 0, where the square's side is 1; graphs with a radius well
            above sqrt(ln(n) / (pi n)) are nearly always connected.
        seed: the experiment's seed.

    Returns:
        A random geometric graph; node attribute ``pos`` is the place (x, y).

    Raises:
        BadValue: if the radius is not above 0, or if the graph drawn is disconnected.

    References:
        Penrose, Random Geometric Graphs, Oxford University Press 2003.

    >>> geometric(20, radius=0.5, seed=1).number_of_nodes()
    20
    """
    require_two(n)
    if not 0 < radius < math.inf:
        raise BadValue("radius", radius, f"must be a number above 0, is {radius}")
    require_links("radius", radius, min(1.0, math.pi * radius**2) * n * (n - 1) / 2)
    places = stream(seed, "topology").random((n, 2))
    graph = nx.random_geometric_graph(
        n, radius, pos={i: (float(x), float(y)) for i, (x, y) in enumerate(places)}
    )
    enough = math.sqrt(math.log(n) / (math.pi * n))
    hint = f"try another seed or a larger radius (sqrt(ln(n) / (pi n)) = {enough:.3g})"
    return require_connected(ordered(graph), "radius", radius, hint)


def stochastic_block(n: int, *, blocks: int, p_in: float, p_out: float, seed: int) -> Graph:
    """Divide the nodes into communities that are linked more densely inside than among each other.

    Args:
        n: number of nodes; community b holds the nodes next to each other, and the first ones hold one more where
            n is not a multiple.
        blocks: number of communities, from 1 to n.
        p_in: probability of a link inside a community, from 0 to 1.
        p_out: probability of a link between two communities, from 0 to 1.
        seed: the experiment's seed.

    Returns:
        A random graph; node attribute ``block`` is the node's community.

    Raises:
        BadValue: if a parameter is out of range, or if the graph drawn is disconnected.

    References:
        Holland, Laskey and Leinhardt, Stochastic blockmodels: first steps, Social Networks 1983.

    >>> graph = stochastic_block(12, blocks=3, p_in=1.0, p_out=0.3, seed=1)
    >>> [graph.nodes[i]["block"] for i in range(12)]
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    """
    require_two(n)
    if not 1 <= blocks <= n:
        raise BadValue("blocks", blocks, f"must be at least 1 and at most n = {n}")
    require_probability("p_in", p_in)
    require_probability("p_out", p_out)
    inside = n * (n / blocks - 1) / 2
    require_links("p_in", p_in, p_in * inside)
    require_links("p_out", p_out, p_out * (n * (n - 1) / 2 - inside))
    require_room("blocks", blocks, blocks**2 * 32.0, "the chances of all pairs of blocks")
    sizes = [n // blocks + (b < n % blocks) for b in range(blocks)]
    # The generator divides by log(1 - p), which is 0 when p is too small to be subtracted from 1.
    p_in, p_out = (p if 1 - p < 1 else 0.0 for p in (p_in, p_out))
    chances = [[p_in if a == b else p_out for b in range(blocks)] for a in range(blocks)]
    graph = nx.stochastic_block_model(sizes, chances, seed=stream(seed, "topology"))
    key, value = ("p_in", p_in) if blocks == 1 else ("p_out", p_out)
    hint = f"try another seed, a larger p_out (is {p_out}) or a larger p_in (is {p_in})"
    return require_connected(ordered(graph), key, value, hint)


def stars(
    n: int, *, servers: int, homes: list[Whole] | None = None, links: Literal["complete", "ring"] = "complete"
) -> Graph:
    """Link each client to one of several servers, and the servers among each other.

    Args:
        n: number of nodes; the servers are the last ones.
        servers: how many there are: network.servers.
        homes: the server that each client is linked to, from 0; by default they take turns.
        links: which servers are linked: complete, all of them, or ring, each to the next one.

    Returns:
        The stars, joined at their hubs.

    Raises:
        BadValue: if there are only peers, or the list does not fit.

    >>> list(stars(6, servers=2).edges)
    [(0, 4), (1, 5), (2, 4), (3, 5), (4, 5)]
    """
    if not servers:
        raise BadValue(
            "name", "stars", "is for strategies with servers", "take multi_server, or the topology tree"
        )
    clients = n - servers
    homes = [client % servers for client in range(clients)] if homes is None else homes
    if len(homes) != clients or max(homes, default=0) >= servers:
        rule = f"must have one of the servers 0 to {servers - 1} for each of the {clients} clients"
        raise BadValue("homes", homes, rule)
    hubs = range(clients, n)
    ring = [(hubs[i], hubs[(i + 1) % servers]) for i in range(servers if servers > 1 else 0)]
    among = ring if links == "ring" else list(combinations(hubs, 2))
    require_links("n", n, clients + len(among))
    return ordered(nx.Graph([*((client, hubs[home]) for client, home in enumerate(homes)), *among]))


def tree(n: int, *, branching: int = 2) -> Graph:
    """Link nodes in a hierarchy: the last node is the root, the nodes before it its children, and so on.

    Args:
        n: number of nodes.
        branching: children of every node, as long as there are nodes left; at least 1.

    Returns:
        The tree, filled level by level from the root n-1 down to the leaf 0.

    Raises:
        BadValue: if n < 2 or branching < 1.

    >>> list(tree(7).edges)
    [(0, 4), (1, 4), (2, 5), (3, 5), (4, 6), (5, 6)]
    """
    require_two(n)
    if branching < 1:
        raise BadValue("branching", branching, f"must be at least 1, is {branching}")
    links = ((n - 1 - child, n - 1 - (child - 1) // branching) for child in range(1, n))
    return require_connected(ordered(nx.Graph(links)), "n", n)
