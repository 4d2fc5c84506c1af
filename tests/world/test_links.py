"""Graphs in arrays behave as NetworkX's own do, and a world on them is the same to the last event."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.world import links
from fedsim.world import world as worlds
from fedsim.world.links import packed, pairs
from topologies import graphs

LINKS = st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda ends: (min(ends), max(ends))))


def both(nodes: int, ends: set[tuple[int, int]]) -> tuple[nx.Graph, nx.Graph]:
    """Return the same graph in dictionaries and in arrays; link k of them has the facts -k and 2**40 + k."""
    ordinary, order = nx.empty_graph(nodes), sorted(ends)
    for k, (a, b) in enumerate(order):
        ordinary.add_edge(a, b, low=-k, high=2**40 + k)
    facts = {"low": -np.arange(len(order)), "high": 2**40 + np.arange(len(order))}
    return ordinary, packed(nodes, np.array(order, dtype=np.int32).reshape(-1, 2), facts)


@settings(max_examples=100, deadline=None)
@given(LINKS, st.integers(0, 8), st.integers(0, 8))
def test_it_answers_as_an_ordinary_graph_does(ends, a, b):
    ordinary, small = both(9, ends)
    for ask in (
        list,
        len,
        lambda graph: list(graph.edges),
        lambda graph: [(x, y, dict(known)) for x, y, known in graph.edges(data=True)],
        lambda graph: [list(graph[node]) for node in graph],
        lambda graph: dict(graph.degree),
        nx.Graph.number_of_edges,
        lambda graph: (graph.has_edge(a, b), graph.get_edge_data(a, b), graph.get_edge_data(a, 9)),
        lambda graph: (a in graph, 9 in graph, "a" in graph, graph.has_edge(a, "b"), graph.has_edge("a", b)),
        lambda graph: sorted(map(sorted, nx.connected_components(graph))),
        lambda graph: nx.single_source_dijkstra(graph, a, weight="high"),
        lambda graph: list(nx.restricted_view(graph, [b], [(a, b)]).edges(data="low")),
        lambda graph: list(nx.Graph(graph).edges(data="high")),
        lambda graph: list(graph.to_directed().edges(data="high")),
        lambda graph: pairs(graph).tolist(),
    ):
        assert ask(small) == ask(ordinary)
    assert nx.utils.graphs_equal(small, ordinary)


def test_what_it_says_are_pythons_own_numbers():
    _, small = both(3, {(0, 1), (1, 2)})
    found = [*small, *small[1], *small.edges[1, 2].values()]
    assert found == [0, 1, 2, 0, 2, -1, 2**40 + 1]
    assert {type(one) for one in found} == {int}


def test_only_a_copy_can_be_changed():
    _, small = both(3, {(0, 1)})
    for change in (
        lambda: small.add_edge(1, 2),
        lambda: small.remove_node(0),
        lambda: small.edges[0, 1].update(low=5),
        lambda: small.nodes[0].update(router=True),
    ):
        with pytest.raises((nx.NetworkXError, AttributeError)):
            change()
    own = small.copy()
    own.add_edge(1, 2)
    own.edges[0, 1]["low"] = 5
    assert list(own.edges(data="low")) == [(0, 1, 5), (1, 2, None)]
    assert list(small.edges(data="low")) == [(0, 1, 0)]


def test_whoever_asks_for_what_is_not_there_is_told_as_by_an_ordinary_graph():
    for graph in both(3, {(0, 1)}):
        for ask in (lambda of: of[3], lambda of: of[-1], lambda of: of.edges[0, 2], lambda of: of.nodes[3]):
            with pytest.raises(KeyError):
                ask(graph)


def test_it_can_be_sent_to_another_process():
    _, small = both(4, {(0, 1), (1, 3)})
    for twin in (pickle.loads(pickle.dumps(small)), deepcopy(small)):
        assert list(twin.edges(data="high")) == list(small.edges(data="high"))


@pytest.mark.parametrize(("make", "n"), [(graphs.star, 40), (graphs.complete, 13)])
def test_large_stars_and_complete_graphs_are_the_same_in_arrays(make, n, monkeypatch):
    ordinary = make(n)
    monkeypatch.setattr(graphs, "MANY", 10)
    small = make(n)
    assert (nx.is_frozen(ordinary), nx.is_frozen(small)) == (False, True)
    assert type(small) is nx.Graph
    assert [list(small[node]) for node in small] == [list(ordinary[node]) for node in ordinary]
    assert list(small.edges(data=True)) == list(ordinary.edges(data=True))


def test_a_link_of_a_large_star_takes_less_than_a_hundred_bytes():
    # Two ends and two places of four bytes each, and where each node's links begin: 20 bytes.
    star = graphs.star(links.MANY + 2)
    arrays = vars(star)["_adj"]
    sizes = [len(one) * one.itemsize for one in (arrays.first, arrays.ends, arrays.places)]
    assert sum(sizes) == 4 * (links.MANY + 3) + 2 * 2 * 4 * (links.MANY + 1)
    assert star.number_of_edges() == links.MANY + 1


DRAWN = {"distribution": "lognormal", "median": 20, "sigma": 0.7}


def wired(graph: nx.Graph, **network: Any) -> list[Any]:
    """Return the links of a network over a graph."""
    base = {"data": {"clients": len(graph)}, "strategy": "dpsgd", "stop": {"rounds": 1}, "network": network}
    return list(worlds.build(fedsim.load(base), graph, 0).network.graph.edges(data=True))


def test_links_are_drawn_and_rounded_alike(monkeypatch, tmp_path):
    matrix = tmp_path / "cities.csv"
    matrix.write_text("0,3.0005\n2.0015,0.1\n", encoding="utf-8")
    own = nx.cycle_graph(6)
    own.edges[0, 1].update(latency_ms=7, mbps=1e300)
    cases: list[tuple[nx.Graph, dict[str, Any]]] = [
        (nx.cycle_graph(30), {"latency_ms": DRAWN, "edge_mbps": DRAWN}),
        (nx.cycle_graph(30), {"latency_ms": 1e9, "edge_mbps": {**DRAWN, "median": 1e-6}}),
        (nx.cycle_graph(30), {"latency_ms": 0.0005, "edge_mbps": 1e-6}),
        (nx.cycle_graph(30), {"latency_matrix": str(matrix), "latency_unit": "one_way"}),
        (own, {"latency_ms": DRAWN, "edge_mbps": DRAWN}),
    ]
    plain = [wired(graph, **network) for graph, network in cases]
    monkeypatch.setattr(worlds, "MANY", 1)
    assert [wired(graph, **network) for graph, network in cases] == plain


RUNS: dict[str, dict[str, Any]] = {
    "star": {
        "data": {"clients": 9},
        "strategy": {"name": "strategies.server.fedavg:FedAvg", "participants": 4},
    },
    "complete": {"data": {"clients": 7}, "strategy": "dpsgd", "topology": "complete"},
    "ring": {
        "data": {"clients": 8},
        "strategy": {"name": "dpsgd", "timeout_s": 5},
        "topology": "ring",
        "faults": [{"name": "partition", "at_s": 0.3, "for_s": 1, "groups": [[0, 1, 2], [3, 4, 5, 6, 7]]}],
    },
    "modest": {
        "data": {"clients": 9},
        "strategy": {"name": "modest", "sample_size": 3},
        "topology": "ring",  # messages take the quickest path over it
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_over_arrays_has_the_same_events(name, monkeypatch, tmp_path):
    network = {"latency_ms": DRAWN, "edge_mbps": DRAWN, "up_mbps": 5, "down_mbps": 10}
    base = {"model": "softmax", "stop": {"rounds": 3}, "network": network, "record": {"report": False}}
    run = {**base, **RUNS[name]}
    plain = fedsim.run(run, out=tmp_path / "plain", timing_only=True)
    monkeypatch.setattr(graphs, "MANY", 1)
    monkeypatch.setattr(worlds, "MANY", 1)
    small = fedsim.run(run, out=tmp_path / "small", timing_only=True)
    assert small.summary["event_hash"] == plain.summary["event_hash"]
    assert small.summary["rounds"] == 3
