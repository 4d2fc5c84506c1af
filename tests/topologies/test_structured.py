"""Geometric graphs, communities and trees: links by hand, and parameters that cannot be."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from topologies.structured import geometric, stochastic_block, tree


def test_nodes_are_linked_if_they_are_near():
    graph = geometric(40, radius=0.4, seed=3)
    places = nx.get_node_attributes(graph, "pos")
    for a in graph:
        for b in range(a):
            assert graph.has_edge(a, b) == (math.dist(places[a], places[b]) <= 0.4)
    assert all(0 <= x < 1 and 0 <= y < 1 for x, y in places.values())


def test_seeds_decide():
    assert list(geometric(30, radius=0.5, seed=1).edges) == list(geometric(30, radius=0.5, seed=1).edges)
    assert list(geometric(30, radius=0.5, seed=1).edges) != list(geometric(30, radius=0.5, seed=2).edges)
    block = {"blocks": 2, "p_in": 0.9, "p_out": 0.2}
    assert list(stochastic_block(20, **block, seed=1).edges) == list(
        stochastic_block(20, **block, seed=1).edges
    )
    assert list(stochastic_block(20, **block, seed=1).edges) != list(
        stochastic_block(20, **block, seed=2).edges
    )


def test_a_radius_over_the_whole_square_links_all():
    assert geometric(10, radius=1.5, seed=0).number_of_edges() == 45


def test_the_extremes_of_communities():
    whole = stochastic_block(7, blocks=3, p_in=1.0, p_out=1.0, seed=0)
    assert whole.number_of_edges() == 21
    assert [whole.nodes[i]["block"] for i in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    between = stochastic_block(6, blocks=2, p_in=0.0, p_out=1.0, seed=0)
    assert nx.is_bipartite(between)
    assert between.number_of_edges() == 9


def test_communities_are_denser_inside():
    graph = stochastic_block(60, blocks=3, p_in=0.5, p_out=0.05, seed=2)
    inside = sum(graph.nodes[a]["block"] == graph.nodes[b]["block"] for a, b in graph.edges)
    assert 0.35 < inside / (3 * 20 * 19 / 2) < 0.65
    assert 0.02 < (graph.number_of_edges() - inside) / (3 * 400) < 0.09


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), branching=st.integers(1, 6))
def test_a_tree_hangs_from_the_last_node(n, branching):
    graph = tree(n, branching=branching)
    assert nx.is_tree(graph)
    depth = nx.single_source_shortest_path_length(graph, n - 1)
    children = {i: sum(depth[j] > depth[i] for j in graph[i]) for i in graph}
    assert max(children.values()) <= branching
    assert children[n - 1] == min(branching, n - 1)
    levels = [depth[i] for i in range(n - 1, -1, -1)]
    assert levels == sorted(levels)  # filled level by level
    full = sum(branching**level for level in range(max(levels)))
    assert full < n


def test_a_tree_with_one_child_each_is_a_path():
    assert list(tree(4, branching=1).edges) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: geometric(30, radius=0.05, seed=0),
            r"radius: 0.05: gives \d+ components.*sqrt\(ln\(n\) / \(pi n\)\) = 0.19",
        ),
        (lambda: geometric(30, radius=0.0, seed=0), "radius: 0.0: must be a number above 0"),
        (lambda: geometric(30, radius=math.inf, seed=0), "radius: .*must be a number above 0"),
        (
            lambda: stochastic_block(9, blocks=3, p_in=1.0, p_out=0.0, seed=0),
            "p_out: 0.0: gives 3 components, the largest with 3 of 9",
        ),
        (
            lambda: stochastic_block(9, blocks=10, p_in=1.0, p_out=0.5, seed=0),
            "blocks: 10: must be at least 1 and at most n = 9",
        ),
        (
            lambda: stochastic_block(9, blocks=3, p_in=1.1, p_out=0.5, seed=0),
            "p_in: 1.1: must be a probability",
        ),
        (lambda: tree(5, branching=0), "branching: 0: must be at least 1"),
        (lambda: tree(1), "n: 1: a topology needs at least 2 nodes"),
    ],
)
def test_refusals(make, text):
    with pytest.raises(BadValue, match=text):
        make()
