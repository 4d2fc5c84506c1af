from __future__ import annotations

from dataclasses import astuple

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import rng
from fedsim.world import world as worlds
from fedsim.world.net.network import Access, Message

SPREAD = {
    "latency_ms": {"distribution": "uniform", "low": 5, "high": 50},
    "node_latency_ms": {"distribution": "exponential", "mean": 3},
    "up_mbps": {"distribution": "lognormal", "median": 10, "sigma": 0.5},
    "down_mbps": {"distribution": "uniform", "low": 20, "high": 100},
    "edge_mbps": {"distribution": "uniform", "low": 10, "high": 1000},
}


def shuffled(graph, order, turn):
    """The same graph with its nodes and edges given in another order, and edges the other way round."""
    other = nx.Graph()
    other.add_nodes_from(order)
    edges = sorted(graph.edges(data=True), key=lambda edge: (order.index(edge[0]), order.index(edge[1])))
    other.add_edges_from((b, a, data) if turn else (a, b, data) for a, b, data in edges)
    return other


def exercise(world):
    """Let every node compute and talk to every other one; return the hash of what happened."""
    for node in world.nodes:
        node.compute(10 + node.id)
        for other in world.nodes:
            node.send(other, Message("model", None, 5000 + node.id))
    world.clock.run(until=3_000_000)
    return world.log.hexdigest()


def test_a_world_of_peers(make):
    world = make(nx.cycle_graph(4))
    assert [node.id for node in world.nodes] == [0, 1, 2, 3]
    assert {node.role for node in world.nodes} == {"peer"}
    assert world.server is None
    assert world.members == world.nodes


def test_the_server_is_the_last_node(make):
    world = make(nx.star_graph(3), server=True)
    assert [node.role for node in world.nodes] == ["client", "client", "client", "server"]
    assert world.server is world.nodes[3]
    assert world.members == world.nodes[:3]


def test_a_world_begins_at_rest(make):
    world = make(nx.path_graph(3))
    assert (world.clock.now, world.clock.peek()) == (0, float("inf"))
    assert all(node.online and not node.crashed for node in world.nodes)
    assert world.log.hexdigest() == worlds.EventLog(world.clock).hexdigest()
    assert set(world.totals().values()) == {0}


def test_without_settings_links_are_perfect_and_the_header_is_64_bytes(make):
    network = make(nx.path_graph(2)).network
    assert dict(network.graph.edges[0, 1]) == {"latency_us": 0, "bits_per_s": 0}
    assert network.access == {0: Access(), 1: Access()}
    assert network.header_bytes == 64


def test_settings_become_whole_microseconds_and_bits(make):
    network = make(
        nx.path_graph(2),
        network={
            "latency_ms": 33.3,
            "node_latency_ms": 0.0015,
            "up_mbps": 0.1,
            "down_mbps": 12.3456789,
            "edge_mbps": 1000,
            "header_bytes": 0,
        },
    ).network
    assert dict(network.graph.edges[0, 1]) == {"latency_us": 33_300, "bits_per_s": 10**9}
    assert network.access[1] == Access(2, 100_000, 12_345_679)
    assert network.header_bytes == 0
    values = [*network.graph.edges[0, 1].values(), *astuple(network.access[0])]
    assert {type(value) for value in values} == {int}


def test_the_edges_own_values_win_over_the_experiments(make):
    graph = nx.path_graph(4)
    graph.edges[0, 1].update(latency_ms=7, mbps=2.5)
    graph.edges[1, 2]["latency_ms"] = 0
    edges = make(graph, network={"latency_ms": 20, "edge_mbps": 100}).network.graph.edges
    assert dict(edges[0, 1]) == {"latency_us": 7000, "bits_per_s": 2_500_000}
    assert dict(edges[1, 2]) == {"latency_us": 0, "bits_per_s": 100_000_000}
    assert dict(edges[2, 3]) == {"latency_us": 20_000, "bits_per_s": 100_000_000}


def test_an_edges_own_value_does_not_change_what_the_others_draw(make):
    graph = nx.cycle_graph(6)
    plain = make(graph, network=SPREAD).network.graph
    graph.edges[1, 2]["latency_ms"] = 1
    own = make(graph, network=SPREAD).network.graph
    different = [edge for edge in plain.edges if plain.edges[edge] != own.edges[edge]]
    assert different == [(1, 2)]


def test_the_graph_that_was_given_is_left_as_it_is(make):
    graph = nx.path_graph(3)
    graph.edges[0, 1]["latency_ms"] = 7
    make(graph, network=SPREAD)
    assert list(graph.edges(data=True)) == [(0, 1, {"latency_ms": 7}), (1, 2, {})]


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 7), st.integers(0, 10**6), st.data(), st.booleans())
def test_the_order_of_nodes_and_edges_does_not_matter(make, n, seed, data, turn):
    graph = nx.gnp_random_graph(n, 0.5, seed=seed)
    nx.add_path(graph, range(n))
    graph.edges[0, 1]["mbps"] = 3.0
    order = data.draw(st.permutations(range(n)))
    first, second = make(graph, network=SPREAD), make(shuffled(graph, order, turn), network=SPREAD)
    assert list(first.network.graph.edges(data=True)) == list(second.network.graph.edges(data=True))
    assert first.network.access == second.network.access
    assert exercise(first) == exercise(second)


