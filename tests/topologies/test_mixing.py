from __future__ import annotations

import tracemalloc

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.rng import stream
from topologies.graphs import complete, exponential, ring, star, torus
from topologies.mixing import metropolis_hastings, neighbour_weights, spectral_gap


@st.composite
def connected_graphs(draw: st.DrawFn) -> nx.Graph:
    n = draw(st.integers(2, 25))
    graph = nx.empty_graph(n)
    graph.add_edges_from((draw(st.integers(0, i - 1)), i) for i in range(1, n))
    node = st.integers(0, n - 1)
    more = draw(st.lists(st.tuples(node, node).filter(lambda pair: pair[0] != pair[1]), max_size=3 * n))
    graph.add_edges_from(more)
    return graph


def test_ring_of_four():
    # Every degree is 2: a third for each neighbour and a third for oneself.
    third = 1 / 3
    expected = [[third, third, 0, third], [third, third, third, 0]]
    expected += [[0, third, third, third], [third, 0, third, third]]
    np.testing.assert_allclose(metropolis_hastings(ring(4)), expected, atol=1e-15)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_complete_graph_averages_at_once(n):
    np.testing.assert_allclose(metropolis_hastings(complete(n)), np.full((n, n), 1 / n), atol=1e-15)
    assert spectral_gap(complete(n)) == pytest.approx(1)


def test_star_of_five():
    # The hub has degree 4, so every link weighs 1/5; a leaf keeps 4/5, the hub 1 - 4/5.
    expected = np.diag([0.8, 0.8, 0.8, 0.8, 0.2])
    expected[4, :4] = expected[:4, 4] = 0.2
    np.testing.assert_allclose(metropolis_hastings(star(5)), expected, atol=1e-15)


@pytest.mark.parametrize("n", [3, 5, 20])
def test_the_gap_of_a_star_is_one_over_n(n):
    # Vectors on the leaves that sum to 0 keep the share 1 - 1/n; the trace leaves 0 for the last eigenvalue.
    assert spectral_gap(star(n)) == pytest.approx(1 / n)


@pytest.mark.parametrize("n", [3, 4, 7, 16, 33])
def test_the_eigenvalues_of_a_ring_in_closed_form(n):
    expected = np.sort(1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(np.linalg.eigvalsh(metropolis_hastings(ring(n))), expected, atol=1e-12)
    assert spectral_gap(ring(n)) == pytest.approx(1 - np.sort(np.abs(expected))[-2])


def test_the_gap_of_a_torus_in_closed_form():
    # 4 x 4, degree 4: eigenvalues 1/5 + 2/5 (cos a + cos b) with a, b in {0, 90, 180, 270} degrees;
    # the next to 1 is 3/5 (a = 90, b = 0), and so is |1/5 - 4/5| (a = b = 180).
    assert spectral_gap(torus(16)) == pytest.approx(0.4)


def test_a_negative_eigenvalue_counts_by_its_size():
    # K(3,3): every degree is 3, so the two sides swap with eigenvalue 1/4 - 3/4 = -1/2; the others are 1/4.
    assert spectral_gap(nx.complete_bipartite_graph(3, 3)) == pytest.approx(0.5)


def test_a_path_of_three_mixes_unequal_degrees():
    weights = neighbour_weights(nx.path_graph(3))
    assert weights[0] == pytest.approx({0: 2 / 3, 1: 1 / 3})
    assert weights[1] == pytest.approx({1: 1 / 3, 0: 1 / 3, 2: 1 / 3})
    assert weights[2] == pytest.approx({2: 2 / 3, 1: 1 / 3})


def test_better_connected_graphs_have_larger_gaps():
    gaps = [spectral_gap(graph) for graph in (ring(36), torus(36), exponential(36), complete(36))]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[1] / 5


def test_a_disconnected_graph_has_no_gap():
    assert spectral_gap(nx.Graph([(0, 1), (2, 3)])) == pytest.approx(0, abs=1e-12)
    assert spectral_gap(nx.Graph([(0, 1), (2, 3)])) >= 0


def test_a_single_node_agrees_with_itself():
    assert neighbour_weights(nx.empty_graph(1)) == {0: {0: 1.0}}
    assert spectral_gap(nx.empty_graph(1)) == 1.0


@settings(max_examples=50, deadline=None)
@given(graph=connected_graphs())
def test_the_matrix_is_symmetric_and_doubly_stochastic(graph):
    matrix = metropolis_hastings(graph)
    assert matrix.dtype == np.float64
    assert matrix.shape == (len(graph), len(graph))
    assert np.array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-12)
    assert (np.diag(matrix) > 0).all()
    assert np.array_equal(
        matrix != 0, nx.to_numpy_array(graph, nodelist=range(len(graph))) + np.eye(len(graph)) != 0
    )


@settings(max_examples=50, deadline=None)
@given(graph=connected_graphs())
def test_sparse_and_dense_weights_are_the_same_numbers(graph):
    matrix = metropolis_hastings(graph)
    weights = neighbour_weights(graph)
    assert list(weights) == list(range(len(graph)))
    for i, row in weights.items():
        assert list(row) == [i, *sorted(graph[i])]
        assert all(matrix[i, j] == weight for j, weight in row.items())
        assert sum(row.values()) == pytest.approx(1, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(graph=connected_graphs(), seed=st.integers(0, 10**6))
def test_mixing_keeps_the_mean_and_contracts_by_the_gap(graph, seed):
    models = stream(seed, "models").normal(size=(len(graph), 3))
    mixed = metropolis_hastings(graph) @ models
    np.testing.assert_allclose(mixed.mean(axis=0), models.mean(axis=0), atol=1e-12)
    before = np.linalg.norm(models - models.mean(axis=0))
    after = np.linalg.norm(mixed - mixed.mean(axis=0))
    assert after <= (1 - spectral_gap(graph)) * before + 1e-9


def test_the_slowest_difference_contracts_by_exactly_the_gap():
    # On a ring the slowest difference is one wave around it.
    wave = np.cos(2 * np.pi * np.arange(12) / 12)
    mixed = metropolis_hastings(ring(12)) @ wave
    np.testing.assert_allclose(mixed, (1 - spectral_gap(ring(12))) * wave, atol=1e-12)


def test_a_link_to_oneself_does_not_count():
    graph = ring(4)
    graph.add_edge(0, 0)
    assert neighbour_weights(graph) == neighbour_weights(ring(4))


def test_the_order_in_which_links_were_added_does_not_matter():
    shuffled = nx.Graph([(3, 2), (0, 3), (2, 1), (1, 0)])
    assert [list(row.items()) for row in neighbour_weights(shuffled).values()] == [
        list(row.items()) for row in neighbour_weights(ring(4)).values()
    ]


def test_sparse_weights_need_no_square_of_memory():
    graph = ring(5000)
    tracemalloc.start()
    weights = neighbour_weights(graph)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert weights[4999] == pytest.approx({4999: 1 / 3, 0: 1 / 3, 4998: 1 / 3})
    # The matrix would take 5000 x 5000 x 8 bytes = 200 MB.
    assert peak_bytes < 20e6
