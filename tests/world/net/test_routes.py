"""Quickest paths that are found together, source by source: the same ones as pair by pair."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.clock import Clock
from fedsim.world.log import EventLog
from fedsim.world.net import network as networks
from fedsim.world.net.network import Access, Network


def made(graph, delay_us=None):
    """Return a network whose edges have the latencies of a graph."""
    clock = Clock()
    nx.set_edge_attributes(graph, 0, "bits_per_s")
    access = {node: Access() for node in graph}
    return Network(clock, EventLog(clock), graph, access, delay_us=delay_us)


def hops(network, src, dst):
    """Return the links of a route, or nothing where there is none."""
    route = network.route(src, dst)
    return None if route is None else list(route.links)


def alone(graph, src, dst):
    """Return the links of the path that a search for this pair alone finds."""
    if graph.has_edge(src, dst):
        return [(min(src, dst), max(src, dst))]
    try:
        path = nx.dijkstra_path(graph, src, dst, lambda a, b, edge: edge["latency_us"] * 1_000_000 + 1)
    except nx.NetworkXNoPath:
        return None
    return [(min(hop), max(hop)) for hop in pairwise(path)]


def random_graph(n, seed, latencies):
    graph = nx.gnp_random_graph(n, 0.3, seed=seed)
    graph.add_edges_from(pairwise(range(n)))
    for index, edge in enumerate(graph.edges):
        graph.edges[edge]["latency_us"] = latencies[index % len(latencies)]
    return graph


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 12),
    seed=st.integers(0, 10**6),
    latencies=st.lists(st.integers(0, 2), min_size=1, max_size=5),  # many ties
    pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=30),
)
def test_of_equally_good_paths_it_is_the_one_that_a_search_for_the_pair_finds(n, seed, latencies, pairs):
    graph = random_graph(n, seed, latencies)
    network = made(graph)
    for src, dst in pairs:
        if src < n and dst < n and src != dst:
            assert hops(network, src, dst) == alone(graph, src, dst)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_paths_follow_the_edges_that_are_whole(seed, data):
    graph = random_graph(8, seed, [1, 1, 2])
    network, broken = made(graph), set()
    for _ in range(6):
        edge = data.draw(st.sampled_from(sorted(graph.edges)))
        if edge in broken:
            network.mend_edge(*edge)
        else:
            network.break_edge(*edge)
        broken ^= {edge}
        left = nx.restricted_view(graph, [], list(broken))
        for src, dst in [(0, 7), (7, 0), (3, 5), (0, 4)]:
            assert hops(network, src, dst) == alone(left, src, dst)


@pytest.mark.parametrize("kept", [1, 25, 10**6])
def test_however_few_paths_are_kept_they_are_the_same(kept, monkeypatch):
    monkeypatch.setattr(networks, "ROUTES", kept)
    monkeypatch.setattr(networks, "ENDS", kept)
    graph = random_graph(10, 3, [1, 2])
    network = made(graph)
    for src in range(10):
        for dst in range(10):
            if src != dst:
                assert hops(network, src, dst) == alone(graph, src, dst)
        assert len(network._trees) <= max(1, -(-kept // 10))


def test_one_search_serves_all_paths_of_a_source():
    asked = []

    def delay_us(a, b):
        asked.append((a, b))
        return 1000

    graph = nx.grid_2d_graph(10, 10)
    network = made(nx.convert_node_labels_to_integers(graph), delay_us)
    network.route(0, 99)
    searched = len(asked)
    assert searched >= 180  # every edge at least once
    for dst in range(2, 10):
        assert network.route(0, dst).latency_us == 1000 * dst
    assert len(asked) == searched + sum(range(2, 10))  # the hops of eight straight paths
