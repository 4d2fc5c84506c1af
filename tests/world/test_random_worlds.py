"""What holds in every world, tried in more than 500 random ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from worlds import PEERS, Witness, check_books, event_hash, experiments, play, settle, write_files

from fedsim import parts
from fedsim.world.net.network import Message


def worlds(count: int) -> settings:
    """Try so many worlds, the same ones every time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=slow)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    write_files(folder)
    return folder


@pytest.mark.slow
@worlds(300)
@given(st.data())
def test_whatever_fails_no_limit_is_exceeded_and_every_byte_is_counted(folder, data):
    world, seen = play(data.draw(experiments(folder)), witness=True)
    assert not world.network.walls or seen.kinds["partition"] > seen.kinds["heal"]
    check_books(world, seen.events)


@worlds(100)
@given(st.data())
def test_when_nothing_fails_all_flows_end_and_all_rounds_are_done(folder, data):
    experiment = data.draw(experiments(folder, calm=True))
    world, seen = play(experiment, witness=True)
    settle(world)
    check_books(world, seen.events)
    assert seen.kinds["round"] == experiment["stop"]["rounds"]
    assert seen.kinds["send"] == seen.kinds["deliver"] > 0
    assert seen.kinds["compute"] == seen.kinds["done"] > 0
    assert not seen.kinds.keys() - {"send", "deliver", "compute", "done", "round"}


@pytest.mark.slow
@worlds(100)
@given(st.data())
def test_the_same_seed_gives_the_same_events(folder, data):
    experiment = data.draw(experiments(folder))
    assert event_hash(experiment) == event_hash(experiment)


@worlds(50)
@given(st.data())
def test_the_order_in_which_a_topology_lists_its_nodes_and_links_does_not_matter(folder, data):
    experiment = data.draw(experiments(folder))
    topology = experiment["topology"]
    links = data.draw(st.permutations([link[1::-1] + link[2:] for link in topology["links"]]))
    other = {**topology, "nodes": data.draw(st.permutations(topology["nodes"])), "links": links}
    assert event_hash(experiment) == event_hash({**experiment, "topology": other})


ENGINES = ("sequential", "stacked")


@worlds(25)
@given(st.data())
def test_training_with_either_engine_or_none_gives_the_same_events(folder, data):
    experiment = data.draw(experiments(folder))
    hashes = {event_hash({**experiment, "compute": {"engine": name}}, dry=False) for name in ENGINES}
    assert hashes == {event_hash(experiment)}


def test_random_worlds_are_as_varied_as_the_parts(folder):
    """Every churn and every fault is drawn, and what they cause happens."""
    drawn: dict[str, set[str]] = {"churn": set(), "faults": set(), "kinds": set()}

    @worlds(200)
    @given(experiments(folder))
    def draw(experiment: dict[str, Any]) -> None:
        churn = experiment["churn"]
        drawn["churn"].add(churn if isinstance(churn, str) else churn["name"])
        drawn["faults"] |= {fault["name"] for fault in experiment["faults"]}
        drawn["kinds"] |= {experiment["network"]["sharing"], experiment["strategy"]["name"]}

    draw()
    assert drawn["churn"] == set(parts.names("churn"))
    assert drawn["faults"] == set(parts.names("faults"))
    assert drawn["kinds"] == {"max-min", "greedy", "none", "fedavg", "fedamd", PEERS}


@pytest.mark.parametrize("sharing", ["max-min", "greedy", "none"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_witness_sees_a_rate_that_is_wrong(make, sharing, factor):
    world = make(nx.path_graph(2), network={"edge_mbps": 8, "sharing": sharing})
    Witness(world, sharing)
    transfer = world.network.send(*world.nodes, Message("model", None, 936))
    world.clock.after(500, lambda: setattr(transfer, "rate", transfer.rate * factor))
    with pytest.raises(AssertionError):
        world.clock.run()


# faults and churn, against their definitions

MESSAGES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 60)), min_size=1, max_size=30
)


@worlds(50)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6).filter(lambda groups: {0, 1} <= set(groups)),
    MESSAGES,
    st.tuples(st.integers(0, 40), st.integers(1, 40)),
    st.booleans(),
)
def test_a_partition_stops_exactly_the_messages_that_cross_it(make, seed, groups, messages, when, overlay):
    """Times and latencies are whole milliseconds, and the wall comes and goes between two of them."""
    graph = nx.random_labeled_tree(6, seed=seed)
    for a, b in graph.edges:
        graph.edges[a, b]["latency_ms"] = 1 + (3 * a + 7 * b) % 11
    named = [[node for node in range(6) if groups[node] == number] for number in sorted(set(groups))]
    begin_ms, length_ms = when
    fault = {"name": "partition", "at_s": (begin_ms + 0.5) / 1000, "for_s": length_ms / 1000, "groups": named}
    network = {"overlay": overlay, "latency_ms": 6}
    world = make(graph, start=True, network=network, faults=[fault])
    found, wanted = {}, {}
    for index, (src, dst, at_ms) in enumerate(messages):
        arrives_ms = at_ms + world.network.route(src, dst).latency_us / 1000
        meets_wall = at_ms < begin_ms + 0.5 + length_ms and arrives_ms > begin_ms + 0.5
        wanted[index] = not (meets_wall and groups[src] != groups[dst])
        call = (world.nodes[src].send, world.nodes[dst], Message("model", None, 100))
        world.clock.after(at_ms * 1000, *call, lambda ok, index=index: found.update({index: ok}))
    world.clock.run()
    assert found == wanted


