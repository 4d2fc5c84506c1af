from __future__ import annotations

from collections import Counter

import networkx as nx
import pytest

from fedsim import rng
from fedsim.errors import BadValue, ConfigError
from fedsim.world import world as worlds
from fedsim.world.faults.nodes import Crash
from fedsim.world.faults.schedule import Who


def crashes(make, watch, faults, server=False, nodes=6, **blocks):
    world = make(nx.empty_graph(nodes), server=server, start=True, faults=faults, **blocks)
    events = watch(world)
    world.clock.run()
    assert [node.id for node in world.nodes if node.crashed] == sorted(
        {event[2] for event in events if event[1] == "crash"}
    )
    return [(time, node) for time, kind, node, *_ in events if kind == "crash"]


def victims(world, seed=0, **chosen):
    return [node.id for node in Who(**chosen).choose(world, rng.stream(seed, "faults"))]


def test_named_nodes_crash_at_their_time_in_the_order_of_ids(make, watch):
    fault = {"name": "crash", "at_s": 2.5, "nodes": [4, 1, 4]}
    assert crashes(make, watch, [fault]) == [(2_500_000, 1), (2_500_000, 4)]


def test_the_server_can_be_named_but_is_never_drawn(make, watch):
    named = {"name": "crash", "at_s": 1, "nodes": [5]}
    assert crashes(make, watch, [named], server=True) == [(1_000_000, 5)]
    drawn = {"name": "crash", "at_s": 1, "count": 5}
    assert crashes(make, watch, [drawn], server=True) == [(1_000_000, node) for node in range(5)]


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.0, 0), (0.1, 1), (0.25, 2), (0.5, 5), (0.54, 5), (0.56, 6), (1.0, 10), (1, 10)]
)
def test_a_fraction_of_the_members_to_the_nearest_whole_number(make, watch, fraction, count):
    fault = {"name": "crash", "at_s": 1, "fraction": fraction}
    hit = crashes(make, watch, [fault], nodes=10)
    assert len(hit) == len(set(hit)) == count
    assert hit == sorted(hit)


def test_a_crash_at_the_very_start_has_happened_when_the_run_begins(make):
    world = make(nx.empty_graph(3), start=True, faults=[{"name": "crash", "at_s": 0, "nodes": [1]}])
    assert [node.crashed for node in world.nodes] == [False, True, False]
    assert world.clock.now == 0


def test_faults_follow_the_seed_and_their_place_in_the_list(make, watch):
    fault = {"name": "crash", "at_s": 1, "count": 3}
    draws = [crashes(make, watch, [fault], nodes=30, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    second = {"name": "crash", "at_s": 2, "count": 15}
    both = crashes(make, watch, [{**second, "at_s": 1}, second], nodes=30, seed=0)
    # Two equal faults choose independently: the second one finds nodes that the first has left.
    assert {at for at, _ in both} == {1_000_000, 2_000_000}
    assert crashes(make, watch, [fault, second], nodes=30, seed=0)[:3] == draws[0]


def test_a_node_crashes_only_once(make, watch):
    faults = [{"name": "crash", "at_s": at, "nodes": [2, 3]} for at in (2, 1, 3)]
    assert crashes(make, watch, faults) == [(1_000_000, 2), (1_000_000, 3)]


def test_everybody_is_equally_likely_to_be_drawn(make):
    world = make(nx.empty_graph(10))
    hits = Counter(id for seed in range(500) for id in victims(world, seed, count=3))
    # 500 draws with the probability 0.3 each: 150, standard deviation 10.2.
    assert set(hits) == set(range(10))
    assert all(abs(count - 150) < 4 * 10.3 for count in hits.values())


def test_the_number_that_crashes_is_bounded_by_the_members(make):
    world = make(nx.empty_graph(5), server=True)
    assert victims(world, count=4) == [0, 1, 2, 3]
    with pytest.raises(BadValue) as caught:
        victims(world, count=5)
    assert str(caught.value) == "count: 5: at most 4, the number of clients or peers"


@pytest.mark.parametrize("unknown", [5, 99, -1])
def test_unknown_nodes_are_refused(make, unknown):
    with pytest.raises(BadValue) as caught:
        victims(make(nx.empty_graph(5)), nodes=[0, unknown])
    rule = f"no such node: {unknown}"
    assert caught.value.args == ("nodes", [0, unknown], rule, "nodes are 0 to 4")


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"nodes": [0], "count": 1},
        {"nodes": [0], "fraction": 0.5},
        {"count": 1, "fraction": 0.5},
        {"nodes": [], "count": 1, "fraction": 0.0},
    ],
)
def test_exactly_one_choice_must_be_made(make, chosen):
    world = make(nx.empty_graph(5))
    with pytest.raises(BadValue, match="exactly one of nodes, count and fraction"):
        Crash(at_s=1.0, **chosen).process(world, rng.stream(0, "faults"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"at_s": -1.0, "count": 1}, "faults.1.at_s: -1.0: must be at least 0"),
        ({"count": 1}, "faults.1.at_s: is required"),
        ({"at_s": 1, "count": 0}, "faults.1.count: 0: must be at least 1"),
        ({"at_s": 1, "fraction": 1.5}, "faults.1.fraction: 1.5: must be at most 1"),
        ({"at_s": 1, "count": 9}, "faults.1.count: 9: at most 4, the number of clients or peers"),
        ({"at_s": 1, "nodes": [4]}, "faults.1.nodes: [4]: no such node: 4; nodes are 0 to 3"),
        ({"at_s": 1}, "faults.1.nodes: give exactly one of nodes, count and fraction"),
        ({"at_s": 1, "cuont": 2}, "faults.1.cuont: unknown key; did you mean count?"),
    ],
)
def test_bad_faults_are_refused_before_the_start_with_their_place(describe, fault, message):
    good = {"name": "crash", "at_s": 1, "count": 1}
    experiment = describe(4, faults=[good, {"name": "crash", **fault}])
    world = worlds.build(experiment, nx.empty_graph(4), False)
    with pytest.raises(ConfigError) as caught:
        worlds.start(world, experiment)
    assert str(caught.value) == message
    assert (world.clock.now, [node.crashed for node in world.nodes]) == (0, [False] * 4)


def test_a_crash_and_churn_together(make, watch):
    churn = {"name": "exponential", "online_s": 1.0, "offline_s": 1.0}
    world = make(
        nx.empty_graph(5), start=True, churn=churn, faults=[{"name": "crash", "at_s": 10, "fraction": 1.0}]
    )
    events = watch(world)
    world.clock.run()  # ends, because all processes end
    after = [kind for time, kind, *_ in events if time > 10_000_000]
    assert after == []
    assert sum(event[1] == "crash" for event in events) == 5
