"""FedAMD in whole runs: convergence, roles, costs, parameters, and what Flower sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fedamd_lab import (
    Lab,
    close,
    golden,
    gradients,
    job,
    learner,
    scalars,
)
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedsim import api
from fedsim.errors import BadValue, ConfigError
from fedsim.flower import compat
from fedsim.flower.cohort import draw
from fedsim.flower.records import pack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.learn.deferred import Deferred
from fedsim.rng import stream
from fedsim.running.build import prepare
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local, load
from strategies.fedamd.fedamd import Anchor, FedAMD, Miner


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


# convergence


def test_fedamd_property_12_linear_convergence(tmp_path):
    given = {
        "data": {
            "name": "quadratic",
            "clients": 6,
            "dimension": 7,
            "samples": 12,
            "conditioning": 1.5,
            "partition": "natural",
        },
        "model": "linear",
        "strategy": {
            "name": "fedamd",
            "participants": 3,
            "p": 0.5,
            "local": {"steps": 3, "batch_size": 3, "lr": 0.02},
        },
        "stop": {"rounds": 500},
        "evaluate": {"every": 250},
        "compute": {"dtype": "float64"},
        "record": {"report": False, "events": False},
    }
    setup = prepare(load(given))
    optimum, start = setup.dataset.optimum.numpy(), setup.learner.initial.value().numpy()
    assert np.linalg.norm(start - optimum) > 0.1
    result = api.run(given, out=tmp_path)
    assert result.summary["rounds"] == 500
    assert np.linalg.norm(result.weights()["1.weight"][0] - optimum) < 1e-8
    best = float(setup.learner.evaluate(Deferred.known(setup.dataset.optimum)).value()["loss"])
    gaps = result.metrics()["loss"] - best  # after 0, 250 and 500 rounds
    assert gaps[1] < 1e-4 * gaps[0]
    assert gaps[2] < 1e-14 * gaps[0]


# roles


def test_fedamd_property_16_roles_are_independent_coins():
    strategy = FedAMD(participants=4, local=Local(steps=2), p=0.3)
    coins = np.array([[strategy.is_anchor(t, node) for node in range(4)] for t in range(1, 3001)])
    counts = coins.sum(1)
    for k in range(5):
        wanted = math.comb(4, k) * 0.3**k * 0.7 ** (4 - k)
        deviation = math.sqrt(wanted * (1 - wanted) / 3000)
        assert abs((counts == k).mean() - wanted) < 4 * deviation
    assert np.abs(np.corrcoef(coins.T) - np.eye(4)).max() < 0.08
    assert abs(np.corrcoef(coins[1:, 0], coins[:-1, 0])[0, 1]) < 0.08


@pytest.mark.parametrize(("first", "rounds"), [("anchors", [1, 4, 7, 10]), ("miners", [3, 6, 9, 12])])
def test_fedamd_property_16_the_sequential_schedule_is_unanimous(first, rounds):
    strategy = FedAMD(participants=3, local=Local(steps=2), period=3, first=first)
    found = [t for t in range(1, 13) if strategy.is_anchor(t, 0)]
    assert found == rounds
    assert all(
        strategy.is_anchor(t, 0) == strategy.is_anchor(t, node) for t in range(1, 13) for node in (1, 2)
    )


def test_the_schedule_p_is_one_half_unless_given():
    assert FedAMD(participants=1, local=Local(steps=1)).p == 0.5
    assert FedAMD(participants=1, local=Local(steps=1), p=0.0).p == 0.0


# costs


@pytest.mark.parametrize(
    "schedule", [{"p": 0.5}, {"p": 0.0}, {"p": 1.0}, {"period": 2}, {"period": 2, "first": "miners"}]
)
@pytest.mark.parametrize("large_batch", [None, 40])
def test_fedamd_property_17_counters(schedule, large_batch, tmp_path):
    M, A, T, K, b, width = 8, 4, 6, 3, large_batch, 16
    given = {
        "seed": 3,
        "data": {"clients": M},
        "model": "softmax",
        "strategy": {
            "name": "fedamd",
            "participants": A,
            "local": {"steps": K, "batch_size": width},
            **schedule,
            **({"large_batch": b} if b else {}),
        },
        "stop": {"rounds": T},
        "record": {"report": False},
    }
    summary = api.run(given, out=tmp_path, timing_only=True).summary
    setup = prepare(load(given))
    sizes = [len(own) for own in setup.owned]
    large = [min(b or size, size) for size in sizes]
    gradients, anchors, miners = sum(large), 0, 0
    for t in range(1, T + 1):
        for node in draw(range(M), A, stream(3, "cohort", round=t)):
            if setup.strategy.is_anchor(t, node):
                anchors, gradients = anchors + 1, gradients + large[node]
            else:
                miners, gradients = miners + 1, gradients + 2 * (K - 1) * width
    assert anchors + miners == A * T
    assert summary["work_samples"] == gradients
    vector = (128 + 4 * 640) + (128 + 4 * 10) + len("1.weight") + len("1.bias")  # one packed vector
    instruction = 64 + len("arrays") + len("config") + len("server-round") + 8
    reply = 64 + len("arrays") + len("metrics") + len("num-examples") + 8 + len("train_loss") + 8
    down = (M + A * T) * (vector + instruction) + miners * (vector + len("anchor-mean"))
    up = (M + A * T) * (vector + reply)
    assert summary["bytes_up"] == summary["bytes_down"] == up + down
    assert summary["wasted_samples"] == 0


@pytest.mark.parametrize(
    ("samples", "steps", "width", "work"),
    [
        (100, 1, 8, 0),
        (100, 4, 8, 2 * 24),
        (20, 4, 8, 2 * 20),  # batches of 8, 8 and 4 are one pass
        (20, 6, 8, 2 * (20 + 16)),
        (5, 3, 8, 2 * 10),  # no more than there are
    ],
)
def test_the_work_of_a_miner_is_two_gradients_a_sample(samples, steps, width, work):
    miner = Miner(Local(steps=steps, batch_size=width))
    assert miner.work(samples) == work
    assert 2 * int((miner.batches(samples, stream(0, "x")) >= 0).sum()) == work


# anchors


@pytest.mark.parametrize(("samples", "large"), [(5, None), (5, 3), (5, 9), (300, None), (600, 257)])
def test_an_anchor_draws_its_batch_without_replacement(samples, large):
    anchor = Anchor(large)
    rows = anchor.batches(samples, stream(0, "x"))
    drawn = rows[rows >= 0]
    assert len(drawn) == len(set(drawn.tolist())) == anchor.work(samples) == min(large or samples, samples)
    assert drawn.max() < samples
    assert rows.shape[1] == anchor.width(samples) <= 256
    if (large or samples) < samples:
        again = anchor.batches(samples, stream(0, "x", round=1))
        assert set(again[again >= 0].tolist()) != set(drawn.tolist())


def test_an_anchor_sends_the_mean_gradient_and_loss_over_all_chunks():
    rng = stream(5, "anchor")
    lab = learner([(rng.standard_normal((600, 2)), rng.standard_normal(600))])
    anchor, weights = Anchor(), [0.3, -0.2]
    rows = anchor.batches(600, stream(0, "x"))
    assert rows.shape == (3, 256)
    sent = job(lab, anchor, 0, rows, arrays=weights)
    assert close(sent["arrays"], gradients(lab, weights)[0])
    residual = lab.engine.data.x @ torch.tensor(weights, dtype=torch.float64) - lab.engine.data.y
    assert close(sent["train_loss"], (0.5 * residual**2).mean())


# parameters


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"p": 0.5, "period": 2}, "strategy.period: 2: give p (constant schedule) or period (sequential)"),
        ({"participants": 9}, "strategy.participants: 9: at most 8, the number of clients"),
        ({"participants": 0}, "strategy.participants: 0: "),
        ({"p": 1.5}, "strategy.p: 1.5: "),
        ({"period": 0}, "strategy.period: 0: "),
        ({"large_batch": 0}, "strategy.large_batch: 0: "),
        ({"server_lr": 0.0}, "strategy.server_lr: 0.0: "),
        ({"first": "both"}, "strategy.first: both: "),
        (
            {"local": {"epochs": 1}},
            "strategy.local.steps: FedAMD counts local steps, not epochs; give local.steps",
        ),
        ({"local": {"steps": 2, "momentum": 0.9}}, "strategy.local.momentum: 0.9: FedAMD has neither"),
        (
            {"local": {"steps": 2, "weight_decay": 0.1}},
            "strategy.local.weight_decay: 0.1: FedAMD has neither",
        ),
        ({"tau": 2}, "strategy.tau: unknown key"),
        ({"local": {"steps": 0}}, "strategy.local.steps: 0: "),
        ({"halve_lr_at": [0]}, "strategy.halve_lr_at.0: 0: "),
        ({"caches": "cold"}, "strategy.caches: cold: "),
        ({"caches_at": "clients", "caches_on": "disk"}, "strategy.caches_on: disk: the server has no caches"),
    ],
)
def test_bad_parameters(params, line):
    block = {"name": "fedamd", "participants": 4, "local": {"steps": 2}, **params}
    with pytest.raises(ConfigError) as caught:
        api.check({"data": {"clients": 8}, "strategy": block, "stop": {"rounds": 1}})
    assert str(caught.value).startswith(line)


def test_participants_are_required():
    with pytest.raises(ConfigError, match=r"participants: is required"):
        api.check({"data": {"clients": 8}, "strategy": "fedamd", "stop": {"rounds": 1}})


def test_both_schedules_are_refused_in_code_too():
    with pytest.raises(BadValue, match="not both"):
        FedAMD(participants=1, local=Local(steps=1), p=0.5, period=2)


# what Flower sees


def test_metrics_of_a_round_count_the_roles():
    lab = Lab(scalars(), participants=[range(3)], anchors=[{1}])
    arrays = pack(lab.learner.initial, lab.learner.engine.task.layout, "float64")
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        messages = lab.strategy.configure_train(1, arrays, ConfigRecord(), lab.grid)
        _, metrics = lab.strategy.aggregate_train(1, lab.grid.send_and_receive(messages))
    assert metrics == {"anchors": 1, "miners": 2, "cached": 3, "cache_age": 2 / 3}  # the anchor's is new
    assert list(lab.strategy.configure_evaluate(1, arrays, ConfigRecord(), lab.grid)) == []
    assert lab.strategy.aggregate_evaluate(1, []) is None


def test_records_from_a_deployment_will_do():
    """Plain NumPy arrays in place of deferred ones, as real clients send them."""

    class Plain(BuiltinClients):
        def answer(self, client, message, sim_time_s):
            content = super().answer(client, message, sim_time_s)
            arrays = ArrayRecord({name: a for name, a in content["arrays"].items()})  # serialises
            return RecordDict({"arrays": arrays, "metrics": content["metrics"]})

    script = {"participants": [{0, 1}, {0, 2}, {1}], "anchors": [{0}, {2}, {1}]}
    lab = Lab(scalars(), **script, clients=Plain).run(3)
    assert [float(x) for x in lab.x] == [float(x) for x in golden().x]
