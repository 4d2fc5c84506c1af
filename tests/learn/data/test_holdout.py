"""Samples that nobody trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn.build import build
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.data.holdout import client_tests, own_tests, validation
from fedsim.learn.deferred import Deferred
from fedsim.record.store import read
from fedsim.spec.experiment import load

BASE = {
    "data": {"name": "digits", "clients": 4, "val_share": 0.25, "client_test_share": 0.2},
    "model": "softmax",
    "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
    "stop": {"rounds": 2},
    "record": {"report": False},
}


def numbered(n, groups=None):
    x = torch.arange(float(n))[:, None]
    y = torch.arange(n) % 2
    return Dataset("n", x, y, x[:2] - 9, y[:2], 2, groups, difficulty=np.arange(float(n)))


def test_a_validation_set_is_taken_from_each_class_of_the_training_samples():
    rest, seen = validation(numbered(16, np.arange(16) // 2), 0.25, seed=3)
    assert torch.equal(rest.x, seen.x)
    assert sorted(torch.cat([rest.x, seen.x_test]).flatten().tolist()) == list(range(16))
    assert seen.y_test.bincount().tolist() == [2, 2]
    assert rest.x_test.flatten().tolist() == [-9, -8]
    assert rest.difficulty.tolist() == rest.x.flatten().tolist()
    old = [int(sample) // 2 for sample in rest.x.flatten()]
    assert rest.groups.tolist() == [sorted(set(old)).index(group) for group in old]


def test_a_set_without_classes_is_divided_at_random():
    data = Dataset(
        "r", torch.zeros(8, 1), torch.arange(8.0), torch.zeros(1, 1), torch.zeros(1), 0, loss="half_square"
    )
    rest, seen = validation(data, 0.5, seed=0)
    assert (len(rest.y), len(seen.y_test)) == (4, 4)


def test_what_a_client_holds_out_depends_on_nobody_else():
    owned = [np.arange(10), np.arange(10, 13), np.arange(13, 30)]
    train, test = client_tests(owned, 0.3, seed=5)
    assert [len(own) for own in test] == [3, 1, 5]  # 3, 0.9 and 5.1, rounded
    for own, kept, held in zip(owned, train, test, strict=True):
        assert sorted([*kept, *held]) == own.tolist()
    alone = client_tests([owned[0][:4], owned[1]], 0.3, seed=5)
    assert alone[1][1].tolist() == test[1].tolist()


def test_a_validation_set_says_whose_its_samples_are():
    rest, seen = validation(numbered(16, np.arange(16) // 2), 0.25, seed=3)
    assert rest.test_groups is None
    old = {int(sample) // 2: group for sample, group in zip(rest.x.flatten(), rest.groups, strict=True)}
    wanted = [old.get(int(sample) // 2, -1) for sample in seen.x_test.flatten()]
    assert seen.test_groups.tolist() == wanted
    assert max(wanted) > -1


def test_a_client_is_tested_on_what_its_groups_have_in_the_test():
    whose = numbered(6, np.array([0, 0, 1, 1, 2, 2]))
    data = replace(whose, x_test=whose.x[:4], y_test=whose.y[:4], test_groups=np.array([2, 0, -1, 2]))
    split = [np.array([0, 1]), np.array([2, 3]), np.array([4, 5])]
    assert [own.tolist() for own in own_tests(data, split)] == [[1], [], [0, 3]]
    merged = [np.array([0, 1, 4, 5]), np.array([2, 3])]
    assert [own.tolist() for own in own_tests(data, merged)] == [[0, 1, 3], []]
    assert own_tests(data, [np.array([0, 2, 3]), np.array([1, 4, 5])]) == []  # both have some of group 0
    assert own_tests(whose, split) == []


def test_a_test_set_needs_a_group_for_each_sample():
    with pytest.raises(BadValue, match=r"test_groups: .*one group for each of the 2 test samples"):
        replace(numbered(4, np.arange(4)), test_groups=np.zeros(3, dtype=np.int64))


def test_a_client_without_a_sample_for_its_test_is_named():
    with pytest.raises(
        BadValue, match="client 1 has 1 sample, and needs one to train on and one for its test"
    ):
        client_tests([np.arange(2), np.array([2])], 0.2, seed=0)
    given = {**BASE, "data": {"name": "digits", "clients": 1400, "client_test_share": 0.5}}
    with pytest.raises(ConfigError, match=r"data.client_test_share: 0.5: client \d+ has 1 sample"):
        build(load(given))


@pytest.mark.parametrize("key", ["val_share", "client_test_share"])
def test_a_share_is_less_than_all(key):
    with pytest.raises(ConfigError, match=f"data.{key}: 1.0: must be less than 1"):
        load({**BASE, "data": {"clients": 4, key: 1.0}})


def test_nobody_trains_on_what_is_held_out():
    learner, dataset, owned = build(load(BASE))
    trained = np.concatenate(owned)
    own = np.concatenate([held.numpy() for held in learner.tests])
    assert not set(trained) & set(own)
    assert sorted([*trained, *own]) == list(range(len(dataset.y)))
    assert learner.sizes == [len(one) for one in owned]
    x_test, y_test = learner.final
    assert len(learner.y_test) == pytest.approx(0.25 * (len(dataset.y) + len(learner.y_test)), abs=5)
    assert torch.equal(dataset.x_test, learner.x_test)
    assert len(x_test) == len(y_test)
    assert not torch.equal(y_test, learner.y_test)


def test_scores_are_those_of_the_samples_that_they_name():
    learner, dataset, _ = build(load(BASE))
    model = learner.initial
    found = learner.evaluate_own(model, 2).value()
    rows = learner.tests[2]
    with torch.no_grad():
        outputs = learner.engine.task.predict(model.value(), dataset.x[rows])
    right = (outputs.argmax(1) == dataset.y[rows]).double().mean().item()
    assert found["accuracy"] == pytest.approx(right)
    x_test, y_test = learner.final
    with torch.no_grad():
        right = (
            (learner.engine.task.predict(model.value(), x_test).argmax(1) == y_test).double().mean().item()
        )
    assert learner.evaluate_final(model).value()["accuracy"] == pytest.approx(right)
    assert isinstance(model, Deferred)


@pytest.mark.parametrize("strategy", ["fedavg", "dpsgd"])
def test_a_run_looks_at_its_test_once_and_at_each_clients(tmp_path, strategy):
    given = {**BASE, "strategy": strategy, "topology": "star" if strategy == "fedavg" else "ring"}
    result = fedsim.run(given, out=tmp_path)
    metrics = read(result.path, "metrics")
    assert set(metrics["round"][metrics["name"] == "test_accuracy"].tolist()) == {2}
    mine = (metrics["name"] == "client_accuracy") & (metrics["round"] == 2)
    values = {int(n): v for n, v in zip(metrics["node"][mine], metrics["value"][mine], strict=True) if n >= 0}
    assert sorted(values) == [0, 1, 2, 3]
    assert result.summary["client_accuracy"] == pytest.approx(sum(values.values()) / 4)
    assert result.summary["client_accuracy_worst_decile"] == min(values.values())
    assert 0 < result.summary["test_accuracy"] <= 1
    dry = fedsim.run(given, out=tmp_path, timing_only=True)
    assert "test_accuracy" not in dry.summary
    assert dry.summary["event_hash"] == result.summary["event_hash"]
