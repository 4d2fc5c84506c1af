from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedsim import parts
from fedsim.errors import BadValue
from topologies import graphs

# Name, nodes, parameters and the number of links, counted by hand.
SHAPES = [
    ("star", 2, {}, 1),
    ("star", 7, {}, 6),
    ("complete", 6, {}, 15),
    ("ring", 2, {}, 1),
    ("ring", 3, {}, 3),
    ("ring", 9, {}, 9),
    ("torus", 12, {}, 24),
    ("torus", 30, {"rows": 3}, 60),
    ("random_regular", 10, {"degree": 3}, 15),
    ("random_regular", 10, {"degree": 8}, 40),
    ("erdos_renyi", 8, {"p": 1.0}, 28),
    ("erdos_renyi", 8, {"p": 1}, 28),
    ("small_world", 10, {"neighbours": 4, "rewire": 0.5}, 20),
    ("exponential", 2, {}, 1),
    ("exponential", 8, {}, 20),
    ("exponential", 6, {}, 12),
]

RANDOM: list[tuple[Callable[..., nx.Graph], dict[str, Any]]] = [
    (graphs.random_regular, {"degree": 4}),
    (graphs.erdos_renyi, {"p": 0.4}),
    (graphs.small_world, {"neighbours": 4, "rewire": 0.3}),
]


def refusal(make: Callable[..., nx.Graph], *args: Any, **kwargs: Any) -> BadValue:
    with pytest.raises(BadValue) as caught:
        make(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize(("name", "n", "given_", "links"), SHAPES)
def test_a_named_topology_is_a_simple_graph_over_0_to_n_in_order(name, n, given_, links):
    graph = parts.call(parts.find("topologies", name), given_, {"n": n, "seed": 3})
    assert type(graph) is nx.Graph
    assert list(graph) == list(range(n))
    assert graph.number_of_edges() == links
    assert nx.number_of_selfloops(graph) == 0
    assert nx.is_connected(graph)
    assert all(list(graph[i]) == sorted(graph[i]) for i in graph)


def test_the_hub_of_a_star_is_the_last_node():
    graph = graphs.star(5)
    assert list(graph[4]) == [0, 1, 2, 3]
    assert all(list(graph[i]) == [4] for i in range(4))


def test_ring_neighbours():
    graph = graphs.ring(5)
    assert [list(graph[i]) for i in range(5)] == [[1, 4], [0, 2], [1, 3], [2, 4], [0, 3]]


def test_the_default_torus_is_as_square_as_possible():
    # 36 = 6 x 6: below node 7 = (1, 1) lies 13, above it 1, left 6, right 8; row 0 meets row 5.
    graph = graphs.torus(36)
    assert list(graph[7]) == [1, 6, 8, 13]
    assert list(graph[0]) == [1, 5, 6, 30]


def test_the_rows_of_a_torus_can_be_chosen():
    # 3 rows of 12: node 0's row ends with 11, its column is 0, 12, 24.
    assert list(graphs.torus(36, rows=3)[0]) == [1, 11, 12, 24]
    assert nx.is_isomorphic(graphs.torus(36, rows=3), graphs.torus(36, rows=12))


@pytest.mark.parametrize(
    ("n", "works"),
    [
        (1, "9 nodes do (3 x 3)"),
        (8, "9 nodes do (3 x 3)"),
        (10, "9 nodes do (3 x 3)"),
        (14, "16 nodes do (4 x 4)"),
        (26, "25 nodes do (5 x 5)"),
        (101, "100 nodes do (10 x 10)"),
    ],
)
def test_a_torus_that_does_not_fit_names_one_that_does(n, works):
    error = refusal(graphs.torus, n)
    assert (error.key, error.value, error.hint) == ("n", n, works)
    assert f"{n} nodes do not fill a grid" in error.rule
    assert graphs.torus(int(works.split()[0]))


@pytest.mark.parametrize(
    ("n", "rows", "hint"),
    [(30, 4, "32 nodes do (4 x 8)"), (8, 4, "12 nodes do (4 x 3)"), (30, 2, ""), (30, 0, ""), (30, -5, "")],
)
def test_rows_that_do_not_fit_are_refused(n, rows, hint):
    error = refusal(graphs.torus, n, rows=rows)
    assert (error.key, error.value, error.hint) == ("rows", rows, hint)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 150))
