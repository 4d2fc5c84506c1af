"""Whom a server has learned from: by hand, in whole runs, and where a run is repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.methods.server import Reply
from fedsim.record.store import read
from fedsim.running.build import prepare
from fedsim.running.cohorts import Cohorts, effective
from tests.learn.test_buffers import SENT
from tests.learn.test_buffers import experiment as buffered

NAMES = {"clients_seen", "clients_lately", "labels_lately", "drift", "agreement"}


def reply(node, *weights):
    return Reply(node, "train", {"arrays": Deferred.known(torch.tensor(weights))}, {}, 4)


def said(cohorts, model, replies):
    return {name: value for name, value, _ in cohorts.told(model, replies)}


def test_a_round_by_hand():
    cohorts, model = Cohorts(np.array([[4, 0, 0], [0, 2, 2], [0, 0, 4]])), Deferred.known(torch.zeros(2))
    first = said(cohorts, model, [reply(0, 3.0, 4.0), reply(1, -3.0, 4.0)])
    assert first["clients_seen"] == first["clients_lately"] == 2
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)  # of 4, 2 and 2 samples
    assert first["labels_lately"] == pytest.approx(math.exp(entropy))
    assert first["drift"] == 5.0
    assert first["agreement"] == pytest.approx(4 / 5)  # the mean of (3, 4) and (-3, 4) is (0, 4)
    for _ in range(9):
        last = said(cohorts, model, [reply(0, 0.0, 0.0)])
    assert (last["clients_seen"], last["clients_lately"]) == (2, 2)
    assert (last["drift"], last["agreement"]) == (0.0, 1.0)  # nobody has moved
    last = said(cohorts, model, [reply(0, 0.0, 2.0)])  # and the first round is long ago
    assert last == {
        "clients_seen": 2,
        "clients_lately": 1,
        "labels_lately": 1.0,
        "drift": 2.0,
        "agreement": 1.0,
    }


def test_a_gradient_or_a_difference_is_no_model(tmp_path):
    """An anchor's gradient is not a place that a client went to, and neither is SCAFFOLD's y - x."""
    cohorts, model = Cohorts(np.ones((2, 2), dtype=np.int64)), Deferred.known(torch.zeros(2))
    gradient = Reply(1, "train.anchor", {"arrays": Deferred.known(torch.tensor([60.0, 80.0]))}, {}, 4)
    found = said(cohorts, model, [reply(0, 3.0, 4.0), gradient])
    assert (found["clients_seen"], found["drift"], found["agreement"]) == (2, 5.0, 1.0)
    for name, moves in (("scaffold", False), ("fedprox", True)):
        block = {"name": name, "participants": 4, "local": LOCAL, **({"mu": 0.0} if moves else {})}
        run = fedsim.run({**BASE, "strategy": block, "stop": {"rounds": 1}}, out=tmp_path)
        assert column(run, "clients_seen") == [4]
        assert len(column(run, "drift")) == len(column(run, "agreement")) == moves


def test_what_stands_behind_the_weights_moves_nobody():
    """A counter of batches goes on by a hundred wherever a client goes; it would drown how far that is."""
    cohorts = Cohorts(np.ones((2, 2), dtype=np.int64), weights=2)
    found = said(
        cohorts, Deferred.known(torch.zeros(3)), [reply(0, 3.0, 4.0, 100.0), reply(1, -3.0, 4.0, 90.0)]
    )
    assert (found["drift"], found["agreement"]) == (5.0, pytest.approx(4 / 5))


def test_a_run_counts_the_weights_alone(tmp_path):
    extra = {"mu": 0.0, "participants": 1}
    given_ = buffered("fedprox", extra=extra, local={"epochs": 10}, record={"report": False, "cohorts": True})
    given_["data"]["clients"] = 1
    run = fedsim.run({**given_, "stop": {"rounds": 1}}, out=tmp_path)
    start = prepare(fedsim.load(given_)).learner.initial.value().numpy()[:SENT]
    end = np.concatenate([run.weights()[name].reshape(-1) for name in ("layer.weight", "layer.bias")])
    assert run.weights()["batches"] == 30  # 10 passes over 8 samples by threes
    assert column(run, "drift") == [pytest.approx(np.linalg.norm(end - start))]


def test_what_is_not_there_is_not_said():
    cohorts = Cohorts(np.zeros((2, 0), dtype=np.int64))  # no classes
    assert set(said(cohorts, Deferred.phantom(), [reply(0, 1.0)])) == {"clients_seen", "clients_lately"}
    assert said(cohorts, Deferred.phantom(), []) == {"clients_seen": 1, "clients_lately": 1}


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any))
def test_effective_labels_lie_between_one_and_those_that_are_there(counts):
    found = effective(np.array(counts))
    there = sum(count > 0 for count in counts)
    assert 1 - 1e-9 <= found <= there + 1e-9
    assert found == pytest.approx(effective(3 * np.array(counts[::-1])))  # neither order nor size counts
    if len({count for count in counts if count}) == 1:
        assert found == pytest.approx(there)


BASE = {
    "data": {"clients": 8, "partition": {"name": "shards", "labels_per_client": 2}},
    "model": "softmax",
    "stop": {"rounds": 4},
    "record": {"report": False, "cohorts": True},
}
LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.1}
PROX = {"name": "fedprox", "mu": 0.0, "participants": 4, "local": LOCAL}


def strategy(**select):
    return {
        **PROX,
        "select": {"name": "curriculum", "rounds": 9, "a": 9.0, "pacing": "step", "b": 0.25, **select},
    }


def column(result, name):
    table = read(result.path, "metrics")
    return table["value"][table["name"] == name].tolist()


def test_a_run_says_whom_it_has_learned_from_and_is_the_same_without(tmp_path):
    all_of_them = fedsim.run({**BASE, "strategy": strategy(order="vanilla")}, out=tmp_path)
    # Eight clients by four; the ten labels are as frequent as they can be, some 144 samples of each.
    assert column(all_of_them, "clients_seen") == [4, 8, 8, 8]
    assert 9.9 < column(all_of_them, "labels_lately")[-1] <= 10
    few = fedsim.run({**BASE, "strategy": strategy(order="random", redrawn=False)}, out=tmp_path)
    assert column(few, "clients_seen") == [2] * 4  # a quarter of them, always the same
    assert max(column(few, "labels_lately")) < 4.1
    assert all(drift > 0 for drift in column(few, "drift"))
    assert all(0 < share <= 1 for share in column(few, "agreement"))
    plain = {**BASE, "record": {"report": False}, "strategy": strategy(order="vanilla")}
    without = fedsim.run(plain, out=tmp_path / "without")
    assert set(NAMES).isdisjoint(read(without.path, "metrics")["name"].tolist())
    assert without.summary["run_hash"] == all_of_them.summary["run_hash"]


def test_time_alone_knows_clients_and_labels(tmp_path):
    given_ = {**BASE, "strategy": strategy(order="random")}
    full, dry = (fedsim.run(given_, out=tmp_path, timing_only=dry) for dry in (False, True))
    for name in ("clients_seen", "clients_lately", "labels_lately"):
        assert column(full, name) == column(dry, name)
    assert column(dry, "drift") == []


def test_a_run_that_goes_on_says_the_same(tmp_path):
    given_ = {**BASE, "strategy": {**PROX, "participants": 3}, "stop": {"rounds": 6}}
    given_["record"] = {**BASE["record"], "checkpoint": {"every_rounds": 2}}
    whole = fedsim.run(given_, out=tmp_path / "whole")

    def stop(now):
        if now.round == 3:
            raise fedsim.RunError("as if killed")

    with pytest.raises(fedsim.RunError):
        fedsim.run(given_, out=tmp_path / "again", progress=stop)
    [folder] = (tmp_path / "again").iterdir()
    again = fedsim.resume(folder)
    assert again.summary["run_hash"] == whole.summary["run_hash"]
    for name in NAMES:
        assert column(again, name) == column(whole, name)
        assert len(column(again, name)) == 6


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "dpsgd", "local": LOCAL},
        {"name": "fedavg", "fraction_evaluate": 0.0},
        {"name": "centralised", "participants": 2, "local": LOCAL},
    ],
    ids=lambda one: one["name"],
)
def test_where_there_is_no_cohort_it_is_refused(strategy):
    with pytest.raises(ConfigError, match=r"record\.cohorts: true: counts whom the server of one of our own"):
        fedsim.check({**BASE, "strategy": strategy})
