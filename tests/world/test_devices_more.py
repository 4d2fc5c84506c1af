from __future__ import annotations

import math
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import rng
from fedsim.errors import ConfigError
from fedsim.spec.experiment import Devices, load
from fedsim.world.devices import PICOS, apportion, kits, speeds
from fedsim.world.traces.files import Device, write

PHONES = [
    {"share": 0.5, "seconds_per_sample": 0.001},
    {"share": 0.3, "seconds_per_sample": 0.01},
    {"share": 0.2, "seconds_per_sample": 0.1},
]


def seconds(devices, nodes, seed=0):
    return [kit.ps_per_sample / PICOS for kit in kits(Devices.model_validate(devices), nodes, seed)]


def refused(**devices):
    with pytest.raises(ConfigError) as caught:
        load({"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 1}, "devices": devices})
    return str(caught.value)


# classes


def test_classes_have_exactly_their_shares():
    assert Counter(seconds({"classes": PHONES}, 10)) == {0.001: 5, 0.01: 3, 0.1: 2}
    assert Counter(seconds({"classes": PHONES}, 1000)) == {0.001: 500, 0.01: 300, 0.1: 200}


def test_chance_decides_which_node_is_of_which_class():
    first = seconds({"classes": PHONES}, 100, seed=1)
    assert first == seconds({"classes": PHONES}, 100, seed=1)
    assert first != seconds({"classes": PHONES}, 100, seed=2)
    assert first != sorted(first)


def test_a_class_may_be_a_distribution():
    draw = {"distribution": "uniform", "low": 1.0, "high": 2.0}
    classes = [{"share": 0.5, "seconds_per_sample": draw}, {"share": 0.5, "seconds_per_sample": 5}]
    own = sorted(seconds({"classes": classes}, 20))
    assert own[10:] == [5.0] * 10
    assert len(set(own[:10])) == 10
    assert own[0] >= 1
    assert own[9] <= 2


@pytest.mark.parametrize(
    ("shares", "nodes", "counts"),
    [
        # 3.5, 2.1, 1.4: five for sure, then the largest remainders, 0.5 and 0.4
        ([0.5, 0.3, 0.2], 7, [4, 2, 1]),
        ([1 / 3, 1 / 3, 1 / 3], 4, [2, 1, 1]),  # equal remainders: the first
        ([0.29, 0.71], 100, [29, 71]),  # 0.29 x 100 is 28.999999999999996
        ([1.0], 3, [3]),
        ([0.9, 0.1], 1, [1, 0]),
        ([0.5, 0.5], 0, [0, 0]),
    ],
)
def test_rounding_by_the_largest_remainders(shares, nodes, counts):
    assert apportion(shares, nodes) == counts


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=8), nodes=st.integers(0, 5000))
def test_every_class_is_within_one_of_its_share(weights, nodes):
    shares = [weight / sum(weights) for weight in weights]
    counts = apportion(shares, nodes)
    assert sum(counts) == nodes
    assert all(abs(count - share * nodes) < 1 + 1e-6 for share, count in zip(shares, counts))


# stragglers


def test_the_slowest_are_slowed():
    draw = {"distribution": "uniform", "low": 1.0, "high": 2.0}
    plain = seconds({"seconds_per_sample": draw}, 20)
    slowed = seconds({"seconds_per_sample": draw, "stragglers": {"share": 0.25, "factor": 10}}, 20)
    slowest = sorted(range(20), key=plain.__getitem__)[15:]
    for node in range(20):
        assert slowed[node] == pytest.approx(plain[node] * (10 if node in slowest else 1), rel=1e-9)


def test_chance_decides_among_equally_slow_ones():
    devices = {"seconds_per_sample": 1, "stragglers": {"share": 0.3, "factor": 2.5}}
    own = [seconds(devices, 10, seed) for seed in range(10)]
    assert all(Counter(one) == {1.0: 7, 2.5: 3} for one in own)
    assert len(set(map(tuple, own))) > 5


@pytest.mark.parametrize(("share", "factor", "slow"), [(1.0, 2.0, 5), (0.05, 2.0, 0), (0.5, 1.0, 0)])
def test_all_or_none_may_be_slowed(share, factor, slow):
    own = seconds({"seconds_per_sample": 1, "stragglers": {"share": share, "factor": factor}}, 5)
    assert own.count(2.0) == slow


# traces


def test_node_i_takes_row_i_modulo_the_rows(tmp_path):
    path = tmp_path / "c.csv"
    write(path, (Device(0.5), Device(0.25, 1.0, 2.0), Device(3e-9)))
    assert seconds({"trace": str(path)}, 7) == [0.5, 0.25, 3e-9, 0.5, 0.25, 3e-9, 0.5]