def test_every_size_gives_a_4_regular_torus_or_a_hint_that_works(n):
    try:
        graph = graphs.torus(n)
    except BadValue as error:
        graph = graphs.torus(int(error.hint.split()[0]))
        assert abs(len(graph) - max(n, 9)) <= 2
    assert set(dict(graph.degree).values()) == {4}


@settings(max_examples=50, deadline=None)
@given(n=st.integers(2, 80))
def test_any_two_nodes_of_an_exponential_graph_are_within_log2_n_hops(n):
    graph = graphs.exponential(n)
    bits = (n - 1).bit_length()
    assert nx.diameter(graph) <= bits
    assert all(
        (j - i) % n in {2**k for k in range(bits)} or (i - j) % n in {2**k for k in range(bits)}
        for i, j in graph.edges
    )


def test_exponential_neighbours():
    assert list(graphs.exponential(10)[0]) == [1, 2, 4, 6, 8, 9]
    assert list(graphs.exponential(10)[7]) == [1, 3, 5, 6, 8, 9]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(4, 30), degree=st.integers(3, 29), seed=st.integers(0, 2**32))
def test_random_regular_is_regular_at_every_density(n, degree, seed):
    if degree >= n or n * degree % 2:
        assert refusal(graphs.random_regular, n, degree=degree, seed=seed).key == "degree"
        return
    try:
        graph = graphs.random_regular(n, degree=degree, seed=seed)
    except BadValue as error:
        assume("components" not in error.rule)
        raise
    assert set(dict(graph.degree).values()) == {degree}
    assert nx.number_of_selfloops(graph) == 0


@pytest.mark.parametrize(("make", "given_"), RANDOM)
def test_the_seed_alone_decides_a_random_graph(make, given_):
    first = list(make(30, **given_, seed=5).edges)
    assert list(make(30, **given_, seed=5).edges) == first
    assert list(make(30, **given_, seed=6).edges) != first


@pytest.mark.parametrize(("make", "given_"), RANDOM)
def test_a_random_graph_needs_a_seed(make, given_):
    with pytest.raises(BadValue, match="seed: is required"):
        parts.call(make, given_, {"n": 30})


def test_erdos_renyi_has_about_as_many_links_as_expected():
    # 200 nodes: 19900 pairs x 0.1 = 1990 links, standard deviation sqrt(1990 x 0.9) = 42.3; five of them.
    counts = [graphs.erdos_renyi(200, p=0.1, seed=seed).number_of_edges() for seed in range(5)]
    assert all(abs(count - 1990) < 5 * 42.3 for count in counts)
    assert len(set(counts)) > 1


def test_a_small_world_without_rewiring_is_a_lattice():
    graph = graphs.small_world(10, neighbours=4, rewire=0.0, seed=1)
    assert list(graph[0]) == [1, 2, 8, 9]
    assert list(graph[5]) == [3, 4, 6, 7]


def test_rewiring_shortens_paths():
    def length(rewire: float) -> float:
        return nx.average_shortest_path_length(graphs.small_world(100, neighbours=4, rewire=rewire, seed=1))

    assert length(0.2) < length(0.0) / 2


@pytest.mark.parametrize(
    ("make", "given_"),
    [(graphs.star, {}), (graphs.complete, {}), (graphs.ring, {}), (graphs.exponential, {})]
    + [(make, {**given_, "seed": 0}) for make, given_ in RANDOM],
)
@pytest.mark.parametrize("n", [1, 0, -4])
def test_fewer_than_two_nodes_are_refused(make, given_, n):
    error = refusal(make, n, **given_)
    assert (error.key, error.value) == ("n", n)
    assert "at least 2" in error.rule


