from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.clock import Clock
from fedsim.world.log import EventLog
from fedsim.world.net.network import Access, Message, Network, Traffic

PLAIN = {"latency_ms": 20, "edge_mbps": 8}  # 8 Mbit/s is one byte in each microsecond


def facts(route):
    return route.latency_us, route.bits_per_s, route.links


def model(size=936, round=-1):
    """A message that is 1000 bytes long with the header of 64."""
    return Message("model", None, size, round)


def arrivals(events):
    return [time for time, kind, *_ in events if kind == "deliver"]


def sums(world):
    totals = world.totals()
    return totals["bytes_up"], totals["bytes_down"], totals["bytes_lost"]


def cut_at(make, watch, moments, size=936):
    """Send 1000 bytes (1000 µs on the wire, 20 ms on the way) from 0 to 1; cut nodes off at given moments."""
    world = make(nx.path_graph(2), network=PLAIN)
    events, ends = watch(world), []
    world.nodes[0].send(world.nodes[1], model(size), lambda ok: ends.append((world.clock.now, ok)))
    for node, moment in moments:
        world.clock.after(moment, world.nodes[node].set_online, False)
    world.clock.run()
    assert world.nodes[0].transfers == world.nodes[1].transfers == {}
    return world, events, ends


def test_arrival_is_latency_plus_size_over_bandwidth(make, watch):
    # 936 + 64 bytes at 1 byte/µs = 1000 µs, and 20 ms on the way.
    world, events, ends = cut_at(make, watch, [])
    assert events == [(0, "send", 0, 1, 1000, -1), (21_000, "deliver", 1, 0, 1000, -1)]
    assert ends == [(21_000, True)]
    assert world.network.traffic == {0: Traffic(up=1000), 1: Traffic(down=1000)}
    assert world.network.links == {(0, 1): 1000}


@pytest.mark.parametrize(
    ("header", "size", "mbps", "arrival"),
    [
        (0, 1000, 8, 1000),
        (64, 1000, 8, 1064),
        (0, 1000, 3, 2667),  # 8000 bits at 3 bits/µs: 2666.67, rounded up
        (0, 1, 1000, 1),  # 0.008 µs, rounded up
        (0, 0, 8, 0),
        (64, 0, 8, 64),
        (100, 150, 0.5, 4000),  # 2000 bits at 0.5 bits/µs
        (64, 10**9, None, 0),
    ],
)
def test_the_header_counts_and_microseconds_are_rounded_up(make, watch, header, size, mbps, arrival):
    world = make(nx.path_graph(2), network={"header_bytes": header, "edge_mbps": mbps})
    events = watch(world)
    world.nodes[0].send(world.nodes[1], model(size))
    world.clock.run()
    assert arrivals(events) == [arrival]
    assert sums(world) == (size + header, size + header, 0)


def test_the_latency_of_both_ends_adds_up_and_the_latency_of_nodes_between_does_not(make):
    world = make(nx.path_graph(4), network={"latency_ms": 20, "node_latency_ms": 3})
    assert facts(world.network.route(0, 1)) == (26_000, 0, ((0, 1),))
    assert facts(world.network.route(0, 3)) == (66_000, 0, ((0, 1), (1, 2), (2, 3)))


def test_each_node_adds_its_own_latency(make):
    draw = {"distribution": "uniform", "low": 1, "high": 9}
    world = make(nx.complete_graph(4), seed=5, network={"node_latency_ms": draw, "latency_ms": 2})
    own = {node: access.latency_us for node, access in world.network.access.items()}
    assert len(set(own.values())) == 4
    assert all(1000 <= latency <= 9000 for latency in own.values())
    assert world.network.route(1, 3).latency_us == own[1] + own[3] + 2000


@pytest.mark.parametrize(
    ("up", "down", "edge", "mbps"),
    [
        (4, 8, 16, 4),
        (8, 4, 16, 4),
        (16, 8, 4, 4),
        (None, 8, 16, 8),
        (8, None, None, 8),
        (None, None, 2.5, 2.5),
        (None, None, None, 0),
    ],
)
def test_the_narrowest_place_sets_the_bandwidth(make, up, down, edge, mbps):
    world = make(nx.path_graph(2), network={"up_mbps": up, "down_mbps": down, "edge_mbps": edge})
    assert world.network.route(0, 1).bits_per_s == mbps * 1_000_000


def test_the_narrowest_edge_of_a_path_counts_but_not_the_access_of_nodes_between(make):
    graph = nx.path_graph(4)
    graph.edges[1, 2]["mbps"] = 5
    world = make(graph, network={"edge_mbps": 50, "up_mbps": 10, "down_mbps": 20})
    world.network.access |= {1: Access(up_bps=1), 2: Access(down_bps=1)}
    assert world.network.route(0, 3).bits_per_s == 5_000_000
    assert world.network.route(3, 0).bits_per_s == 5_000_000


