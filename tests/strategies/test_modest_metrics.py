"""What is measured, and what is refused, in whole runs."""

from __future__ import annotations

import logging

import pytest

import fedsim


def experiment(**params):
    return {
        "data": {"clients": 12},
        "model": "softmax",
        "strategy": {"name": "modest", "sample_size": 4, **params},
        "topology": "empty",
        "network": {"overlay": True, "latency_ms": 10},
        "stop": {"rounds": 6},
    }


def test_the_metrics_say_that_the_aggregate_was_evaluated(tmp_path):
    result = fedsim.run(experiment(), out=tmp_path)
    metrics = result.metrics()
    assert metrics["accuracy_of_aggregate"].tolist() == metrics["accuracy"].tolist()
    assert metrics["loss_of_aggregate"][-1] < metrics["loss_of_aggregate"][0]
    assert "consensus_distance" not in metrics
    assert (result.path / "report.html").exists()


def test_a_network_without_links_needs_an_overlay():
    given = experiment()
    given["network"]["overlay"] = False
    with pytest.raises(
        fedsim.errors.ConfigError, match="must return a connected graph; this one has 12 components"
    ):
        fedsim.check(given)


@pytest.mark.parametrize(("window", "warned"), [(5, True), (100, False), (None, False)])
def test_a_window_that_forgets_nodes_is_warned_of(window, warned, caplog):
    with caplog.at_level(logging.WARNING):
        fedsim.check(experiment(window=window))
    assert ("nodes that are there will be forgotten" in caplog.text) is warned


def test_nobody_online_at_the_start_is_a_stall_with_a_diagnosis(tmp_path):
    given = {**experiment(), "churn": {"name": "arrive", "count": 12, "at_s": 5.0}}
    with pytest.raises(
        fedsim.errors.StalledError, match="nobody was online to begin; node 0 waits for a message; node 1"
    ):
        fedsim.run(given, out=tmp_path, timing_only=True)


@pytest.mark.slow
def test_a_run_that_was_dead_when_its_time_was_up_says_so(tmp_path, caplog):
    """Half of the nodes crash, and all models of a sample are needed."""
    crash = {"name": "crash", "at_s": 3, "nodes": [0, 1, 2, 3, 4, 5]}
    given = {**experiment(), "faults": [crash], "stop": {"sim_time_s": 500}}
    result = fedsim.run({**given, "devices": {"seconds_per_sample": 0.003}}, out=tmp_path, timing_only=True)
    told = result.summary["stalled"]
    assert told in caplog.text
    assert "gone for good: [0, 1, 2, 3, 4, 5]" in told
    assert "to come back online" not in told
    assert "done)" not in told
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert "nobody could make progress" in page
    fine = fedsim.run(
        {**given, "faults": [], "devices": {"seconds_per_sample": 0.003}}, out=tmp_path, timing_only=True
    )
    assert fine.summary["stalled"] is None
    assert "nobody could make progress" not in (fine.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("minimum", "warned"), [(3, True), (4, True), (2, False)])
def test_a_timeout_that_never_makes_an_average_is_warned_of(minimum, warned, caplog):
    """Three of four models are enough at any time."""
    timed = {"success_fraction": 0.75, "aggregator_timeout_s": 60.0, "minimum_models": minimum}
    with caplog.at_level(logging.WARNING):
        fedsim.check(experiment(**timed))
    assert (f"minimum_models {minimum}, and 3 make one anyway" in caplog.text) is warned
    caplog.clear()
    fedsim.check(experiment(**{**timed, "aggregator_timeout_s": None}))
    assert "minimum_models" not in caplog.text
