"""Topologies that change from round to round, as the event plane sees them."""

from __future__ import annotations

import networkx as nx
import pytest

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.running.build import prepare
from fedsim.spec.experiment import load
from fedsim.world.graph import joined, of_round, receivers, rounds, senders


def test_an_ordinary_graph_is_its_own_round():
    graph = nx.path_graph(3)
    assert rounds(graph) == (graph,)
    assert of_round(graph, 1) is of_round(graph, 99) is graph
    assert receivers(graph, 1, 5) == senders(graph, 1, 5) == [0, 2]


def test_rounds_count_from_one_and_repeat():
    graphs = [nx.Graph([(0, 1)]), nx.Graph([(1, 2)]), nx.DiGraph([(2, 0)])]
    for graph in graphs:
        graph.add_nodes_from(range(3))
    links = joined(graphs)
    assert [of_round(links, round) for round in (1, 2, 3, 4, 6)] == [graphs[i] for i in (0, 1, 2, 0, 2)]
    assert sorted(map(tuple, map(sorted, links.edges))) == [(0, 1), (0, 2), (1, 2)]
    assert (receivers(links, 2, 3), senders(links, 2, 3)) == ([0], [])
    assert (receivers(links, 0, 3), senders(links, 0, 3)) == ([], [2])


def test_the_first_graph_that_says_how_quick_a_link_is_counts():
    graphs = [
        nx.Graph([(0, 1, {"weight": 0.5})]),
        nx.Graph([(0, 1, {"latency_ms": 7})]),
        nx.Graph([(0, 1, {"latency_ms": 9})]),
    ]
    assert joined(graphs).edges[0, 1] == {"latency_ms": 7}


def test_one_undirected_graph_stays_ordinary():
    assert "rounds" not in joined([nx.path_graph(4)]).graph


def experiment(topology, strategy="dpsgd", clients=4):
    return {
        "data": {"clients": clients},
        "model": "softmax",
        "strategy": strategy,
        "topology": topology,
        "stop": {"rounds": 2},
    }


def short(n: int):
    return nx.path_graph(n - 1)


def nothing(n: int):
    return []


def text(n: int):
    return "a graph"


def mixed(n: int):
    return [nx.complete_graph(n), nx.path_graph(n + 2)]


def apart(n: int):
    graph = nx.empty_graph(n)
    graph.add_edge(0, 1)
    return [graph, nx.empty_graph(n)]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        ("short", "must return a graph with the nodes 0 to 3; this one has 3 nodes"),
        ("mixed", "must return a graph with the nodes 0 to 3; this one has 6 nodes"),
        ("nothing", "must return a networkx.Graph or a list of such graphs"),
        ("text", "must return a networkx.Graph or a list of such graphs"),
        ("apart", "must return a connected graph; this one has 3 components"),
    ],
)
def test_topologies_that_do_not_fit(make, rule):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(f"{__name__}:{make}"))
    assert rule in str(caught.value)
    assert str(caught.value).startswith("topology: ")


def test_a_server_needs_one_graph_whose_links_work_both_ways():
    with pytest.raises(ConfigError, match="is directed, and fedavg needs links that work both ways"):
        api.check(experiment("directed_ring", "fedavg"))
    with pytest.raises(
        ConfigError, match="is a sequence of 3 graphs, and fedavg needs one that does not change"
    ):
        api.check(experiment({"name": "base_graph"}, "fedavg", clients=7))
    with pytest.raises(
        ConfigError, match="is a sequence of 2 graphs, and choco needs one that does not change"
    ):
        api.check(experiment("base_graph", "choco"))


def test_the_network_has_all_links_and_knows_the_rounds():
    setup = prepare(load(experiment("base_graph", clients=8)))
    wired = setup.world.network.graph
    assert wired.number_of_edges() == 12  # a cube
    assert [graph.number_of_edges() for graph in rounds(wired)] == [4, 4, 4]
