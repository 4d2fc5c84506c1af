"""Gossip learning: merges by age, periods, and two nodes followed message by message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, LR, drive, experiment, gradient, initial, spread, step

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD
from fedsim.record.store import read
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from strategies.peer.gossip import AGE_BYTES, Aged

ages = st.integers(0, 10**6)


def aged(value, age):
    return Aged(Deferred.known(torch.tensor([float(value)], dtype=torch.float64)), age)


def test_merging_by_hand():
    merged = aged(1.0, 2).merge(aged(5.0, 6))
    assert (float(merged.model.value()), merged.age) == (4.0, 6)  # (2 x 1 + 6 x 5) / 8
    assert float(aged(1.0, 0).merge(aged(5.0, 0)).model.value()) == 3.0
    assert (
        float(aged(1.0, 0).merge(aged(5.0, 1)).model.value()) == 5.0
    )  # what nobody has trained has nothing to say


@settings(max_examples=50, deadline=None)
@given(a=ages, b=ages)
def test_a_merge_lies_between_and_does_not_care_for_the_order(a, b):
    one, two = aged(1.0, a).merge(aged(5.0, b)), aged(5.0, b).merge(aged(1.0, a))
    value = float(one.model.value())
    assert 1.0 <= value <= 5.0
    assert value == pytest.approx(float(two.model.value()))
    assert one.age == two.age == max(a, b)
    assert value == pytest.approx((a + 5 * b) / (a + b) if a + b else 3.0)


def phases(n, period_s):
    return [period_s * float(stream(0, "gossip phase", node).random()) for node in range(n)]


def test_two_nodes_message_by_message(tmp_path):
    """The first message merges two models of age 0, trains, and its answer finds an older model than its own."""
    done = drive(experiment("gossip", 2, params={"period_s": 10.0}), tmp_path)
    start, order = initial(done.setup), np.argsort(phases(2, 10.0))
    early, late = (int(node) for node in order)
    held, age = dict(enumerate(start)), {0: 0, 1: 0}
    for sender, receiver in ((early, late), (late, early)):
        shares = [age[receiver], age[sender]] if age[0] + age[1] else [1, 1]
        merged = (shares[0] * held[receiver] + shares[1] * held[sender]) / sum(shares)
        held[receiver] = merged - LR * gradient(done.setup, receiver, merged)
        age[receiver] = max(age.values()) + 1
    assert np.abs(done.models - np.stack([held[0], held[1]])).max() < 1e-14


@pytest.mark.parametrize("curriculum", [None, {"score": "global", "b": 1.0}])
def test_who_has_more_samples_makes_an_older_model(curriculum, tmp_path):
    """Two nodes of different size; by age in samples, what the large one has learned weighs more.

    A curriculum that always takes all samples changes nothing: scoring them is work, and makes no model older.
    """
    local = {"steps": 1, "batch_size": None, "lr": LR, "curriculum": curriculum}
    given = experiment("gossip", 2, params={"period_s": 10.0}, rounds=2, local=local)
    given["data"] |= {"samples": 10, "partition": {"name": "quantity", "sigma": 1.0}}
    done = drive(given, tmp_path)
    sizes = done.setup.learner.sizes
    assert sizes[0] != sizes[1]
    early, late = np.argsort(phases(2, 10.0)).tolist()
    held, age = dict(enumerate(initial(done.setup))), {0: 0, 1: 0}
    for sender, receiver in ((early, late), (late, early)) * 2:
        weights = [age[receiver], age[sender]] if any(age.values()) else [1, 1]
        merged = np.average([held[receiver], held[sender]], axis=0, weights=weights)
        held[receiver] = merged - LR * gradient(done.setup, receiver, merged)
        age[receiver] = max(age.values()) + sizes[receiver]
    assert np.abs(done.models - np.stack([held[0], held[1]])).max() < 1e-14


def test_every_node_sends_once_in_a_period(tmp_path):
    done = drive(experiment("gossip", 6, "ring", rounds=5, params={"period_s": 7.0}), tmp_path)
    assert done.sent == [5 * (2 * 8 + AGE_BYTES + HEADER)] * 6
    assert done.run.world.clock.now_s == pytest.approx(max(phases(6, 7.0)) + 5 * 7.0, abs=1e-5)
    assert done.run.world.totals()["work"] == 6 * 5 * 4  # every message is trained on


def test_without_training_everybody_comes_together_inside_the_hull(tmp_path):
    starts = spread(6)
    done = drive(experiment("gossip", 6, rounds=60), tmp_path, starts, stay=True)
    assert np.abs(done.models - done.models.mean(0)).max() < 1e-3
    assert (done.models >= starts.min(0) - 1e-12).all()
    assert (done.models <= starts.max(0) + 1e-12).all()


def test_messages_only_go_to_neighbours(tmp_path):
    done = drive(experiment("gossip", 6, "ring", rounds=10), tmp_path)
    assert {tuple(sorted(link)) for link in done.run.world.network.links} <= {
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (0, 5),
    }


def test_a_crashed_node_holds_nobody_up(tmp_path):
    faults = [{"name": "crash", "at_s": 15.0, "nodes": [0]}]
    done = drive(experiment("gossip", 4, rounds=6, params={"period_s": 10.0}, faults=faults), tmp_path)
    assert done.run.world.clock.now_s < 71
    assert done.lost > 0
    assert [done.run.peers[i].finished for i in (1, 2, 3)] == [6, 6, 6]


def test_long_periods_are_no_standstill(tmp_path):
    done = drive(experiment("gossip", 3, rounds=3, params={"period_s": 5000.0}), tmp_path)
    assert done.run.world.clock.now_s > 15_000


def test_a_node_alone_trains_its_own_model_once_in_a_period(tmp_path):
    """One client, or one whom no link leads to: a model that walks has nowhere else to go."""
    alone = drive(experiment("gossip", 1, rounds=3), tmp_path)
    apart = drive(experiment("gossip", 2, "empty", rounds=3, network={"overlay": True}), tmp_path)
    for done in (alone, apart):
        models = initial(done.setup)
        for _ in range(3):
            models = step(done.setup, models)
        assert np.abs(done.models - models).max() < 1e-14
        assert done.run.updates == 3 * len(models)
        assert sum(done.sent) == 0


def test_two_trainings_in_a_round_draw_batches_of_their_own(tmp_path):
    """Every message arrives twice, and so each node trains twice in its first period, each time with one sample."""
    local = {"steps": 1, "batch_size": 1, "lr": LR}
    twice = [{"name": "message_duplication", "probability": 1.0}]
    done = drive(experiment("gossip", 2, params={"period_s": 10.0}, local=local, faults=twice), tmp_path)
    data, owned = done.setup.learner.engine.data, done.setup.owned
    held, age = dict(enumerate(initial(done.setup))), {0: 0, 1: 0}
    early, late = np.argsort(phases(2, 10.0)).tolist()
    drawn = {}
    for sender, receiver in ((early, late), (late, early)):
        sent, old = held[sender], age[sender]
        for purpose in ("batches", "batches 2"):
            weights = [age[receiver], old] if age[receiver] + old else [1, 1]
            w = np.average([held[receiver], sent], axis=0, weights=weights)
            [[one]] = LocalSGD(Local(**local)).batches(4, stream(0, purpose, receiver, 1))
            a, b = (part[owned[receiver][one]].numpy().reshape(-1) for part in (data.x, data.y))
            held[receiver] = w - LR * a * (a @ w - b)
            age[receiver] = max(age[receiver], old) + 1
            drawn[receiver, purpose] = one
    assert any(drawn[node, "batches"] != drawn[node, "batches 2"] for node in (0, 1))
    assert np.abs(done.models - np.stack([held[0], held[1]])).max() < 1e-14
    assert done.run.updates == 4


def test_updates_are_trainings_and_rounds_are_periods(tmp_path):
    """Of 10 nodes' messages in 10 periods most are lost: as many trainings as the rest, none of them later."""
    given = experiment(
        "gossip", 10, rounds=10, params={"period_s": 5.0}, record={"events": True, "report": False}
    )
    given["faults"] = [{"name": "message_loss", "probability": 0.6}]
    path = api.run(given, out=tmp_path).path
    rounds, events = read(path, "rounds"), read(path, "events")
    kinds = events["kind"].tolist()
    assert kinds.count("send") == 100
    assert 20 < kinds.count("deliver") == kinds.count("done") < 60
    done = [kind == "done" for kind in kinds]
    for row, time_us in enumerate(rounds["time_us"]):
        assert rounds["clients"][row] == sum(
            one and at <= time_us for one, at in zip(done, events["time_us"])
        )
    assert {*events["round"][done].tolist()} <= {*range(1, 11)}


def test_bad_period():
    with pytest.raises(ConfigError, match=r"strategy.period_s: 0: "):
        api.check(experiment("gossip", 4, params={"period_s": 0}))
