"""Numbers of every size in every key: refused in one line, or fine; never anything else."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedsim
from fedsim import machine
from fedsim.errors import BadValue, ConfigError, RunError
from fedsim.learn.data.datasets import synthetic
from fedsim.ranges import LARGEST, LEAST_S, MOST_COUNT, MOST_S
from fedsim.spec.experiment import load
from fedsim.world.clock import END_US, Clock, micros

sys.path.insert(0, str(Path(__file__).parent))
import extremes

CASES = [*extremes.key_cases(), *extremes.part_cases()]


def refusals(experiment, path, value):
    """Return what is wrong with a value, line by line; whatever else happens is a mistake of fedsim's."""
    try:
        fedsim.check(extremes.changed(experiment, path, value))
    except ConfigError as error:
        return [str(problem) for problem in error.problems] or ["nothing said"]
    return []


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(case=st.sampled_from(CASES), value=st.sampled_from(extremes.EXTREMES), inside=st.booleans())
def test_every_number_is_fine_or_refused_in_one_line(case, value, inside):
    for line in refusals(*case, [value] if inside else value):
        assert len(line.splitlines()) == 1
        assert len(line) < 600


@pytest.mark.slow
@pytest.mark.skipif("FEDSIM_SOAK" not in os.environ, reason="takes half an hour; make soak")
@pytest.mark.parametrize("case", CASES, ids=lambda case: ".".join(map(str, case[1])))
def test_every_number_with_every_extreme(case):
    for value in extremes.EXTREMES:
        assert "nothing said" not in refusals(*case, value)


def test_the_cases_name_the_numbers_that_were_without_a_bound():
    paths = {".".join(map(str, path)) for _, path in CASES}
    assert {"stop.sim_time_s", "network.header_bytes", "evaluate.batch_size", "strategy.local.steps"} <= paths
    assert {
        "compute.slots",
        "data.clients",
        "strategy.participants",
        "evaluate.nodes",
        "data.dimension",
    } <= paths
    assert len(paths) > 100


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stop.sim_time_s", 1.7e308, "stop.sim_time_s: 1.7e+308: must be at most 1e+11"),
        ("stop.sim_time_s", 1e-7, "stop.sim_time_s: 1e-07: must be at least 1e-06"),
        ("strategy.timeout_s", 1e-300, "strategy.timeout_s: 1e-300: must be at least 1e-06"),
        ("network.header_bytes", 10**30, f"network.header_bytes: {10**30}: must be at most {2**31 - 1}"),
        ("evaluate.batch_size", 2**31, f"evaluate.batch_size: {2**31}: must be at most {2**31 - 1}"),
        ("strategy.local.steps", 2**64, f"strategy.local.steps: {2**64}: must be at most {2**31 - 1}"),
        ("network.edge_mbps", 1.7e308, "network.edge_mbps: 1.7e+308: must be at most 1e+12"),
        ("compute.threads", 1025, "compute.threads: 1025: must be at most 1024"),
        ("compute.device", "cuda:" + "1" * 30, "compute.device: cuda:" + "1" * 30 + ": must be auto, cpu"),
        ("strategy.deep", [2**40], "must be at most 1e+12"),
        ("strategy.period_s", 2e11, "strategy.period_s: 200000000000.0: must be at most 1e+11 s"),
        ("strategy.period_s", 1e-9, "strategy.period_s: 1e-09: must be at least 1e-06 s, or 0"),
    ],
)
def test_a_number_beyond_its_range_is_told_with_the_range(key, value, said):
    name = "gossip" if "period" in key else "dpsgd"
    base = {
        "data": {"clients": 4},
        "strategy": name,
        "topology": "ring",
        "stop": {"rounds": 1, "sim_time_s": 9},
    }
    with pytest.raises(ConfigError) as caught:
        fedsim.check(base, {key: value})
    assert said in str(caught.value)


def test_more_threads_than_four_a_core_are_refused(monkeypatch):
    base = {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": "dpsgd",
        "topology": "ring",
        "stop": {"rounds": 1},
    }
    monkeypatch.setattr("os.cpu_count", lambda: 20)
    fedsim.check(base, {"compute.threads": 80})
    with pytest.raises(
        ConfigError, match=r"threads: 81: must be at most 80 on this machine, which has 20 cores"
    ):
        fedsim.check(base, {"compute.threads": 81})


