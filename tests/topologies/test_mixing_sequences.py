"""Spectral gap and mixing time of single graphs and of sequences."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from fedsim.world.graph import joined
from topologies.directed import directed_ring
from topologies.graphs import complete, exponential, ring, torus
from topologies.mixing import (
    LARGEST,
    facts,
    metropolis_hastings,
    mixing_rounds,
    neighbour_weights,
    spectral_gap,
)
from topologies.sequences import base_graph, random_matchings


@pytest.mark.parametrize("n", [3, 6, 11, 16])
def test_a_base_graph_has_no_distance_left_after_one_pass(n):
    graphs = base_graph(n)
    links = joined(graphs)
    assert spectral_gap(links) > 0.98
    assert mixing_rounds(links) == len(graphs)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(3, 12))
def test_no_pass_leaves_more_than_the_gap_says(seed, n):
    graphs = random_matchings(n, length=30, seed=seed)
    gap, x = spectral_gap(joined(graphs)), np.linspace(-1, 1, n) ** 3
    start = np.linalg.norm(x - x.mean())
    for graph in graphs:
        x = metropolis_hastings(graph) @ x
    assert np.linalg.norm(x - x.mean()) <= (1 - gap) ** len(graphs) * start * (1 + 1e-6) + 1e-12


def test_mixing_times_by_hand():
    # Ring of four: what is left shrinks to a third each round; 3^-4 = 1/81 > 0.01 > 3^-5.
    assert mixing_rounds(ring(4)) == 5
    assert mixing_rounds(ring(4), share=0.5) == 1
    assert mixing_rounds(complete(9)) == 1
    assert mixing_rounds(nx.Graph([(0, 1), (2, 3)])) == math.inf


def test_better_connected_graphs_mix_sooner():
    times = [mixing_rounds(graph) for graph in (ring(36), torus(36), exponential(36), complete(36))]
    assert times == sorted(times, reverse=True)
    assert times[0] > 5 * times[1]


def test_slow_sequences_are_counted_in_passes():
    halves = [nx.Graph([(0, 1), (2, 3)]), nx.Graph([(1, 2), (0, 3)])]
    for graph in halves:
        graph.add_nodes_from(range(4))
        nx.set_edge_attributes(graph, 0.1, "weight")
    links = joined(halves)
    rounds = mixing_rounds(links)
    left = np.linalg.matrix_power(
        metropolis_hastings(halves[1]) @ metropolis_hastings(halves[0]), rounds // 2
    )
    assert rounds % 2 == 0
    assert np.linalg.norm(left - 0.25, 2) <= 0.01


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_a_share_that_cannot_be(share):
    with pytest.raises(BadValue, match="above 0 and below 1"):
        mixing_rounds(ring(4), share)


def test_weights_of_links_win():
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 0.25), (1, 2, 0.5)])
    assert neighbour_weights(graph) == {
        0: {0: 0.75, 1: 0.25},
        1: {1: 0.25, 0: 0.25, 2: 0.5},
        2: {2: 0.5, 1: 0.5},
    }


def test_weights_that_are_too_much_and_links_that_go_one_way():
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 0.75), (1, 2, 0.5)])
    with pytest.raises(BadValue, match=r"weight: 1\.25: the links of node 1"):
        neighbour_weights(graph)
    with pytest.raises(BadValue, match="links that work both ways"):
        neighbour_weights(directed_ring(3))


def test_facts_are_left_out_where_they_would_take_long():
    assert facts(ring(8)) == {
        "spectral_gap": pytest.approx(spectral_gap(ring(8)), abs=1e-6),
        "mixing_rounds": mixing_rounds(ring(8)),
    }
    assert facts(nx.cycle_graph(LARGEST + 1)) == {}
