"""Topologies that change, and directed ones: exact averages after a finite number of rounds, links by hand."""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from topologies.directed import directed_exponential, directed_ring
from topologies.mixing import metropolis_hastings
from topologies.sequences import base_graph, one_peer_exponential, random_matchings


def product(graphs):
    result = np.eye(len(graphs[0]))
    for graph in graphs:
        result = metropolis_hastings(graph) @ result
    return result


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 64), degree=st.integers(1, 6))
def test_a_base_graph_averages_exactly_with_few_neighbours(n, degree):
    graphs = base_graph(n, degree=degree)
    assert np.abs(product(graphs) - 1 / n).max() < 1e-12
    assert max(links for graph in graphs for _, links in graph.degree) <= degree
    assert len(graphs) <= 2 * math.log(n, degree + 1) + 2 + 1e-9
    for graph in graphs:
        weights = metropolis_hastings(graph)
        assert list(graph) == list(range(n))
        assert (weights >= 0).all()
        assert np.abs(weights - weights.T).max() == 0


@pytest.mark.parametrize(
    ("n", "degree", "rounds"),
    # Powers of k+1 and products of small factors take one round for each factor; a complete graph takes one.
    [(2, 1, 1), (8, 1, 3), (32, 1, 5), (9, 2, 2), (12, 3, 2), (6, 5, 1), (7, 6, 1)],
)
def test_smooth_numbers_take_one_round_for_each_factor(n, degree, rounds):
    assert len(base_graph(n, degree=degree)) == rounds


def test_the_base_graph_of_three_by_hand():
    """3 = 2 + 1: two average, one of them swaps with the third, and the two average again."""
    graphs = [list(graph.edges(data="weight")) for graph in base_graph(3)]
    assert graphs == [[(0, 1, 0.5)], [(0, 2, pytest.approx(2 / 3))], [(0, 1, 0.5)]]


def test_a_product_with_a_rough_part_takes_the_shorter_way():
    # 10 = 2 x 5: two base graphs of 5 = 4 + 1 (5 rounds) side by side, then 5 pairs; 8 + 2 would take 7.
    assert len(base_graph(5)) == 5
    assert len(base_graph(10)) == 6


@pytest.mark.parametrize(("n", "degree"), [(1, 1), (5, 0), (5, -2)])
def test_base_graphs_that_cannot_be(n, degree):
    with pytest.raises(BadValue, match=f"{n if n < 2 else degree}"):
        base_graph(n, degree=degree)


@pytest.mark.parametrize("n", [2, 3, 8, 13])
def test_one_peer_exponential_has_one_way_out_and_one_in(n):
    graphs = one_peer_exponential(n)
    assert len(graphs) == (n - 1).bit_length()
    for j, graph in enumerate(graphs):
        assert graph.is_directed()
        assert list(graph.edges) == [(i, (i + 2**j) % n) for i in range(n)]


def test_directed_graphs_by_hand():
    assert list(directed_ring(4).edges) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert list(directed_exponential(8)[5]) == [1, 6, 7]
    assert all(
        nx.is_strongly_connected(make(n)) for make in (directed_ring, directed_exponential) for n in (2, 9)
    )
    with pytest.raises(BadValue, match="at least 2 nodes"):
        directed_ring(1)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 99))
def test_matchings_pair_nearly_everybody(n, seed):
    graphs = random_matchings(n, length=40, seed=seed)
    assert {graph.number_of_edges() for graph in graphs} == {n // 2}
    assert all(degree <= 1 for graph in graphs for _, degree in graph.degree)
    assert [list(a.edges) for a in graphs] == [
        list(b.edges) for b in random_matchings(n, length=40, seed=seed)
    ]


def test_matchings_that_leave_somebody_out():
    with pytest.raises(BadValue, match="1 matchings of 6 nodes leave 3 components"):
        random_matchings(6, length=1, seed=0)
    with pytest.raises(BadValue, match="at least 1, is 0"):
        random_matchings(6, length=0, seed=0)