def test_a_whole_number_of_ten_thousand_digits_is_told_shortly(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        f"data: {{clients: {'9' * 10_000}}}\nstrategy: fedavg\nstop: {{rounds: 1}}\n", encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=r"a.yaml:1: data.clients: a number of 10000 digits is too long"):
        load(file)
    with pytest.raises(ConfigError, match="seed: a whole number of 33220 bits: must be less than"):
        load({"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 1}, "seed": 10**10_000})


def test_the_smallest_share_of_nodes_evaluates_one(tmp_path):
    experiment = {"data": {"clients": 4}, "model": "softmax", "strategy": "dpsgd", "topology": "ring"}
    more = {"stop": {"rounds": 1}, "evaluate": {"nodes": 1e-300}, "record": {"report": False}}
    result = fedsim.run({**experiment, **more}, out=tmp_path)
    assert 0 < result.summary["accuracy"] < 1


def test_the_clock_ends_where_the_event_log_does():
    clock, seen = Clock(), []
    clock.after(micros(MOST_S), seen.append, "early")
    clock.after(END_US + 5, seen.append, "late")
    with pytest.raises(RunError, match="until the end of simulated time") as caught:
        clock.run()
    assert seen == ["early"]
    assert clock.now == END_US == 2**63 - 1
    assert caught.value.sim_time_s == pytest.approx(9.223372e12)
    # A mean of MOST_S drawn from an exponential distribution fits up to 92 times it: e^-92 is never.
    assert END_US / micros(MOST_S) > 92
    assert LEAST_S == 1e-6
    assert LARGEST == 1e12
    assert np.iinfo(np.int32).max == MOST_COUNT


@pytest.fixture
def little_memory(monkeypatch):
    """A machine with 100 MB."""
    monkeypatch.setattr(machine, "memory_bytes", lambda: 100_000_000)


@pytest.mark.parametrize(
    ("topology", "key", "links"),
    [
        # 100 MB hold 200,000 links of 500 bytes; 1001 nodes all linked have 500,500.
        ("complete", "n", 1001 * 1000 / 2),
        ({"name": "erdos_renyi", "p": 0.5}, "p", 0.5 * 1001 * 1000 / 2),
        ({"name": "random_regular", "degree": 500}, "degree", 1001 * 500 / 2),
        ({"name": "small_world", "neighbours": 500, "rewire": 0.1}, "neighbours", 1001 * 500 / 2),
        ({"name": "geometric", "radius": 0.5}, "radius", math.pi / 4 * 1001 * 1000 / 2),
    ],
)
def test_links_are_estimated_before_they_are_made(little_memory, topology, key, links):
    from fedsim.running.topology import make_graph

    experiment = load(
        {"data": {"clients": 1001}, "strategy": "dpsgd", "topology": topology, "stop": {"rounds": 1}}
    )
    with pytest.raises(ConfigError) as caught:
        make_graph(experiment, servers=0)
    assert f"{key}: " in str(caught.value)
    need = f"needs about {links * 500 / 1e9:.3g} GB for {links:.3g} links, and this machine has 0.1 GB"
    assert need in str(caught.value)


def test_samples_and_nodes_are_estimated_before_they_are_made(little_memory):
    # 2000 clients with 100 samples at most, of 60 numbers in 4 bytes, twice: 2000 x 100 x (480 + 32) = 102.4 MB
    with pytest.raises(BadValue, match=r"clients: 2000: needs about 0.102 GB for about 2e\+05 samples"):
        synthetic(clients=2000, max_samples=100, seed=0)
    assert len(synthetic(clients=20, max_samples=100, seed=0).x) > 20 * 40
    base = {"strategy": "dpsgd", "topology": "empty", "network": {"overlay": True}, "stop": {"rounds": 1}}
    with pytest.raises(ConfigError, match=r"data.clients: 40000: needs about 0.12 GB for their nodes"):
        fedsim.check({**base, "data": {"clients": 40_000}})
