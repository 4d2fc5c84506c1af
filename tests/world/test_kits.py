"""What nodes have besides their speed, and what a trace says of their bandwidths."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import ConfigError
from fedsim.spec.experiment import Devices, load
from fedsim.world.devices import EXTRAS, Kit, kits
from fedsim.world.net.network import Message
from fedsim.world.traces.files import Device, write

FAST = {"share": 0.5, "seconds_per_sample": 0.001}
SLOW = {"share": 0.5, "seconds_per_sample": 0.1}


def equip(nodes=4, seed=0, **devices):
    return kits(Devices.model_validate(devices), nodes, seed)


def refused(**blocks):
    base = {"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 1}}
    with pytest.raises(ConfigError) as caught:
        load({**base, **blocks})
    return str(caught.value)


# energy and memory


def test_nothing_is_counted_unless_it_is_said():
    assert equip(2) == [Kit(10**9), Kit(10**9)]
    assert Kit(1).joules(1000, 1000) is None


def test_energy_is_work_and_bytes():
    assert Kit(1, joules_per_sample=0.5, joules_per_byte=0.25).joules(3, 8) == 1.5 + 2
    assert Kit(1, joules_per_byte=0.25).joules(3, 8) == 2


@given(st.integers(0, 10**6), st.integers(0, 10**9), st.floats(0, 10), st.floats(0, 1))
def test_energy_adds_up(work, size, per_sample, per_byte):
    kit = Kit(1, per_sample, per_byte)
    halves = kit.joules(work, 0) + kit.joules(0, size)
    assert kit.joules(work, size) == pytest.approx(halves)


def test_every_node_draws_its_own():
    draw = {"distribution": "uniform", "low": 1, "high": 2}
    own = equip(50, joules_per_sample=draw, memory_mb=draw)
    for key in ("joules_per_sample", "memory_mb"):
        values = [getattr(kit, key) for kit in own]
        assert len(set(values)) == 50
        assert 1 <= min(values) < max(values) <= 2
    assert [kit.memory_mb for kit in own] != [kit.joules_per_sample for kit in own]
    assert {kit.joules_per_byte for kit in own} == {None}


def test_the_extras_do_not_change_the_speeds():
    draw = {"distribution": "lognormal", "median": 1, "sigma": 1}
    extras = dict.fromkeys(EXTRAS, draw)
    for source in ({"seconds_per_sample": draw}, {"classes": [FAST, SLOW]}):
        plain, rich = equip(20, seed=4, **source), equip(20, seed=4, **source, **extras)
        assert [kit.ps_per_sample for kit in plain] == [kit.ps_per_sample for kit in rich]


def test_a_node_has_the_extras_of_its_class():
    classes = [{**FAST, "joules_per_sample": 2, "memory_mb": 100}, {**SLOW, "joules_per_sample": 1}]
    for kit in equip(10, classes=classes, memory_mb=7):
        fast = kit.ps_per_sample == 10**9
        assert (kit.joules_per_sample, kit.memory_mb) == ((2, 100) if fast else (1, 7))


def test_a_class_without_extras_is_refused_where_another_has_some():
    line = refused(devices={"classes": [FAST, {**SLOW, "joules_per_byte": 1}]})
    assert line == (
        "devices.classes.0: has no joules_per_byte, and class 1 has one; "
        "give it to every class, or say devices.joules_per_byte for the others"
    )


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("joules_per_sample", -1, "must be at least 0"),
        ("joules_per_byte", float("nan"), "must be a finite number"),
        ("memory_mb", 0, "must be greater than 0"),
    ],
)
def test_bad_extras(key, value, rule):
    assert refused(devices={key: value}) == f"devices.{key}: {value}: {rule}"


def test_zero_joules_are_counted():
    assert equip(1, joules_per_sample=0)[0].joules(5, 5) == 0


# bandwidths of a trace


def traced(tmp_path, *devices):
    path = tmp_path / "devices.csv"
    write(path, devices)
    return {"trace": str(path)}


def test_a_trace_gives_its_nodes_their_bandwidths(make, tmp_path):
    devices = traced(tmp_path, Device(0.1, 4.0, 8.0), Device(0.2, 0.5, 1.0))
    world = make(nx.star_graph(3), server=True, devices=devices)
    found = [(world.network.access[i].up_bps, world.network.access[i].down_bps) for i in range(4)]
    mega = 10**6
    assert found == [(4 * mega, 8 * mega), (mega // 2, mega), (4 * mega, 8 * mega), (0, 0)]


def test_a_message_takes_as_long_as_the_traced_upload_says(make, tmp_path):
    devices = traced(tmp_path, Device(0.1, 4.0, None), Device(0.1, None, None))
    network = {"header_bytes": 0}
    world = make(nx.path_graph(2), devices=devices, network=network)
    arrivals = []
    for node in world.nodes:
        node.on_message = lambda message, node=node: arrivals.append((node.id, world.clock.now))
    world.nodes[0].send(world.nodes[1], Message("m", None, 500_000))  # 4 Mbit at 4 Mbit/s
    world.nodes[1].send(world.nodes[0], Message("m", None, 500_000))  # nothing was recorded: unlimited
    world.clock.run()
    assert arrivals == [(0, 0), (1, 1_000_000)]


def test_a_trace_of_speeds_alone_leaves_the_network_its_own(make, tmp_path):
    devices = traced(tmp_path, Device(0.1), Device(0.2))
    world = make(nx.path_graph(2), devices=devices, network={"up_mbps": 3})
    assert [world.network.access[i].up_bps for i in range(2)] == [3_000_000] * 2


@pytest.mark.parametrize("key", ["up_mbps", "down_mbps"])
def test_two_sources_of_one_bandwidth_are_refused(make, tmp_path, key):
    devices = traced(tmp_path, Device(0.1, 4.0, 8.0))
    with pytest.raises(ConfigError) as caught:
        make(nx.path_graph(2), devices=devices, network={key: 3})
    problem = caught.value.problems[0]
    assert (problem.key, problem.value) == (f"network.{key}", 3.0)
    assert problem.rule.endswith(f"devices.csv has {key} as well")


def test_one_direction_from_the_trace_and_one_from_the_network(make, tmp_path):
    devices = traced(tmp_path, Device(0.1, 4.0, None))
    world = make(nx.path_graph(2), devices=devices, network={"down_mbps": 2})
    assert {(a.up_bps, a.down_bps) for a in world.network.access.values()} == {(4_000_000, 2_000_000)}


# what nodes did with their time


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=8), st.integers(0, 20))
def test_busy_idle_and_offline_fill_the_time(make, steps, work):
    world = make(nx.path_graph(2), devices={"seconds_per_sample": 1})
    node = world.nodes[0]
    for seconds, online in steps:
        node.set_online(online)
        if online and work:
            node.compute(work)
        world.clock.run(until=world.clock.now + seconds * 10**6)
    node.set_online(False)  # what is running is broken off, and counted
    used = world.usage(node)
    assert used.busy_us + used.idle_us + used.offline_us == world.clock.now
    assert 0 <= used.wasted_us <= used.busy_us <= node.online_us()
    assert used.offline_us == sum(seconds for seconds, online in steps if not online) * 10**6


def test_a_job_broken_off_has_wasted_its_time(make):
    world = make(nx.path_graph(2), devices={"seconds_per_sample": 2, "joules_per_sample": 3})
    node = world.nodes[0]
    node.compute(5)
    world.clock.run(until=7 * 10**6)  # three samples done, a fourth begun
    node.set_online(False)
    world.clock.run(until=10 * 10**6)
    assert world.usage(node) == (7 * 10**6, 0, 3 * 10**6, 7 * 10**6, 9.0)
    assert world.usage(world.nodes[1]) == (0, 10 * 10**6, 0, 0, 0.0)
    assert world.spent() == {"busy_s": 7, "idle_s": 10, "offline_s": 3, "wasted_s": 7, "joules": 9}


def test_the_server_is_left_out_of_what_was_spent(make):
    world = make(nx.star_graph(2), server=True)
    world.clock.run(until=10**6)
    assert world.spent()["idle_s"] == 2
    assert world.spent()["joules"] is None
    assert np.isclose(world.usage(world.server).idle_us, 10**6)