def online_at(world, moments_s):
    """Return how many nodes are online at each time."""
    counts = []
    for moment_s in moments_s:
        world.clock.run(until=round(moment_s * 1_000_000) + 1)
        counts.append(sum(node.online for node in world.nodes))
    return counts


def within_bounds(counts, size, shares):
    """Nodes are independent, so the count is binomial; so far from its mean it is once in a hundred million."""
    for count, share in zip(counts, shares, strict=True):
        low, high = binom.interval(1 - 1e-8, size, min(max(share, 0.0), 1.0))
        assert low <= count <= high, f"{count} of {size} are online, should be {share:.3f}"


SECONDS = st.floats(0.2, 50.0)
MOMENTS_S = (0.0, 0.3, 2.0, 11.0, 60.0)


@worlds(25)
@given(st.integers(0, 10**6), SECONDS, SECONDS, st.one_of(st.none(), st.floats(0.0, 1.0)))
def test_the_uptime_of_exponential_churn(make, seed, online_s, offline_s, start):
    """A two-state Markov process forgets its first state at the rate of both departures together."""
    churn = {"name": "exponential", "online_s": online_s, "offline_s": offline_s, "start_online": start}
    counts = online_at(make(nx.empty_graph(150), start=True, seed=seed, churn=churn), MOMENTS_S)
    share, rate = online_s / (online_s + offline_s), 1 / online_s + 1 / offline_s
    first = share if start is None else start
    within_bounds(counts, 150, [share + (first - share) * math.exp(-rate * t) for t in MOMENTS_S])


@worlds(25)
@given(st.integers(0, 10**6), SECONDS, SECONDS, st.floats(0.4, 5.0))
def test_the_uptime_of_weibull_churn(make, seed, online_s, offline_s, shape):
    """The first stay is the rest of one that had begun, so the share is the same at all times."""
    churn = {"name": "weibull", "online_s": online_s, "offline_s": offline_s, "shape": shape}
    counts = online_at(make(nx.empty_graph(150), start=True, seed=seed, churn=churn), MOMENTS_S)
    within_bounds(counts, 150, [online_s / (online_s + offline_s)] * len(MOMENTS_S))


@worlds(25)
@given(st.integers(0, 10**6), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 30))
def test_the_uptime_of_diurnal_churn(make, seed, one, other, zones):
    low, high = sorted((one, other))
    churn = {"name": "diurnal", "low": low, "high": high, "period_s": 48.0, "step_s": 1.0, "zones": zones}
    moments_s = range(0, 60, 4)
    counts = online_at(make(nx.empty_graph(150), start=True, seed=seed, churn=churn), moments_s)
    waves = [(math.sin(math.pi * t / 24) + 1) / 2 for t in moments_s]
    within_bounds(counts, 150, [low + (high - low) * wave for wave in waves])


@worlds(25)
@given(st.integers(0, 10**6), SECONDS, SECONDS)
def test_the_uptime_of_flaky_nodes(make, seed, mtbf_s, mttr_s):
    """They begin online, and half of them are not flaky."""
    fault = {"name": "flaky", "mtbf_s": mtbf_s, "mttr_s": mttr_s, "fraction": 0.5}
    world = make(nx.empty_graph(300), start=True, seed=seed, faults=[fault])
    counts = [count - 150 for count in online_at(world, MOMENTS_S)]
    share, rate = mtbf_s / (mtbf_s + mttr_s), 1 / mtbf_s + 1 / mttr_s
    within_bounds(counts, 150, [share + (1 - share) * math.exp(-rate * t) for t in MOMENTS_S])


# arithmetic


@worlds(50)
@given(st.integers(1, 9), st.integers(0, 5000), st.integers(1, 40), st.integers(0, 90), st.booleans())
def test_k_equal_flows_into_one_link_take_k_times_as_long(make, k, size, mbps, latency_ms, into_node):
    """k leaves send over node 0 to the last node, whose access or whose link is the bottleneck."""
    graph = nx.star_graph(k + 1)
    limit = {"down_mbps": mbps} if into_node else {}
    if not into_node:
        graph.edges[0, k + 1]["mbps"] = mbps
    network = {"latency_ms": latency_ms, "header_bytes": 10, "up_mbps": 50, **limit}
    world, ends = make(graph, network=network), []
    for node in world.nodes[1 : k + 1]:
        node.send(world.nodes[-1], Message("model", None, size), lambda ok: ends.append(world.clock.now))
    world.clock.run()
    bits = (size + 10) * 8
    assert ends == [2000 * latency_ms + -(-k * bits // mbps)] * k


@worlds(50)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 90)), min_size=2, max_size=6),
    st.integers(0, 5000),
    st.integers(0, 9),
    st.sampled_from(["max-min", "greedy", "none"]),
)
def test_a_path_takes_the_sum_of_its_latencies_and_the_time_of_its_narrowest_link(
    make, hops, size, access_ms, sharing
):
    graph = nx.path_graph(len(hops) + 1)
    for at, (latency_ms, mbps) in enumerate(hops):
        graph.edges[at, at + 1].update(latency_ms=latency_ms, mbps=mbps)
    network = {"node_latency_ms": access_ms, "header_bytes": 0, "sharing": sharing, "up_mbps": 60}
    world, ends = make(graph, network=network), []
    message = Message("model", None, size)
    world.nodes[0].send(world.nodes[-1], message, lambda ok: ends.append(world.clock.now))
    world.clock.run()
    narrowest = min(60, *(mbps for _, mbps in hops))
    latency_ms = sum(latency for latency, _ in hops) + 2 * access_ms
    assert ends == [1000 * latency_ms + -(-8 * size // narrowest)]
    assert set(world.network.links.values()) == {size}
