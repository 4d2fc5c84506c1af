from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest

from fedsim import parts, rng
from fedsim.errors import BadValue, ConfigError
from fedsim.world import world as worlds
from fedsim.world.churn import always, exponential
from fedsim.world.clock import micros

HALF_MINUTES = {"name": "exponential", "online_s": 30.0, "offline_s": 10.0}


def schedule(events):
    """The moments at which each node came or went, after the start."""
    moments = {}
    for time, kind, node, *_ in events:
        if kind in ("online", "offline"):
            moments.setdefault(node, []).append((time, kind))
    return moments


def run(make, watch, nodes, seconds, server=False, **blocks):
    world = make(nx.empty_graph(nodes), server=server, start=True, **{"churn": HALF_MINUTES, **blocks})
    start, events = [node.online for node in world.nodes], watch(world)
    world.clock.run(until=micros(seconds))
    return start, schedule(events)


def test_always_online_needs_no_time_and_no_event(make, watch):
    world = make(nx.empty_graph(5), start=True)
    events = watch(world)
    assert all(node.online for node in world.nodes)
    world.clock.run()
    assert (world.clock.now, events) == (0, [])
    assert list(always(world.nodes[0])) == []


def test_the_long_run_uptime_is_that_of_the_means(make, watch):
    # 20 nodes for 20,000 s. A two-state process with means 30 s and 10 s is online 3/4 of the time and forgets its
    # state in 1 / (1/30 + 1/10) = 7.5 s, so the share has the variance 2 x 7.5 x (3/4 x 1/4) / (20 x 20,000).
    seconds, nodes = 20_000, 20
    start, moments = run(make, watch, nodes, seconds, seed=11)
    total = 0
    for node in range(nodes):
        since, online = 0, start[node]
        for time, kind in moments[node]:
            assert (kind == "online") is not online
            total += (time - since) * online
            since, online = time, not online
        total += (micros(seconds) - since) * online
    share = total / micros(seconds * nodes)
    assert abs(share - 0.75) < 4 * (2 * 7.5 * 0.1875 / (nodes * seconds)) ** 0.5


def test_sessions_and_absences_have_their_own_means(make, watch):
    _, moments = run(make, watch, 20, 20_000, seed=12)
    lengths = {"online": [], "offline": []}
    for own in moments.values():
        for (begin, kind), (end, _) in pairwise(own):
            lengths[kind].append((end - begin) / 1e6)
    for kind, mean in (("online", 30), ("offline", 10)):
        count = len(lengths[kind])
        assert 9000 < count < 11_000  # 20 x 20,000 / 40 = 10,000 cycles
        assert abs(sum(lengths[kind]) / count - mean) < 4 * mean / count**0.5
        # Exponential: a share of exp(-1) = 0.3679 is longer than the mean.
        longer = sum(length > mean for length in lengths[kind]) / count
        assert abs(longer - 0.3679) < 4 * (0.3679 * 0.6321 / count) ** 0.5


@pytest.mark.parametrize(
    ("start_online", "low", "high"),
    [(None, 265, 335), (0.0, 0, 0), (1.0, 400, 400), (0.5, 160, 240)],  # 400 p, give or take 4 deviations
)
def test_the_share_that_is_online_at_the_start(make, start_online, low, high):
    churn = {**HALF_MINUTES, "start_online": start_online}
    world = make(nx.empty_graph(400), start=True, seed=13, churn=churn)
    assert world.clock.now == 0
    assert low <= sum(node.online for node in world.nodes) <= high


def test_who_is_offline_at_the_start_is_in_the_log(make, describe, watch):
    experiment = describe(6, churn={**HALF_MINUTES, "start_online": 0.0})
    world = worlds.build(experiment, nx.empty_graph(6), False)
    events = watch(world)
    worlds.start(world, experiment)
    assert events == [(0, "offline", node, -1, 0, -1) for node in range(6)]