def test_up_belongs_to_the_sender_and_down_to_the_receiver():
    graph = nx.Graph()
    graph.add_edge(0, 1, latency_us=0, bits_per_s=0)
    clock = Clock()
    network = Network(clock, EventLog(clock), graph, {0: Access(up_bps=7, down_bps=3), 1: Access()})
    assert network.route(0, 1).bits_per_s == 7
    assert network.route(1, 0).bits_per_s == 3


def detour(direct_ms, around_ms):
    """Node 0 reaches node 3 over 1, or over 2 and 4."""
    graph = nx.Graph()
    for path, latencies in (((0, 1, 3), direct_ms), ((0, 2, 4, 3), around_ms)):
        for edge, latency in zip(pairwise(path), latencies, strict=True):
            graph.add_edge(*edge, latency_ms=latency)
    return graph


@pytest.mark.parametrize(
    ("direct", "around", "latency_us", "links"),
    [
        ((10, 10), (5, 5, 9), 19_000, ((0, 2), (2, 4), (3, 4))),
        ((10, 10), (5, 5, 10), 20_000, ((0, 1), (1, 3))),  # equally quick: fewer hops
        ((10, 10), (2, 2, 16), 20_000, ((0, 1), (1, 3))),
        ((0, 0), (0, 0, 0), 0, ((0, 1), (1, 3))),
        ((10, 9), (5, 5, 10), 19_000, ((0, 1), (1, 3))),
    ],
)
def test_the_quickest_path_is_taken_and_among_equals_the_shortest(make, direct, around, latency_us, links):
    network = make(detour(direct, around)).network
    assert facts(network.route(0, 3)) == (latency_us, 0, links)
    assert facts(network.route(3, 0)) == (latency_us, 0, links[::-1])


def test_neighbours_use_their_link_even_where_a_detour_is_quicker(make):
    graph = nx.complete_graph(3)
    nx.set_edge_attributes(graph, {(0, 1): 30, (0, 2): 1, (1, 2): 1}, "latency_ms")
    assert facts(make(graph).network.route(0, 1)) == (30_000, 0, ((0, 1),))


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 9), st.integers(0, 10**6), st.data())
def test_routes_are_the_quickest_of_all_simple_paths_and_the_shortest_of_those(make, n, seed, data):
    graph = nx.gnp_random_graph(n, 0.4, seed=seed)
    graph.add_edges_from(pairwise(range(n)))
    for edge in graph.edges:  # few different latencies, so that there are ties
        graph.edges[edge]["latency_ms"] = data.draw(st.integers(0, 3))
    network = make(graph).network
    edges = network.graph.edges
    for a, b in nx.non_edges(graph):
        paths = [list(pairwise(path)) for path in nx.all_simple_paths(graph, a, b)]
        best = min((sum(edges[hop]["latency_us"] for hop in hops), len(hops)) for hops in paths)
        route = network.route(a, b)
        assert (route.latency_us, len(route.links)) == best


def test_nodes_between_carry_link_bytes_but_no_bytes_of_their_own(make):
    world = make(nx.path_graph(3), network=PLAIN)
    world.nodes[0].send(world.nodes[2], model())
    world.nodes[2].send(world.nodes[1], model(436))
    world.clock.run()
    assert world.clock.now == 41_000
    assert world.network.traffic == {0: Traffic(up=1000), 1: Traffic(down=500), 2: Traffic(up=500, down=1000)}
    assert world.network.links == {(0, 1): 1000, (1, 2): 1500}


def test_nodes_between_pass_on_while_they_are_offline(make, watch):
    world = make(nx.path_graph(3), network=PLAIN)
    events = watch(world)
    world.nodes[1].set_online(False)
    world.nodes[0].send(world.nodes[2], model())
    world.clock.after(100, world.nodes[1].set_online, True)
    world.clock.after(200, world.nodes[1].crash)
    world.clock.run()
    assert arrivals(events) == [41_000]
    assert world.network.traffic[1] == Traffic()


def test_a_message_to_itself_takes_no_time_and_no_link(make, watch):
    world = make(nx.path_graph(2), network={**PLAIN, "node_latency_ms": 3, "up_mbps": 1})
    events = watch(world)
    world.nodes[0].send(world.nodes[0], model())
    world.clock.run()
    assert arrivals(events) == [0]
    assert world.network.traffic[0] == Traffic(up=1000, down=1000)
    assert world.network.links == {}


