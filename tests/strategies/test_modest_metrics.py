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
        fedsim.errors.StalledError, match=r"nobody can make progress: node 0 .* waits for a message"
    ):
        fedsim.run(given, out=tmp_path, timing_only=True)