def test_one_more_node_does_not_change_the_others_schedule(make, watch):
    start, moments = run(make, watch, 4, 500, seed=5)
    more_start, more = run(make, watch, 7, 500, seed=5)
    assert more_start[:4] == start
    assert {node: more[node] for node in range(4)} == moments


def test_a_server_never_leaves_and_changes_nobodys_schedule(make, watch):
    start, moments = run(make, watch, 4, 500, seed=5)
    with_server, others = run(make, watch, 5, 500, server=True, seed=5)
    assert others == moments
    assert with_server == [*start, True]


def test_the_schedule_follows_the_seed(make, watch):
    assert run(make, watch, 4, 500, seed=5) == run(make, watch, 4, 500, seed=5)
    assert run(make, watch, 4, 500, seed=5) != run(make, watch, 4, 500, seed=6)
    moments = run(make, watch, 4, 500, seed=5)[1]
    assert len({tuple(own) for own in moments.values()}) == 4


def test_the_schedule_is_drawn_from_the_nodes_own_stream(make, watch):
    _, moments = run(make, watch, 3, 200, seed=8, churn={**HALF_MINUTES, "start_online": 1.0})
    draws = rng.stream(8, "churn", 2)
    draws.random()
    time, expected = 0, []
    for _, kind in moments[2]:
        time += micros(draws.exponential(10.0 if kind == "online" else 30.0))
        expected.append((time, kind))
    assert moments[2] == expected
    assert expected[0][1] == "offline"


def test_a_crashed_node_does_not_come_back_and_its_process_ends(make):
    world = make(nx.empty_graph(1))
    node = world.nodes[0]
    process = world.clock.process(exponential(node, rng.stream(0, "churn", 0), online_s=30, offline_s=10))
    world.clock.run(until=micros(100))
    assert process.is_alive
    node.crash()
    world.clock.run()  # it would never end if the process went on
    assert not process.is_alive
    assert not node.online


@pytest.mark.parametrize("key", ["online_s", "offline_s"])
@pytest.mark.parametrize("value", [0, 0.0, -1.5])
def test_means_must_be_positive(make, key, value):
    given = {"online_s": 30, "offline_s": 10, key: value}
    world = make(nx.empty_graph(1))
    supplied = {"node": world.nodes[0], "rng": rng.stream(0, "churn", 0)}
    with pytest.raises(BadValue) as caught:
        parts.call(exponential, given, supplied)
    assert (caught.value.key, caught.value.value) == (key, value)
    assert "greater than 0" in caught.value.rule


@pytest.mark.parametrize(
    ("churn", "message"),
    [
        (
            {"name": "exponential", "online_s": 0, "offline_s": 5},
            "churn.online_s: 0: must be greater than 0",
        ),
        ({"name": "exponential", "online_s": 5}, "churn.offline_s: is required"),
        ({**HALF_MINUTES, "start_online": 1.5}, "churn.start_online: 1.5: must be at most 1"),
        ({**HALF_MINUTES, "ofline_s": 5}, "churn.ofline_s: unknown key; did you mean offline_s?"),
        ({"name": "always", "online_s": 5}, "churn.online_s: unknown key"),
        ("exponentail", "churn: exponentail: no such churn; did you mean exponential?"),
    ],
)
def test_bad_parameters_are_refused_before_the_start(make, describe, churn, message):
    experiment = describe(3, churn=churn)
    world = worlds.build(experiment, nx.empty_graph(3), False)
    with pytest.raises(ConfigError) as caught:
        worlds.start(world, experiment)
    assert str(caught.value) == message
    assert world.clock.now == 0


def test_sessions_shorter_than_a_microsecond_do_not_stop_time(make):
    churn = {"name": "exponential", "online_s": 1e-6, "offline_s": 1e-6}
    world = make(nx.empty_graph(1), start=True, churn=churn)
    world.clock.run(until=100)
    assert world.clock.now == 100