def test_three_neighbours_for_each_of_five_nodes_are_impossible():
    error = refusal(graphs.random_regular, 5, degree=3, seed=0)
    assert str(error) == "degree: 3: nodes x degree must be even (5 x 3)"


@pytest.mark.parametrize("degree", [-2, 0, 6, 7])
def test_a_degree_out_of_range_is_refused_with_the_range(degree):
    error = refusal(graphs.random_regular, 6, degree=degree, seed=0)
    assert (error.key, error.value) == ("degree", degree)
    assert error.rule == "must be at least 1 and at most n - 1 = 5"


@pytest.mark.parametrize("p", [-0.1, 1.01, float("nan"), float("inf")])
def test_what_is_no_probability_is_refused(p):
    assert refusal(graphs.erdos_renyi, 9, p=p, seed=0).key == "p"
    error = refusal(graphs.small_world, 9, neighbours=2, rewire=p, seed=0)
    assert error.key == "rewire"
    assert "from 0 to 1" in error.rule
    assert str(p) in error.rule


@pytest.mark.parametrize("neighbours", [-2, 0, 3, 10, 12])
def test_infeasible_neighbours_are_refused(neighbours):
    error = refusal(graphs.small_world, 10, neighbours=neighbours, rewire=0.1, seed=0)
    assert (error.key, error.value) == ("neighbours", neighbours)
    assert error.rule == "must be even, at least 2 and at most n - 1 = 9"


@pytest.mark.parametrize("p", [0, 0.0, 1e-300, 1e-17])
def test_a_graph_without_links_is_refused_as_disconnected(p):
    error = refusal(graphs.erdos_renyi, 20, p=p, seed=0)
    assert (error.key, error.value) == ("p", p)
    assert error.rule == "gives 20 components, the largest with 1 of 20 nodes"
    # ln(20) / 20 = 2.9957 / 20
    assert error.hint == "try another seed or a larger p (ln(n)/n = 0.15)"


def test_pairs_of_nodes_are_refused_as_disconnected():
    error = refusal(graphs.random_regular, 6, degree=1, seed=0)
    assert error.rule == "gives 3 components, the largest with 2 of 6 nodes"
    assert error.hint == "try another seed or a larger degree"


def test_a_small_world_that_fell_apart_is_refused():
    refused = []
    for seed in range(60):
        try:
            graphs.small_world(40, neighbours=2, rewire=1.0, seed=seed)
        except BadValue as error:
            refused.append(error)
    assert refused
    assert {error.key for error in refused} == {"neighbours"}
    assert all("components" in error.rule and "another seed" in error.hint for error in refused)


def test_require_connected_returns_the_very_graph():
    graph = nx.path_graph(3)
    assert graphs.require_connected(graph, "p", 0.5) is graph


def test_ordered_sorts_and_keeps_attributes():
    graph = nx.Graph()
    graph.add_edge(2, 0, mbps=5.0)
    graph.add_edge(2, 1)
    graph.add_node(1, name="one")
    tidy = graphs.ordered(graph)
    assert list(tidy.nodes(data="name")) == [(0, None), (1, "one"), (2, None)]
    assert list(tidy.edges(data=True)) == [(0, 2, {"mbps": 5.0}), (1, 2, {})]
    tidy.edges[0, 2]["mbps"] = 1.0
    assert graph.edges[0, 2]["mbps"] == 5.0


@pytest.mark.parametrize(
    ("name", "given_", "key"),
    [
        ("random_regular", {"degree": 2.5}, "degree"),
        ("erdos_renyi", {"p": "0.3"}, "p"),
        ("torus", {"rows": "3"}, "rows"),
        ("ring", {"degree": 2}, "degree"),
        ("erdos_renyi", {}, "p"),
    ],
)
def test_ill_typed_unknown_and_missing_parameters_are_refused(name, given_, key):
    error = refusal(parts.call, parts.find("topologies", name), given_, {"n": 12, "seed": 0})
    assert error.key == key
