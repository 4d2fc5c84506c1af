"""Faults at nodes and in the network, by hand: links of 10 ms and 1 Mbit/s, 1 ms per sample, no headers.

A message of 1,250 bytes takes 10,000 µs to send and is there 20,000 µs after its start.
"""

from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim import parts
from fedsim.errors import BadValue, ConfigError
from fedsim.rng import stream
from fedsim.world import world as worlds
from fedsim.world.faults.links import Partition
from fedsim.world.faults.nodes import Corrupt, Crash, SlowDown
from fedsim.world.log import FAULTS, KINDS
from fedsim.world.net.network import Message

NETWORK = {"latency_ms": 10, "edge_mbps": 1, "header_bytes": 0}
SIZE = 1250


@pytest.fixture
def lab(make, watch):
    """Return a function that makes a world with faults, and the events of its log from t=0."""

    def lab(graph, *faults, server=False, **blocks):
        blocks = {"network": NETWORK, "devices": {"seconds_per_sample": 0.001}, **blocks}
        world = make(graph, server=server, start=True, faults=list(faults), **blocks)
        return world, watch(world)

    return lab


def send(world, at_us, src, dst, size=SIZE, round=1):
    message = Message("model", None, size, round)
    world.clock.after(at_us, world.nodes[src].send, world.nodes[dst], message)


def of(events, *kinds):
    return [event for event in events if event[1] in kinds]


def fault(name, at_s=0.0, **more):
    return {"name": name, "at_s": at_s, **more}


# schedules


def moments(at_s, every_s=None, times=1):
    return Crash(at_s=at_s, every_s=every_s, times=times, count=1).starts_us()