def test_a_traced_world_with_stragglers(make, tmp_path):
    path = tmp_path / "c.json"
    write(path, (Device(1.0), Device(2.0)))
    devices = {"trace": str(path), "stragglers": {"share": 0.5, "factor": 3}}
    world = make(nx.star_graph(4), server=True, devices=devices)
    assert [node.ps_per_sample for node in world.nodes] == [PICOS, 6 * PICOS, PICOS, 6 * PICOS, 0]


def test_a_bad_trace_is_refused_with_its_key(make, tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("node,seconds_per_sample\n0,1\n1,nan\n")
    with pytest.raises(ConfigError) as caught:
        make(nx.empty_graph(2), devices={"trace": str(path)})
    assert caught.value.problems[0].key == "devices.trace"
    assert caught.value.problems[0].rule.startswith("c.csv, line 3: seconds_per_sample is nan, must be")


def test_a_trace_of_availability_says_nothing_about_speed(make, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("node,start_s,end_s\n0,1,2\n")
    with pytest.raises(ConfigError, match=r"a\.csv is an availability trace, not one of capacity"):
        make(nx.empty_graph(2), devices={"trace": str(path)})


# one source


def test_a_distribution_is_drawn_as_before():
    draw = {"distribution": "lognormal", "median": 0.01, "sigma": 1.0}
    devices = Devices.model_validate({"seconds_per_sample": draw})
    own = [kit.ps_per_sample for kit in kits(devices, 30, seed=3)]
    assert own == speeds(devices.seconds_per_sample, 30, rng.stream(3, "devices"))


def test_without_a_word_everybody_takes_a_millisecond():
    assert seconds({}, 3) == [0.001] * 3


def test_classes_are_for_clients_and_not_for_the_server(make):
    world = make(nx.star_graph(10), server=True, devices={"classes": PHONES})
    own = [node.ps_per_sample for node in world.nodes]
    assert Counter(own[:-1]) == {10**9: 5, 10**10: 3, 10**11: 2}
    assert own[-1] == 0


@pytest.mark.parametrize(
    ("devices", "named"),
    [
        ({"seconds_per_sample": 1, "classes": PHONES}, "seconds_per_sample and classes"),
        ({"classes": PHONES, "trace": "a.csv"}, "classes and trace"),
        ({"seconds_per_sample": None}, "none of them"),
    ],
)
def test_exactly_one_source(devices, named):
    rule = f"give exactly one of seconds_per_sample, classes, trace, not {named}"
    assert refused(**devices).endswith(rule)


def test_shares_add_up_to_one():
    assert "devices.classes: " in refused(classes=PHONES[:2])
    assert refused(classes=PHONES[:2]).endswith("the shares of the classes add up to 0.8, must add up to 1")
    assert refused(classes=[]).endswith("the shares of the classes add up to 0, must add up to 1")


@pytest.mark.parametrize(
    ("devices", "key"),
    [
        ({"classes": [{"share": 0, "seconds_per_sample": 1}]}, "devices.classes.0.share"),
        ({"classes": [{"share": 1, "seconds_per_sample": 0}]}, "devices.classes.0.seconds_per_sample"),
        ({"classes": [{"share": 1}]}, "devices.classes.0.seconds_per_sample"),
        ({"stragglers": {"share": 0, "factor": 2}}, "devices.stragglers.share"),
        ({"stragglers": {"share": 0.5, "factor": 0.5}}, "devices.stragglers.factor"),
        ({"stragglers": {"share": 0.5}}, "devices.stragglers.factor"),
        ({"stragglers": {"share": 0.5, "factor": math.inf}}, "devices.stragglers.factor"),
        ({"trace": 3}, "devices.trace"),
        ({"clases": []}, "devices.clases"),
    ],
)
def test_mistakes_name_their_key(devices, key):
    assert refused(**devices).replace("[", ".").replace("]", "").startswith(f"{key}: ")


@pytest.mark.parametrize(
    "devices",
    [
        {},
        {"classes": PHONES},
        {"trace": "a.csv", "stragglers": {"share": 0.1, "factor": 4}},
        {"seconds_per_sample": {"distribution": "exponential", "mean": 0.5}},
    ],
)
def test_a_dumped_experiment_is_read_back(devices, describe, tmp_path):
    experiment = describe(3, devices=devices)
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment.dump())
    assert load(path) == experiment


def test_paces_are_plain_integers():
    for devices in ({"classes": PHONES}, {"stragglers": {"share": 0.5, "factor": 1.7}}):
        own = kits(Devices.model_validate(devices), 10, seed=0)
        assert {type(kit.ps_per_sample) for kit in own} == {int}
    assert np.all(np.array(seconds({"stragglers": {"share": 1.0, "factor": 1.7}}, 3)) == 0.0017)