def test_ties_between_paths_do_not_depend_on_the_order_either(make):
    graph = nx.cycle_graph(6)  # two ways from 0 to 3, equally long
    other = shuffled(graph, [3, 4, 5, 2, 1, 0], True)
    worlds_ = [make(one, network={"latency_ms": 1}) for one in (graph, other)]
    assert worlds_[0].network.route(0, 3).links == worlds_[1].network.route(0, 3).links
    assert exercise(worlds_[0]) == exercise(worlds_[1])


def test_latencies_come_from_their_own_stream_in_the_order_of_the_edges(make):
    edges = make(nx.cycle_graph(4), seed=6, network=SPREAD).network.graph.edges(data="latency_us")
    draws = rng.stream(6, "latency").uniform(5, 50, 4)
    expected = [round(float(ms) * 1000) for ms in draws]
    assert sorted(edges) == [
        (a, b, us) for (a, b), us in zip([(0, 1), (0, 3), (1, 2), (2, 3)], expected, strict=True)
    ]


def test_each_setting_draws_from_a_stream_of_its_own(make):
    full = make(nx.cycle_graph(5), network=SPREAD).network
    for missing in SPREAD:
        settings_ = {key: value for key, value in SPREAD.items() if key != missing}
        part = make(nx.cycle_graph(5), network=settings_).network
        same = {
            "latency_ms": _edges(full, "latency_us") == _edges(part, "latency_us"),
            "edge_mbps": _edges(full, "bits_per_s") == _edges(part, "bits_per_s"),
            "node_latency_ms": _ends(full, "latency_us") == _ends(part, "latency_us"),
            "up_mbps": _ends(full, "up_bps") == _ends(part, "up_bps"),
            "down_mbps": _ends(full, "down_bps") == _ends(part, "down_bps"),
        }
        assert [key for key, kept in same.items() if not kept] == [missing]


def _edges(network, key):
    return [data[key] for *_, data in network.graph.edges(data=True)]


def _ends(network, key):
    return [getattr(access, key) for access in network.access.values()]


def test_equal_distributions_are_drawn_independently(make):
    one = {"distribution": "uniform", "low": 1, "high": 1000}
    network = make(nx.cycle_graph(5), network=dict.fromkeys(SPREAD, one)).network
    # Latencies are counted in microseconds, bandwidths in bits per second: a thousandth of that is comparable.
    draws = [_edges(network, "latency_us"), _ends(network, "latency_us")]
    draws += [[bps // 1000 for bps in _edges(network, "bits_per_s")]]
    draws += [[bps // 1000 for bps in _ends(network, key)] for key in ("up_bps", "down_bps")]
    assert len({value for drawn in draws for value in drawn}) == 25


def test_the_seed_is_the_only_difference_between_two_runs(make):
    hashes = [exercise(make(nx.cycle_graph(5), network=SPREAD, seed=seed)) for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_bandwidth_is_never_rounded_to_unlimited(make):
    tiny = {"distribution": "lognormal", "median": 1e-12, "sigma": 0.0}
    world = make(nx.path_graph(2), network={"up_mbps": tiny, "edge_mbps": 1e-9})
    assert world.network.access[0].up_bps == 1
    assert world.network.graph.edges[0, 1]["bits_per_s"] == 1


def test_a_graphs_own_bandwidth_is_never_rounded_to_unlimited(make):
    graph = nx.path_graph(2)
    graph.edges[0, 1]["mbps"] = 1e-9
    assert make(graph).network.graph.edges[0, 1]["bits_per_s"] == 1


def test_totals_sum_over_nodes(make):
    world = make(nx.path_graph(3), network={"latency_ms": 1, "header_bytes": 10})
    a, b, c = world.nodes
    a.send(b, Message("model", None, 90))
    c.send(b, Message("model", None, 190))
    a.compute(5)
    b.compute(7)
    world.clock.after(2500, b.set_online, False)
    world.clock.after(2600, c.send, b, Message("model", None, 190))
    world.clock.run()
    # b has done 2 of its 7 samples (1 ms each) when it leaves; the last message costs a header.
    assert world.totals() == {
        "bytes_up": 310, "bytes_down": 300, "bytes_lost": 10, "work": 7, "wasted": 2
    }  # fmt: skip


@pytest.mark.parametrize("start_online", [0.0, 1.0])
def test_after_the_start_everybody_is_what_churn_says_at_time_zero(make, start_online):
    churn = {"name": "exponential", "online_s": 5.0, "offline_s": 5.0, "start_online": start_online}
    world = make(nx.star_graph(6), server=True, start=True, churn=churn)
    assert [node.online for node in world.members] == [bool(start_online)] * 6
    assert world.server.online
    assert world.clock.now == 0
    assert world.clock.peek() > 0


def test_churn_and_faults_at_the_start_come_in_the_order_of_the_nodes(make, describe, watch):
    churn = {"name": "exponential", "online_s": 5.0, "offline_s": 5.0, "start_online": 0.0}
    experiment = describe(3, churn=churn, faults=[{"name": "crash", "at_s": 0, "nodes": [1]}])
    world = worlds.build(experiment, nx.path_graph(3), False)
    events = watch(world)
    worlds.start(world, experiment)
    assert [event[1:3] for event in events] == [
        ("offline", 0), ("offline", 1), ("offline", 2), ("crash", 1)
    ]  # fmt: skip