def test_a_message_to_itself_is_lost_when_the_node_leaves_before_it_is_read(make):
    world = make(nx.path_graph(2))
    ends = []
    world.nodes[0].send(world.nodes[0], model(), ends.append)
    world.nodes[0].set_online(False)
    world.clock.run()
    assert ends == [False]
    assert world.network.traffic[0] == Traffic(up=1000, lost=1000)


def test_transfers_do_not_slow_one_another_down_if_nothing_is_shared(make, watch):
    world = make(nx.path_graph(2), network={**PLAIN, "sharing": "none"})
    events = watch(world)
    for _ in range(3):
        world.nodes[0].send(world.nodes[1], model())
    world.nodes[1].send(world.nodes[0], model(1936))
    world.clock.run()
    assert arrivals(events) == [21_000] * 3 + [22_000]
    assert world.network.links == {(0, 1): 5000}


def test_sending_to_a_node_that_is_offline_costs_the_header_and_ends_at_once(make, watch):
    world = make(nx.path_graph(3), network=PLAIN)
    events, ends = watch(world), []
    world.nodes[2].set_online(False)
    world.nodes[0].send(world.nodes[2], model(round=4), ends.append)
    assert ends == [False]
    assert events[1:] == [(0, "send", 0, 2, 1000, 4), (0, "lost", 0, 2, 64, 4)]
    world.nodes[2].set_online(True)
    world.clock.run()
    assert ends == [False]
    assert world.network.traffic == {0: Traffic(up=64, lost=64), 1: Traffic(), 2: Traffic()}
    assert world.network.links == {(0, 1): 64, (1, 2): 64}
    assert world.nodes[0].transfers == {}


def test_a_node_that_is_offline_sends_nothing(make, watch):
    world = make(nx.path_graph(2), network=PLAIN)
    world.nodes[0].set_online(False)
    events, ends = watch(world), []
    world.nodes[0].send(world.nodes[1], model(), ends.append)
    world.clock.run()
    assert (ends, events, sums(world)) == ([False], [], (0, 0, 0))


@pytest.mark.parametrize(
    ("moment", "sent"), [(0, 0), (1, 1), (250, 250), (999, 999), (1000, 1000), (20_999, 1000)]
)
def test_the_receiver_goes_offline_midway(make, watch, moment, sent):
    world, events, ends = cut_at(make, watch, [(1, moment)])
    assert ends == [(moment, False)]
    assert events[1:] == [(moment, "offline", 1, -1, 0, -1), (moment, "lost", 0, 1, sent, -1)]
    assert world.network.traffic == {0: Traffic(up=sent, lost=sent), 1: Traffic()}
    assert world.network.links == {(0, 1): sent}


@pytest.mark.parametrize("moment", [0, 1, 250, 999])
def test_the_sender_goes_offline_midway(make, watch, moment):
    world, events, ends = cut_at(make, watch, [(0, moment)])
    assert ends == [(moment, False)]
    assert events[1:] == [(moment, "offline", 0, -1, 0, -1), (moment, "lost", 0, 1, moment, -1)]
    assert world.network.traffic == {0: Traffic(up=moment, lost=moment), 1: Traffic()}


@pytest.mark.parametrize("moment", [1000, 1001, 20_999])
def test_the_sender_goes_offline_after_the_last_byte_and_it_still_arrives(make, watch, moment):
    world, _, ends = cut_at(make, watch, [(0, moment)])
    assert ends == [(21_000, True)]
    assert world.network.traffic == {0: Traffic(up=1000), 1: Traffic(down=1000)}


@pytest.mark.parametrize(
    ("moments", "end", "sent"),
    [
        ([(0, 400), (1, 700)], 400, 400),
        ([(1, 400), (0, 700)], 400, 400),
        ([(0, 500), (1, 500)], 500, 500),
        ([(0, 1500), (1, 1600)], 1600, 1000),  # the last byte had left the sender, but nobody is there
        ([(1, 1500), (0, 1600)], 1500, 1000),
    ],
)
def test_both_ends_go_offline_and_the_bytes_are_lost_once(make, watch, moments, end, sent):
    world, _, ends = cut_at(make, watch, moments)
    assert ends == [(end, False)]
    assert world.network.traffic == {0: Traffic(up=sent, lost=sent), 1: Traffic()}


def test_only_bytes_that_have_left_completely_count(make):
    # 3 bits/µs: after 1000 µs exactly 375 bytes, after 1001 µs 375.4.
    for moment, sent in ((1000, 375), (1001, 375), (1003, 376), (2666, 999), (2667, 1000)):
        world = make(nx.path_graph(2), network={"edge_mbps": 3, "latency_ms": 20})
        world.nodes[0].send(world.nodes[1], model())
        world.clock.after(moment, world.nodes[1].crash)
        world.clock.run()
        assert sums(world) == (sent, 0, sent)


