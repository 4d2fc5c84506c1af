"""Updates that fail: they stop the run with a place, or are dropped and counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sqlite3

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import ConfigError, NotFiniteError, RunError
from fedsim.learn.build import build
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Failed, Place
from fedsim.learn.local import LocalSGD
from fedsim.spec.experiment import Local, load

TOO_FAST = 1e39
"""A learning rate that float32 cannot hold."""

BASE = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {
        "name": "fedavg",
        "fraction_evaluate": 0.0,
        "local": {"epochs": 1, "lr": [0.1, TOO_FAST, 0.1, 0.1]},
    },
    "network": {"latency_ms": 10, "up_mbps": 1, "down_mbps": 1},
    "stop": {"rounds": 3},
    "record": {"report": False},
}
DROP = {"strategy.on_failure": "drop"}


def flat(weights):
    return np.concatenate([array.reshape(-1) for array in weights.values()])


def facts(path):
    with sqlite3.connect(path / "record.sqlite") as db:
        rows = db.execute("SELECT key, value FROM facts").fetchall()
    db.close()
    return {key: json.loads(value) for key, value in rows}


def test_an_update_with_nan_stops_the_run_with_its_place(tmp_path):
    with pytest.raises(NotFiniteError, match="NaN or infinity in arrays") as caught:
        fedsim.run(BASE, out=tmp_path)
    assert (caught.value.node, caught.value.round) == (1, 1)
    assert caught.value.sim_time_s > 0


def test_an_update_with_nan_is_dropped_and_counted(tmp_path):
    result = fedsim.run(BASE, overrides=DROP, out=tmp_path)
    assert result.summary["rounds"] == 3
    assert result.summary["dropped_updates"] == 3
    assert math.isfinite(result.summary["loss"])
    dropped = facts(result.path)["dropped_updates"]
    assert [(one["node"], one["round"]) for one in dropped] == [(1, 1), (1, 2), (1, 3)]
    assert all("NaN or infinity in arrays" in one["reason"] for one in dropped)
    assert [one["sim_time_s"] for one in dropped] == sorted({one["sim_time_s"] for one in dropped})


def test_the_others_average_is_the_model(tmp_path):
    result = fedsim.run(BASE, overrides=DROP, out=tmp_path, stop__rounds=1)
    learner, _, _ = build(load(BASE))
    update, sizes = LocalSGD(load(BASE).strategy.local), learner.sizes
    sent = {
        client: learner.train(update, client, {"arrays": learner.initial}, Place(client, 1, 0.0)).value()
        for client in (0, 2, 3)
    }
    total = sum(sizes[client] for client in sent)
    wanted = sum(sizes[client] * one["arrays"].double() for client, one in sent.items()) / total
    assert np.abs(flat(result.weights()) - wanted.numpy()).max() < 1e-6


def test_dropping_does_not_change_when_anything_happens(tmp_path):
    full = fedsim.run(BASE, overrides=DROP, out=tmp_path).summary
    dry = fedsim.run(BASE, overrides=DROP, out=tmp_path, timing_only=True).summary
    assert full["event_hash"] == dry["event_hash"]
    assert full["sim_time_s"] == dry["sim_time_s"]
    assert dry["dropped_updates"] == 0


def test_what_was_dropped_is_no_update_and_wasted(tmp_path):
    seen = []
    result = fedsim.run(BASE, overrides=DROP, out=tmp_path, progress=lambda now: seen.append(now.clients))
    assert seen == [0, 3, 6, 9]
    learner, _, _ = build(load(BASE))
    assert result.summary["wasted_samples"] == 3 * learner.sizes[1]


def test_the_log_says_what_was_dropped(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fedsim"):
        fedsim.run(BASE, overrides=DROP, out=tmp_path)
    (line,) = [one.getMessage() for one in caplog.records if "dropped" in one.getMessage()]
    assert line.startswith(
        "3 updates failed and were dropped; the first is of client 1 in round 1 (NaN or inf"
    )


def test_if_all_fail_the_model_stays(tmp_path):
    given = {**DROP, "strategy.local.lr": TOO_FAST}
    result = fedsim.run(BASE, overrides=given, out=tmp_path)
    assert result.summary["dropped_updates"] == 12
    learner, _, _ = build(load(BASE))
    assert np.array_equal(flat(result.weights()), learner.initial.value().numpy())


def test_a_run_without_failures_is_the_same_either_way(tmp_path):
    calm = {"strategy.local.lr": 0.1}
    stop = fedsim.run(BASE, overrides=calm, out=tmp_path).summary
    drop = fedsim.run(BASE, overrides={**calm, **DROP}, out=tmp_path).summary
    assert stop["run_hash"] == drop["run_hash"]
    assert drop["dropped_updates"] == stop["dropped_updates"] == 0


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_a_lost_anchor_leaves_its_cache_and_the_miners_go_on(engine, tmp_path):
    """Client 2 sends NaN in every message of the second half; the run is that in which it is never heard."""
    block = {"name": "fedamd", "participants": 4, "period": 2, "local": {"steps": 2, "batch_size": 8}}
    fault = {"name": "corrupt", "kind": "nan", "nodes": [2], "at_s": 0.0}
    given = {**BASE, "strategy": block, "faults": [fault], "compute": {"engine": engine}}
    with pytest.raises(NotFiniteError, match="which a fault has corrupted"):
        fedsim.run(given, out=tmp_path)
    result = fedsim.run(given, overrides=DROP, out=tmp_path)
    assert result.summary["dropped_updates"] == 1 + 3
    assert {one["node"] for one in facts(result.path)["dropped_updates"]} == {2}


def test_nan_that_a_fault_lets_through_is_the_strategys_business(tmp_path):
    fault = {"name": "corrupt", "kind": "nan", "nodes": [2], "checked": False}
    given = {**BASE, "faults": [fault], "strategy": {**BASE["strategy"], "local": {"lr": 0.1}}}
    with pytest.raises(NotFiniteError) as caught:
        fedsim.run(given, overrides=DROP, out=tmp_path)
    assert (caught.value.node, caught.value.phase) == (None, "evaluate")


# what is left of a failed update


class Keeping(LocalSGD):
    """Keeps a vector of ones, and fails for client 1 in the way asked for."""

    keeps = ("own",)

    def __init__(self, error=None):
        super().__init__(Local(steps=1, lr=[0.1, TOO_FAST, 0.1, 0.1]))
        self.error = error

    def batches(self, samples, rng):
        if self.error is not None:
            raise self.error
        return super().batches(samples, rng)

    def init(self, given):
        return {**super().init(given), "own": given["own"]}

    def final(self, state):
        return {**super().final(state), "own": state["own"] + 1}

    def step(self, gradient, state, batch):
        return {**super().step(gradient, state, batch), "own": state["own"]}


@pytest.mark.parametrize("error", [None, ZeroDivisionError("by nothing"), RunError("broken")])
def test_a_client_keeps_what_it_had_before_it_failed(error):
    learner = dataclasses.replace(build(load(BASE))[0], drop=True)
    kept = Deferred.known(torch.full_like(learner.initial.value(), 7.0))
    result = learner.train(Keeping(error), 1, {"arrays": learner.initial, "own": kept}, Place(1, 4, 2.5))
    assert isinstance(result.value(), Failed)
    assert torch.equal(result.pick("own").value(), kept.value())
    with pytest.raises(RunError) as caught:
        result.pick("arrays").value()
    assert (caught.value.node, caught.value.round, caught.value.sim_time_s) == (1, 4, 2.5)


def test_the_others_of_a_batch_do_not_fail_with_it():
    learner = dataclasses.replace(build(load(BASE))[0], drop=True)
    given = {"arrays": learner.initial, "own": learner.zeros}
    update = Keeping()
    results = [learner.train(update, client, given, Place(client, 1, 0.0)) for client in range(4)]
    assert [isinstance(result.value(), Failed) for result in results] == [False, True, False, False]
    assert all(
        float(result.pick("own").value().min()) == 1.0 for result in results if result is not results[1]
    )


# what counts as an update


def test_evaluations_are_no_updates(tmp_path):
    seen = []
    block = {"name": "fedavg", "fraction_evaluate": 1.0, "local": {"lr": 0.1}}
    fedsim.run({**BASE, "strategy": block}, out=tmp_path, progress=lambda now: seen.append(now.clients))
    assert seen == [0, 4, 8, 12]


def test_questions_before_a_round_are_no_updates(tmp_path):
    seen = []
    block = {"name": "fedprox", "participants": 2, "mu": 0.1, "select": "by_size"}
    fedsim.run({**BASE, "strategy": block}, out=tmp_path, progress=lambda now: seen.append(now.clients))
    assert seen == [0, 2, 4, 6]


# bad input


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"strategy.on_failure": "ignore"}, "strategy.on_failure: ignore: "),
        (
            {"strategy": {"name": "dpsgd", "on_failure": "drop"}},
            "strategy.on_failure: drop: belongs to a server",
        ),
    ],
)
def test_bad_input_is_refused(given, line):
    with pytest.raises(ConfigError) as caught:
        fedsim.check({**BASE, "topology": "star"}, given)
    assert line in str(caught.value)