def test_a_fault_strikes_again_and_again():
    assert moments(2.0) == [2_000_000]
    assert moments(0.0, 0.5, 4) == [0, 500_000, 1_000_000, 1_500_000]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((1.0, None, 2), "every_s: is required, because times is 2"),
        ((1.0, 5.0, 1), "times: 1: must be at least 2, because every_s is 5"),
        ((float("inf"), None, 1), "at_s: inf: must be finite"),
        ((0.0, float("inf"), 3), "every_s: inf: must be finite"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(given, line):
    with pytest.raises(BadValue) as caught:
        moments(*given)
    assert str(caught.value) == line


def test_crashes_draw_anew_each_time_and_before_the_start(lab):
    world, events = lab(nx.empty_graph(30), fault("crash", 1.0, count=4, every_s=2.0, times=3), seed=3)
    world.clock.run()
    crashes = of(events, "crash")
    assert set(Counter(event[0] for event in crashes)) == {1_000_000, 3_000_000, 5_000_000}
    assert 4 < len(crashes) <= 12
    once, early = lab(nx.empty_graph(30), fault("crash", 1.0, count=4), seed=3)
    once.clock.run()
    assert of(early, "crash") == crashes[:4]  # more occurrences do not change the first


def test_crash_recover_by_hand(lab):
    world, events = lab(
        nx.empty_graph(3), fault("crash_recover", 1.0, down_s=0.5, nodes=[1], every_s=2, times=2)
    )
    world.clock.run()
    assert [event[:3] for event in events] == [
        (1_000_000, "fail", 1),
        (1_000_000, "offline", 1),
        (1_500_000, "recover", 1),
        (1_500_000, "online", 1),
        (3_000_000, "fail", 1),
        (3_000_000, "offline", 1),
        (3_500_000, "recover", 1),
        (3_500_000, "online", 1),
    ]


def test_overlapping_failures_end_with_the_last_one(lab):
    world, events = lab(
        nx.empty_graph(1), *(fault("crash_recover", at, down_s=2.0, nodes=[0]) for at in (1, 2))
    )
    world.clock.run()
    assert [event[:2] for event in of(events, "offline", "online")] == [
        (1_000_000, "offline"),
        (4_000_000, "online"),
    ]


def test_a_crashed_node_neither_fails_nor_recovers(lab):
    faults = (
        fault("crash", 1.5, nodes=[0]),
        fault("crash_recover", 1.0, down_s=1, nodes=[0], every_s=9, times=2),
    )
    world, events = lab(nx.empty_graph(1), *faults)
    world.clock.run()
    assert [event[:2] for event in events] == [
        (1_000_000, "fail"),
        (1_000_000, "offline"),
        (1_500_000, "crash"),
    ]
    assert not world.nodes[0].online


# together with churn


def test_a_node_is_online_while_neither_churn_nor_a_fault_keeps_it_away(lab):
    world, events = lab(nx.empty_graph(1), fault("crash_recover", 1.0, down_s=3.0, nodes=[0]))
    node = world.nodes[0]
    for at_s, present in ((2, False), (3, True), (3.5, False), (5, True)):
        world.clock.after(int(at_s * 1e6), node.set_online, present)
    world.clock.run()
    assert [event[:2] for event in of(events, "offline", "online")] == [
        (1_000_000, "offline"),
        (5_000_000, "online"),
    ]


def test_blocks_are_counted(make):
    node = make(nx.empty_graph(1)).nodes[0]
    node.block()
    node.block()
    node.unblock()
    node.set_online(True)
    assert not node.online
    node.unblock()
    assert node.online


def test_flaky_nodes_are_down_for_their_share_of_the_time(lab):
    world, events = lab(
        nx.empty_graph(40), {"name": "flaky", "mtbf_s": 30, "mttr_s": 10, "fraction": 0.5}, seed=1
    )
    world.clock.run(until=2_000_000_000)
    victims = {event[2] for event in of(events, "fail")}
    assert len(victims) == 20
    down, since = 0, {}
    for time, kind, node, *_ in events:
        if kind == "fail":
            since[node] = time
        elif kind == "recover":
            down += time - since.pop(node)
    # Alternating renewals: 10 of 40 s are down; over 20 x 2,000 s (1,000 cycles) the share's deviation is below 0.01.
    assert down / (20 * 2e9) == pytest.approx(0.25, abs=0.03)


def test_flaky_with_churn_never_breaks_the_rule(lab):
    churn = {"name": "exponential", "online_s": 3.0, "offline_s": 2.0}
    flaky = {"name": "flaky", "mtbf_s": 2.0, "mttr_s": 1.0, "fraction": 1.0}
    world, events = lab(nx.empty_graph(3), flaky, churn=churn)
    failed = set()
    online = {node.id: node.online for node in world.nodes}
    world.clock.run(until=200_000_000)
    for _, kind, node, *_ in events:
        if kind in ("fail", "recover"):
            (failed.add if kind == "fail" else failed.discard)(node)
        else:
            assert online[node] != (kind == "online")
            online[node] = kind == "online"
            assert not (online[node] and node in failed)
    for node in world.nodes:
        assert node.online == (node.present and node.id not in failed)


# slow-downs


@pytest.mark.parametrize(
    ("start_us", "end_us"),
    [
        (0, 4_000 + 6_000 + 4_000),  # 4 ms at full speed, 2 of them in 6 ms, 4 at full speed
        (5_000, 10_000 + 25_000 // 3),  # only for the case that the job begins inside: see below
        (10_000, 20_000),  # begins when it is over
    ],
)
def test_a_job_is_stretched_while_it_is_slow(lab, start_us, end_us):
    if start_us == 5_000:
        end_us = 10_000 + 8_334  # 5 ms slow do 1,666 2/3 µs; 8,333 1/3 are left, rounded up
    world, events = lab(nx.empty_graph(2), fault("slow_down", 0.004, for_s=0.006, factor=3.0, nodes=[0]))
    world.clock.after(start_us, world.nodes[0].compute, 10)
    world.clock.after(start_us, world.nodes[1].compute, 10)
    world.clock.run()
    assert [event[0] for event in of(events, "done") if event[2] == 0] == [end_us]
    assert [event[0] for event in of(events, "done") if event[2] == 1] == [start_us + 10_000]
    assert (world.nodes[0].work, world.nodes[0].busy_us) == (10, end_us - start_us)
    assert of(events, "slow", "normal") == [
        (4_000, "slow", 0, -1, 3000, -1),
        (10_000, "normal", 0, -1, 1000, -1),
    ]


def test_a_queue_is_stretched_job_by_job(lab):
    world, events = lab(nx.empty_graph(1), fault("slow_down", 0.001, for_s=1.0, factor=2.5, nodes=[0]))
    for work in (2, 4):
        world.nodes[0].compute(work)
    world.clock.run()
    assert [event[0] for event in of(events, "done")] == [3_500, 13_500]


def test_slow_downs_multiply_and_leave_no_trace(lab):
    slow = (
        fault("slow_down", 0.0, for_s=0.006, factor=2, nodes=[0]),
        fault("slow_down", 0.002, for_s=0.006, factor=3, nodes=[0]),
    )
    world, events = lab(nx.empty_graph(1), *slow)
    world.nodes[0].compute(4)
    world.clock.run()
    # 2 ms at 1/2, 4 ms at 1/6, 2 ms at 1/3, and 4 - 1 - 2/3 - 2/3 = 5/3 ms at full speed.
    assert [event[0] for event in of(events, "done")] == [8_000 + 1_667]
    assert world.nodes[0].slowness == 1


def test_a_slow_job_that_is_interrupted_has_done_less(lab):
    world, events = lab(nx.empty_graph(1), fault("slow_down", 0.004, for_s=1.0, factor=3, nodes=[0]))
    node = world.nodes[0]
    node.compute(10)
    world.clock.after(7_000, node.set_online, False)
    world.clock.run()
    assert [event[4] for event in of(events, "aborted")] == [5]
    assert (node.work, node.wasted, node.busy_us) == (5, 5, 7_000)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    work=st.integers(1, 30),
    at_us=st.integers(0, 40_000),
    for_us=st.integers(1, 40_000),
    factor=st.sampled_from([1.0, 1.1, 1.5, 2.0, 7.3]),
)
def test_stretched_times_are_exact(lab, work, at_us, for_us, factor):
    slow = fault("slow_down", at_us / 1e6, for_s=for_us / 1e6, factor=factor, nodes=[0])
    world, events = lab(nx.empty_graph(1), slow)
    world.nodes[0].compute(work)
    world.clock.run()
    tenths = round(factor * 10)
    left = max(0, work * 1000 - at_us)  # at the normal pace, when it becomes slow
    if left * tenths <= for_us * 10:
        end = min(work * 1000, at_us) + -(-left * tenths // 10)
    else:
        end = at_us + for_us + -(-(left * tenths - for_us * 10) // tenths)
    assert [event[0] for event in of(events, "done")] == [end]


# partitions


def test_a_partition_stops_exactly_the_messages_that_cross_it(lab):
    world, events = lab(nx.complete_graph(4), fault("partition", 0.004, for_s=0.02, groups=[[0, 1], [2, 3]]))
    send(world, 0, 0, 1)
    send(world, 0, 0, 2)
    send(world, 0, 3, 2)
    send(world, 5_000, 1, 3)
    send(world, 5_000, 1, 0)
    send(world, 24_001, 2, 0)
    world.clock.run()
    assert of(events, "lost") == [(4_000, "lost", 0, 2, 500, 1), (5_000, "lost", 1, 3, 0, 1)]
    assert [event[:4] for event in of(events, "deliver")] == [
        (20_000, "deliver", 1, 0),
        (20_000, "deliver", 2, 3),
        (25_000, "deliver", 0, 1),
        (44_001, "deliver", 0, 2),
    ]
    assert of(events, "partition", "heal") == [
        (4_000, "partition", -1, -1, 2, -1),
        (24_000, "heal", -1, -1, 2, -1),
    ]
    assert world.totals() == {
        "bytes_up": 5_500,
        "bytes_down": 5_000,
        "bytes_lost": 500,
        "work": 0,
        "wasted": 0,
    }


def test_a_cut_of_the_graph_divides_it_into_what_still_hangs_together(lab):
    # two triangles and the links 2-3 and 0-5 between them
    graph = nx.Graph([(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (2, 3), (0, 5)])
    world, events = lab(graph, fault("partition", 0.001, for_s=1, cut=[[3, 2], [0, 5]]))
    for src in range(6):
        send(world, 2_000, src, 0)
        send(world, 2_000, src, 4)
    world.clock.run()
    assert {event[2:4] for event in of(events, "lost")} == {(0, 4), (1, 4), (2, 4), (3, 0), (4, 0), (5, 0)}
    assert len(of(events, "deliver")) == 6
    with pytest.raises(
        BadValue, match="must divide the topology; without these links it still hangs together"
    ):
        Partition(at_s=0, for_s=1, cut=[[2, 3]]).process(world, stream(0, "x"))


def test_a_message_takes_no_detour_over_an_overlay_when_its_link_is_down(lab):
    network = {**NETWORK, "overlay": True}
    world, events = lab(nx.cycle_graph(4), fault("link_down", 0, for_s=1, edge=[0, 1]), network=network)
    send(world, 1, 0, 1)
    send(world, 1, 0, 2)
    world.clock.run()
    assert [event[1:4] for event in of(events, "lost", "deliver")] == [("lost", 0, 1), ("deliver", 2, 0)]


def test_what_has_left_its_sender_dies_at_the_wall_too(lab):
    world, events = lab(nx.complete_graph(2), fault("partition", 0.015, for_s=0.001, groups=[[0], [1]]))
    send(world, 0, 0, 1)
    world.clock.run()
    assert of(events, "lost", "deliver") == [(15_000, "lost", 0, 1, SIZE, 1)]


def test_others_speed_up_when_a_partition_kills_a_transfer(lab):
    network = {"latency_ms": 0, "up_mbps": 1, "header_bytes": 0}
    world, events = lab(
        nx.complete_graph(3), fault("partition", 0.01, for_s=1, groups=[[0, 1], [2]]), network=network
    )
    send(world, 0, 0, 1)
    send(world, 0, 0, 2)
    world.clock.run()
    # Half the uplink each until 10 ms (5,000 of 10,000 bits sent), then all of it.
    assert of(events, "lost", "deliver") == [
        (10_000, "lost", 0, 2, 625, 1),
        (15_000, "deliver", 1, 0, SIZE, 1),
    ]


def test_whoever_is_in_no_group_belongs_to_the_first(lab):
    world, events = lab(
        nx.star_graph([4, 0, 1, 2, 3]), fault("partition", 0, for_s=1, groups=[[1], [2, 3]]), server=True
    )
    for client in range(4):
        send(world, 1, 4, client)
    world.clock.run()
    assert [event[2] for event in of(events, "deliver")] == [0, 1]
    assert [event[3] for event in of(events, "lost")] == [2, 3]


def test_a_random_share_is_cut_off_anew_each_time(lab):
    halves = fault("partition", 1.0, for_s=1.0, fraction=0.5, every_s=10.0, times=2)
    world, _ = lab(nx.complete_graph(8), halves)
    walls = []
    for at in (1_500_000, 11_500_000):
        world.clock.run(until=at)
        walls.append(dict(world.network.walls[0]))
    assert [sum(wall.values()) for wall in walls] == [4, 4]
    assert walls[0] != walls[1]
    world.clock.run()
    assert world.network.walls == []


# links


def test_a_broken_link_is_avoided_and_used_again_when_it_is_mended(lab):
    world, events = lab(nx.cycle_graph(4), fault("link_down", 0.004, for_s=0.1, edge=[1, 0]))
    send(world, 0, 0, 1)
    send(world, 0, 2, 3)
    send(world, 5_000, 0, 1)
    send(world, 104_001, 0, 1)
    world.clock.run()
    assert of(events, "lost") == [(4_000, "lost", 0, 1, 500, 1)]
    assert [event[:4] for event in of(events, "deliver")] == [
        (20_000, "deliver", 3, 2),
        (45_000, "deliver", 1, 0),
        (124_001, "deliver", 1, 0),
    ]
    assert of(events, "link_down", "link_up") == [
        (4_000, "link_down", 0, 1, 0, -1),
        (104_000, "link_up", 0, 1, 0, -1),
    ]


def test_without_another_way_messages_are_lost(lab):
    world, events = lab(
        nx.path_graph(3),
        fault("link_down", 0, for_s=1, edge=[1, 2]),
        fault("link_down", 0.5, for_s=1, edge=[1, 2]),
    )
    for at in (1, 1_200_000, 1_500_001):
        send(world, at, 0, 2)
    world.clock.run()
    assert [event[:2] for event in of(events, "lost", "deliver")] == [
        (1, "lost"),
        (1_200_000, "lost"),
        (1_530_001, "deliver"),
    ]


def test_links_are_drawn(lab):
    world, events = lab(
        nx.complete_graph(5), fault("link_down", 1.0, for_s=1.0, count=3, every_s=5.0, times=2)
    )
    world.clock.run()
    down = [event[2:4] for event in of(events, "link_down")]
    assert len(down) == 6
    assert len(set(down[:3])) == 3
    assert all(world.network.graph.has_edge(*edge) for edge in down)
    assert down == [event[2:4] for event in of(events, "link_up")]


# messages


def dropped(lab, p, count, noise=False):
    """Which of node 0's messages to node 1 are lost, while others send or not."""
    world, events = lab(nx.complete_graph(4), {"name": "message_loss", "probability": p}, seed=7)
    for index in range(count):
        send(world, index * 50_000 + 25_000, 0, 1, size=10, round=index)
        if noise:
            for at, src, dst in ((7, 2, 3), (25_000, 1, 0), (33_000, 3, 1)):
                send(world, index * 50_000 + at, src, dst, size=500, round=index)
    world.clock.run()
    assert len(of(events, "drop")) == len(of(events, "lost"))
    return [event[5] for event in of(events, "drop") if event[2] == 0]


def test_messages_are_lost_as_often_as_they_should(lab):
    # 2,000 messages with the probability 0.3: 600, standard deviation 20.5.
    assert abs(len(dropped(lab, 0.3, 2000)) - 600) < 4 * 20.5
    assert len(dropped(lab, 1.0, 20)) == 20
    assert dropped(lab, 0.0, 20) == []


def test_a_messages_fate_does_not_depend_on_other_traffic(lab):
    assert dropped(lab, 0.3, 100) == dropped(lab, 0.3, 100, noise=True)


def test_a_lost_message_costs_all_its_bytes(lab):
    loss = {"name": "message_loss", "probability": 1.0, "at_s": 0.001, "for_s": 0.1, "nodes": [1]}
    world, events = lab(nx.complete_graph(3), loss)
    for at, src, dst in ((0, 0, 1), (5_000, 1, 0), (5_000, 2, 1), (5_000, 0, 2), (101_001, 1, 2)):
        send(world, at, src, dst)
    world.clock.run()
    assert [event[2:4] for event in of(events, "deliver")] == [(1, 0), (2, 0), (2, 1)]
    assert of(events, "lost") == [(25_000, "lost", 1, 0, SIZE, 1), (25_000, "lost", 2, 1, SIZE, 1)]
    assert world.totals()["bytes_lost"] == 2 * SIZE


def test_a_delay_has_its_mean_and_lets_messages_overtake(lab):
    world, events = lab(nx.complete_graph(2), {"name": "message_delay", "seconds": 0.2})
    for index in range(1000):
        send(world, index * 1_000, 0, 1, size=1, round=index)
    world.clock.run()
    late = {event[5]: event[4] for event in of(events, "delay")}
    arrived = {event[5]: event[0] for event in of(events, "deliver")}
    assert arrived == {index: index * 1_000 + 8 + 10_000 + late[index] for index in range(1000)}
    # 1,000 exponential delays of 200 ms: the mean's standard deviation is 200 / sqrt(1,000) = 6.3 ms.
    assert sum(late.values()) / 1000 == pytest.approx(200_000, abs=4 * 6_400)
    assert list(arrived) != sorted(arrived)


def test_a_double_costs_twice_and_a_gather_takes_it_once(lab):
    world, events = lab(nx.complete_graph(3), {"name": "message_duplication", "probability": 1.0})
    ends = []
    gather = world.nodes[1].gather("model", 1, [0, 2])
    world.nodes[0].send(world.nodes[1], Message("model", "first", SIZE, 1), ends.append)
    send(world, 30_000, 2, 1)
    world.clock.run()
    # Original and copy share the link: 20 ms for both, and 10 ms of latency.
    assert [event[:4] for event in of(events, "deliver")] == [(30_000, "deliver", 1, 0)] * 2 + [
        (60_000, "deliver", 1, 2)
    ] * 2
    assert [message.payload for message in gather.value.values()] == ["first", None]
    assert len(of(events, "late")) == 2
    assert world.network.traffic[0].up == 2 * SIZE
    assert ends == [True]


def test_the_sender_hears_of_a_loss_only_when_all_copies_are_lost(lab):
    faults = (
        {"name": "message_duplication", "probability": 1.0},
        {"name": "message_loss", "probability": 0.5},
    )
    world, events = lab(nx.complete_graph(2), *faults)
    told = Counter()
    for index in range(200):
        message = Message("model", None, 10, index)
        tell = lambda ok, index=index: told.update([(index, ok)])  # noqa: E731
        world.clock.after(index * 100_000, world.nodes[0].send, world.nodes[1], message, tell)
    world.clock.run()
    lost = Counter(event[5] for event in of(events, "lost"))
    assert told == Counter((index, lost[index] < 2) for index in range(200))
    assert 20 < sum(count == 2 for count in lost.values()) < 80  # 50 expected, standard deviation 6.1
    assert len(of(events, "send")) == 400


# mistakes


WHO = (
    "crash",
    "crash_recover",
    "flaky",
    "slow_down",
    "corrupt",
    "message_loss",
    "message_delay",
    "message_duplication",
)
NEEDS = {
    "crash": {"at_s": 1},
    "crash_recover": {"at_s": 1, "down_s": 1},
    "flaky": {"mtbf_s": 1, "mttr_s": 1},
    "slow_down": {"at_s": 1, "for_s": 1, "factor": 2},
    "corrupt": {"kind": "nan"},
    "message_loss": {"probability": 0.1},
    "message_delay": {"seconds": 0.1},
    "message_duplication": {"probability": 0.1},
    "partition": {"at_s": 1, "for_s": 1},
    "link_down": {"at_s": 1, "for_s": 1},
    "server_crash": {"at_s": 1, "down_s": 1},
}


def refusal(describe, name, **params):
    experiment = describe(4, faults=[{"name": name, **NEEDS[name], **params}])
    world = worlds.build(experiment, nx.complete_graph(4), False)
    with pytest.raises(ConfigError) as caught:
        worlds.start(world, experiment)
    assert world.clock.now == 0
    return str(caught.value).removeprefix("faults.0.")


@pytest.mark.parametrize("name", WHO)
def test_a_fault_that_names_an_unknown_node_gets_one_line(describe, name):
    assert refusal(describe, name, nodes=[1, 7]) == "nodes: [1, 7]: no such node: 7; nodes are 0 to 3"
    assert refusal(describe, name, nodes=[]) == "nodes: []: must name at least one node"
    assert refusal(describe, name, count=5) == "count: 5: at most 4, the number of clients or peers"
    assert (
        refusal(describe, name, count=1, nodes=[0]) == "nodes: give exactly one of nodes, count and fraction"
    )


@pytest.mark.parametrize(
    ("name", "params", "line"),
    [
        ("partition", {}, "groups: give exactly one of groups, cut and fraction"),
        ("partition", {"cut": [[0, 9]]}, "cut.0: [0, 9]: no such node: 9; nodes are 0 to 3"),
        ("partition", {"cut": [[0]]}, "cut.0: [0]: must be the two nodes of a link of the topology"),
        ("partition", {"groups": [[0, 1]]}, "groups: [[0, 1]]: must be at least 2 groups, not 1"),
        ("partition", {"groups": [[0], []]}, "groups.1: []: must name at least one node"),
        ("partition", {"groups": [[0], [9]]}, "groups.1: [9]: no such node: 9; nodes are 0 to 3"),
        ("partition", {"groups": [[0, 1], [2, 1]]}, "groups.1: [2, 1]: node 1 is in another group, too"),
        (
            "partition",
            {"fraction": 0.1},
            "fraction: 0.1: must be at least 0.125 to hit one of 4 clients or peers, or 0",
        ),
        (
            "crash",
            {"fraction": 0.1},
            "fraction: 0.1: must be at least 0.125 to hit one of 4 clients or peers, or 0",
        ),
        ("partition", {"fraction": 1.0}, "fraction: 1.0: cuts 4 of 4 nodes off, which divides nobody"),
        ("partition", {"fraction": 0.5, "times": 2}, "every_s: is required, because times is 2"),
        ("link_down", {}, "edge: give exactly one of edge and count"),
        ("link_down", {"edge": [0, 4]}, "edge: [0, 4]: no such node: 4; nodes are 0 to 3"),
        ("link_down", {"edge": [0, 0]}, "edge: [0, 0]: must be the two nodes of a link of the topology"),
        (
            "link_down",
            {"edge": [0, 1, 2]},
            "edge: [0, 1, 2]: must be the two nodes of a link of the topology",
        ),
        ("link_down", {"count": 7}, "count: 7: must be at most 6, the number of links"),
        ("server_crash", {}, "name: server_crash: needs a server, and this strategy has only peers"),
        (
            "corrupt",
            {"kind": "scale", "count": 1},
            "scale: is required for the kind scale, and must not be 1",
        ),
        ("corrupt", {"count": 1, "scale": 2.0}, "scale: 2.0: means nothing for the kind nan; leave it out"),
        ("corrupt", {"count": 1, "times": 2, "every_s": 1}, "for_s: is required, because times is 2"),
        ("slow_down", {"count": 1, "factor": 1e7}, "factor: 10000000.0: must be at most 1e+06"),
        ("slow_down", {"count": 1, "for_s": 2e11}, "for_s: 200000000000.0: must be at most 1e+11 s"),
        ("message_delay", {"seconds": 1e12}, "seconds: 1000000000000.0: must be at most 1e+11 s"),
    ],
)
def test_bad_faults_are_refused_with_one_line(describe, name, params, line):
    assert refusal(describe, name, **params) == line


@pytest.mark.parametrize(
    ("key", "name", "part"),
    [("factor", "slow_down", SlowDown), ("for_s", "slow_down", SlowDown), ("scale", "corrupt", Corrupt)],
)
def test_infinity_is_refused(make, key, name, part):
    world, params = make(nx.empty_graph(2)), {**NEEDS[name], "count": 1, key: float("inf")}
    with pytest.raises(BadValue, match=f"{key}: inf: must be finite"):
        part(**params).process(world, stream(0, "faults"))


def test_only_what_clients_send_can_be_corrupted(lab):
    with pytest.raises(ConfigError) as caught:
        lab(nx.star_graph(3), fault("corrupt", kind="nan", nodes=[0, 3]), server=True)
    assert "nodes: [0, 3]: names the server" in str(caught.value)
    world, _ = lab(nx.star_graph(3), fault("corrupt", kind="nan", count=3), server=True)
    assert [len(node.corruptions) for node in world.nodes] == [1, 1, 1, 0]


def test_a_slow_down_by_nothing_is_still_written_down_as_one(lab):
    world, events = lab(nx.empty_graph(2), fault("slow_down", 0.5, for_s=1, factor=1, nodes=[1]))
    world.clock.run()
    assert events == [(500_000, "slow", 1, -1, 1000, -1), (1_500_000, "normal", 1, -1, 1000, -1)]


def test_every_fault_is_installed():
    assert set(parts.names("faults")) >= set(NEEDS)


def test_new_kinds_of_events_come_after_the_old_ones():
    assert KINDS[:11] == (
        "send", "deliver", "lost", "late", "compute", "done", "aborted", "online", "offline", "crash", "round",
    )  # fmt: skip
    assert set(FAULTS) < set(KINDS)


# all together


def a_fault(draw, size):
    who = draw(st.sampled_from([{"count": 1}, {"fraction": 0.5}, {"nodes": [0, 1]}]))
    at_s, span = draw(st.floats(0.0, 0.3)), draw(st.floats(0.001, 0.3))
    window = {"at_s": at_s, "for_s": span}
    name = draw(st.sampled_from(sorted(NEEDS)))
    return {
        "name": name,
        **{
            "crash": {"at_s": at_s, **who},
            "crash_recover": {"at_s": at_s, "down_s": span, "every_s": 0.2, "times": 2, **who},
            "flaky": {"mtbf_s": 0.1, "mttr_s": 0.05, **who},
            "slow_down": {"factor": 2.0, **window, **who},
            "corrupt": {"kind": "zeros", **window, **who},
            "message_loss": {"probability": 0.3, **window},
            "message_delay": {"seconds": 0.02, **window, **who},
            "message_duplication": {"probability": 0.5, **window},
            "partition": {"fraction": 0.5, **window},
            "link_down": {"count": 2, **window},
            "server_crash": {"at_s": at_s, "down_s": span},
        }[name],
    }


@st.composite
def busy_world(draw):
    size = draw(st.integers(4, 7))
    faults = [a_fault(draw, size) for _ in range(draw(st.integers(1, 4)))]
    sharing = draw(st.sampled_from(["max-min", "greedy", "none"]))
    network = {
        "latency_ms": 5,
        "edge_mbps": 1,
        "up_mbps": 1,
        "down_mbps": 2,
        "sharing": sharing,
        "header_bytes": 20,
    }
    node = st.integers(0, size - 1)
    traffic = st.tuples(st.integers(0, 500_000), node, node, st.integers(0, 5_000))
    return size, faults, network, draw(st.lists(traffic, min_size=1, max_size=25)), draw(st.integers(0, 99))


def play(lab, size, faults, network, traffic, seed):
    world, events = lab(nx.cycle_graph(size), *faults, network=network, seed=seed, server=True)
    for at, src, dst, bytes_ in traffic:
        send(world, at, src, dst, bytes_)
        world.clock.after(at, world.nodes[src].compute, 20)
    world.clock.run(until=3_000_000)
    return world, events


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(busy_world())
def test_under_every_fault_bytes_are_conserved_and_runs_repeat(lab, given):
    world, events = play(lab, *given)
    totals = world.totals()
    assert totals["bytes_up"] == totals["bytes_down"] + totals["bytes_lost"]
    assert totals["bytes_down"] == sum(event[4] for event in of(events, "deliver"))
    assert totals["bytes_lost"] == sum(event[4] for event in of(events, "lost"))
    assert len(of(events, "send")) == len(of(events, "deliver", "lost"))
    assert not any(node.transfers for node in world.nodes)
    assert totals["work"] == sum(event[4] for event in of(events, "done", "aborted"))
    assert all(world.nodes[id].busy_us >= 0 for id in range(given[0]))
    assert play(lab, *given)[0].log.hexdigest() == world.log.hexdigest()


def test_another_seed_gives_other_faults(lab):
    loss = [{"name": "message_loss", "probability": 0.5}]
    traffic = [(at * 1000, 0, 1, 100) for at in range(30)]
    network = {"latency_ms": 1, "header_bytes": 0}
    hashes = [play(lab, 4, loss, network, traffic, seed)[0].log.hexdigest() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