def test_without_a_limit_all_bytes_leave_at_once(make, watch):
    world = make(nx.path_graph(2), network={"latency_ms": 20})
    events = watch(world)
    world.nodes[0].send(world.nodes[1], model())
    world.nodes[1].send(world.nodes[0], model(10))
    world.nodes[0].set_online(False)
    world.clock.run()
    assert arrivals(events) == [20_000]
    assert sums(world) == (1074, 1000, 74)


def test_a_receiver_that_comes_back_does_not_get_what_was_cut(make, watch):
    world = make(nx.path_graph(2), network=PLAIN)
    events = watch(world)
    world.nodes[0].send(world.nodes[1], model())
    world.clock.after(5000, world.nodes[1].set_online, False)
    world.clock.after(6000, world.nodes[1].set_online, True)
    world.clock.run()
    assert arrivals(events) == []
    assert sums(world) == (1000, 0, 1000)


def test_the_end_of_one_transfer_may_cut_another(make):
    world = make(nx.path_graph(2), network={**PLAIN, "sharing": "none"})
    a, b = world.nodes
    ends = []
    a.send(b, model(), lambda ok: a.set_online(False))
    a.send(b, model(), ends.append)
    world.clock.after(300, b.set_online, False)
    world.clock.run()
    assert ends == [False]
    assert sums(world) == (600, 0, 600)


def test_the_sender_is_written_on_the_message(make):
    world = make(nx.path_graph(2))
    heard = []
    world.nodes[1].on_message = heard.append
    payload = object()
    world.nodes[0].send(world.nodes[1], Message("model", payload, 10, 3, src=99))
    world.clock.run()
    assert heard == [Message("model", payload, 10, 3, src=0)]


SWITCHES = st.tuples(
    st.integers(0, 50_000), st.integers(0, 7), st.sampled_from(["off", "off", "on", "crash"])
)
SENDS = st.tuples(st.integers(0, 50_000), st.integers(0, 7), st.integers(0, 7), st.integers(0, 20_000))
MBPS = st.one_of(st.none(), st.floats(1, 100))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(0, 10**6),
    st.lists(SENDS, min_size=1, max_size=25),
    st.lists(SWITCHES, max_size=15),
    st.tuples(MBPS, MBPS, MBPS),
)
def test_bytes_up_are_bytes_down_plus_bytes_lost(make, watch, n, seed, sends, switches, mbps):
    graph = nx.gnp_random_graph(n, 0.3, seed=seed)
    graph.add_edges_from(pairwise(range(n)))
    latency = {"distribution": "exponential", "mean": 8}
    up, down, edge = mbps
    world = make(graph, network={"latency_ms": latency, "up_mbps": up, "down_mbps": down, "edge_mbps": edge})
    events, ends = watch(world), []
    for index, (moment, a, b, size) in enumerate(sends):
        src, dst = world.nodes[a % n], world.nodes[b % n]
        world.clock.after(moment, src.send, dst, model(size), lambda ok, i=index: ends.append(i))
    for moment, id, what in switches:
        node = world.nodes[id % n]
        world.clock.after(moment, *([node.crash] if what == "crash" else [node.set_online, what == "on"]))
    world.clock.run()

    sent_up, sent_down, sent_lost = sums(world)
    assert sent_up == sent_down + sent_lost
    assert sorted(ends) == list(range(len(sends)))
    assert all(node.transfers == {} for node in world.nodes)
    assert [time for time, *_ in events] == sorted(time for time, *_ in events)
    crossed = {}
    for _, kind, node, peer, size, _ in events:
        if kind in ("deliver", "lost"):
            ends_of = (peer, node) if kind == "deliver" else (node, peer)
            for link in world.network.route(*ends_of).links:
                crossed[link] = crossed.get(link, 0) + size
    assert dict(world.network.links) == crossed
    count = {kind: sum(event[1] == kind for event in events) for kind in ("send", "deliver", "lost")}
    assert count["send"] == count["deliver"] + count["lost"]
    for id, traffic in world.network.traffic.items():
        assert traffic.down == sum(event[4] for event in events if event[1:3] == ("deliver", id))
        assert traffic.lost == sum(event[4] for event in events if event[1:3] == ("lost", id))
        gone = sum(event[4] for event in events if event[1] == "deliver" and event[3] == id)
        assert traffic.up == traffic.lost + gone
