"""From an experiment to the graph that its nodes live on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import networkx as nx

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.machine import NODE_BYTES, require_room
from fedsim.spec.experiment import Experiment
from fedsim.world.graph import TALK, Graph, joined, members, rounds, talk

if TYPE_CHECKING:
    from fedsim.methods.traits import Traits


def make_graph(experiment: Experiment, servers: int) -> Graph:
    """Make the topology: one node for each client or peer, and after them one for each server.

    Args:
        experiment: what is to run.
        servers: how many the strategy has; no more than one unless it can have several.
    """
    named = len(experiment.network.attached)
    if named > 1 and servers != named:
        with experiment.blame("network"):
            rule = f"{experiment.strategy.name} has {'one server' if servers else 'only peers'}"
            raise BadValue("servers", named, rule, "take multi_server, which has several")
    size = experiment.data.clients + servers
    with experiment.blame("data"):
        require_room("clients", experiment.data.clients, size * NODE_BYTES, "their nodes")
    with experiment.blame("topology"):
        if size == 1:
            alone = Graph()
            alone.add_node(0)
            return alone
        part = experiment.find("topologies", experiment.topology.name)
        supplied = {"n": size, "seed": experiment.seed, "has_server": servers > 0, "servers": servers}
        made = parts.call(part, experiment.topology.params, supplied)
        graph = _one_graph(experiment.topology.name, made, size)
        _check_graph(experiment.topology.name, graph, experiment.network.overlay)
        _check_routers(experiment.topology.name, graph, servers > 0, experiment.network.overlay)
    return graph


def _one_graph(name: str, made: Any, size: int) -> Graph:
    """Return an ordinary graph as it is, and the links of a directed one or of a sequence of graphs."""
    graphs = list(made) if isinstance(made, list | tuple) else [made]
    if not graphs or not all(isinstance(graph, nx.Graph) for graph in graphs):
        raise BadValue(
            "name", name, "must return a networkx.Graph or a list of such graphs, one for each round"
        )
    for graph in graphs:
        whole = all(isinstance(node, int) for node in graph)
        if not whole or sorted(graph) != list(range(len(graph))) or members(graph) != list(range(size)):
            rule = f"must return a graph with the nodes 0 to {size - 1}; this one has {len(graph)} nodes"
            raise BadValue("name", name, rule, "further nodes must be routers" if len(graph) > size else "")
    if any(graph.is_directed() for graph in graphs):
        arrows: nx.DiGraph[int] = nx.compose_all([nx.DiGraph(graph) for graph in graphs])
        if not nx.is_strongly_connected(arrows):
            count = nx.number_strongly_connected_components(arrows)
            rule = f"must let every node reach every other one; this one has {count} strong components"
            raise BadValue("name", name, rule)
    return graphs[0] if len(graphs) == 1 and not graphs[0].is_directed() else joined(graphs)


def _check_routers(name: str, graph: Graph, server: bool, overlay: bool) -> None:
    """Refuse routers that nothing would go over, and peers who would not know whom to talk to."""
    size = len(members(graph))
    if len(graph) == size:
        return
    if overlay:
        rule = "has routers, and with network.overlay messages go over none of them"
        raise BadValue("name", name, rule, "set network.overlay to false")
    if not server and (TALK not in graph.graph or sorted(talk(graph)) != list(range(size))):
        rule = f"has routers, and does not say which of the {size} peers talk to each other"
        raise BadValue("name", name, rule, f"put a graph of them into graph.graph[{TALK!r}]")


def check_use(experiment: Experiment, traits: Traits, graph: Graph) -> None:
    """Refuse a topology whose links have directions, or change, for a strategy that has no use for that.

    Raises:
        ConfigError: naming the topology.
    """
    graphs, name, method = rounds(talk(graph)), experiment.topology.name, experiment.strategy.name
    with experiment.blame("topology"):
        if any(one.is_directed() for one in graphs) and not traits.directed:
            rule = f"is directed, and {method} needs links that work both ways"
            raise BadValue("name", name, rule, "take an undirected topology, or push_sum")
        if len(graphs) > 1 and not traits.varying:
            rule = f"is a sequence of {len(graphs)} graphs, and {method} needs one that does not change"
            raise BadValue("name", name, rule)


def _check_graph(name: str, graph: Graph, overlay: bool) -> None:
    for a, b, edge in graph.edges(data=True):
        for key, least in (("latency_ms", 0.0), ("mbps", 1e-6)):
            value = edge.get(key, 1.0)
            if not (isinstance(value, int | float) and least <= value < math.inf):
                raise BadValue(
                    "name", name, f"gives edge {a}-{b} {key} = {value!r}; it must be at least {least:g}"
                )
    if not overlay and not nx.is_connected(graph):
        count = nx.number_connected_components(graph)
        raise BadValue("name", name, f"must return a connected graph; this one has {count} components")
