"""Graphs: the type of a topology, and topologies that change from round to round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import networkx as nx

if TYPE_CHECKING:
    Graph = nx.Graph[int]
else:  # at run time NetworkX's graphs take no type arguments, and parts read their annotations
    Graph = nx.Graph

ROUNDS = "rounds"
TALK = "talk"
"""Attribute of a graph with routers: the graph of who talks to whom, over the nodes that are no routers."""


def joined(graphs: Sequence[Graph]) -> Graph:
    """Join the graphs of several rounds into the undirected graph of all links that they use.

    Args:
        graphs: one graph for each round, over the same nodes; after the last one the first comes again. A link of a
            directed graph only carries messages from its first node to its second.

    Returns:
        The links of all graphs; ``latency_ms`` and ``mbps`` are those of the first graph that has them. Where the
        graphs are directed or more than one, :func:`of_round` finds them again.

    >>> links = joined([nx.DiGraph([(0, 1), (1, 2), (2, 0)])])
    >>> links.is_directed(), list(links.edges), list(of_round(links, 7)[2])
    (False, [(0, 1), (0, 2), (1, 2)], [0])
    """
    links = Graph()
    for graph in graphs:
        links.add_nodes_from(node for node in graph.nodes(data=True) if node[0] not in links)
        for a, b, data in graph.edges(data=True):
            known = links.get_edge_data(a, b, {})
            links.add_edge(a, b, **{k: v for k, v in data.items() if k in ("latency_ms", "mbps")} | known)
    if len(graphs) > 1 or any(graph.is_directed() for graph in graphs):
        links.graph[ROUNDS] = tuple(graphs)
    return links


def talk(graph: Graph) -> Graph:
    """Return who talks to whom: the graph itself, if it has no routers.

    >>> backbone = Graph([(0, 2), (1, 2)], talk=Graph([(0, 1)]))
    >>> list(talk(backbone).edges)
    [(0, 1)]
    """
    found: Graph = graph.graph.get(TALK, graph)
    return found


def members(graph: Graph) -> list[int]:
    """Return the nodes that are no routers: clients or peers, and a server.

    >>> backbone = Graph([(0, 2), (1, 2)])
    >>> backbone.nodes[2]["router"] = True
    >>> members(backbone)
    [0, 1]
    """
    return sorted(node for node, router in graph.nodes(data="router") if not router)


def rounds(graph: Graph) -> tuple[Graph, ...]:
    """Return the graphs of the rounds, which repeat; for an ordinary graph, that is the graph itself."""
    found: tuple[Graph, ...] = graph.graph.get(ROUNDS, (graph,))
    return found


def of_round(graph: Graph, round: int) -> Graph:
    """Return the graph of a round; rounds count from 1."""
    graphs = rounds(graph)
    return graphs[(round - 1) % len(graphs)]


def receivers(graph: Graph, node: int, round: int) -> list[int]:
    """Return whom a node sends to in a round, in the order of ids.

    >>> wheel = joined([nx.DiGraph([(0, 1), (1, 2), (2, 0)])])
    >>> receivers(wheel, 0, 1), senders(wheel, 0, 1)
    ([1], [2])
    """
    return sorted(of_round(graph, round)[node])


def senders(graph: Graph, node: int, round: int) -> list[int]:
    """Return who sends to a node in a round, in the order of ids."""
    now = of_round(graph, round)
    return sorted(now.predecessors(node) if isinstance(now, nx.DiGraph) else now[node])
