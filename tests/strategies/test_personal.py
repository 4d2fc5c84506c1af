"""Methods that give each client a model of its own, by hand in NumPy on least squares, and what is measured of that."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.build import build
from fedsim.learn.data.datasets import Dataset
from fedsim.record import read
from fedsim.running.build import prepare
from fedsim.spec.experiment import load

LR, MOMENTUM, DECAY, STEPS, ROUNDS, TUNED = 0.05, 0.5, 0.1, 2, 3, 4
LOCAL = {"steps": STEPS, "batch_size": None, "lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
CLIENTS = 3
BODY, HEAD = np.arange(6) < 3, np.arange(6) >= 3


class Halves(nn.Module):
    """A linear function of six numbers, whose weights are in two layers."""

    def __init__(self):
        super().__init__()
        self.body, self.head = (nn.Linear(3, 1, bias=False) for _ in range(2))

    def forward(self, x):
        return (self.body(x[:, :3]) + self.head(x[:, 3:])).squeeze(-1)


def given(name: str, **changes: Any) -> dict[str, Any]:
    own = {"local": LOCAL, "participants": CLIENTS}
    made: dict[str, Any] = {
        "seed": 3,
        "data": {
            "name": "quadratic",
            "dimension": 6,
            "samples": 10,
            "clients": CLIENTS,
            "partition": "natural",
            "client_test_share": 0.3,
        },
        "model": f"{__name__}:Halves",
        "strategy": {"name": name, **own, **changes.pop("strategy", {})},
        "evaluate": {"personal": TUNED},
        "stop": {"rounds": ROUNDS},
        "compute": {"dtype": "float64", "device": "cpu"},
        "record": {"report": False},
    }
    return {**made, **changes}


class Lab:
    """The same clients in NumPy."""

    def __init__(self):
        learner, _, owned = build(load(given("fedper")))
        x, y = learner.engine.data.x.numpy(), learner.engine.data.y.numpy()
        self.train = [(x[own], y[own]) for own in owned]
        self.test = [(x[own.numpy()], y[own.numpy()]) for own in learner.tests]
        self.start = learner.engine.task.initial.numpy()
        self.sizes = np.array([len(own) for own in owned], dtype=float)

    def walk(self, client, weights, steps, moving=(True,), toward=None, lam=0.0):
        """Take steps with momentum and weight decay, afresh for each call; only some weights move in each phase."""
        a, b = self.train[client]
        velocity = np.zeros(6)
        for which in moving:
            for _ in range(steps[which] if isinstance(steps, dict) else steps):
                slope = a.T @ (a @ weights - b) / len(b) + DECAY * weights
                slope = slope + (lam * (weights - toward) if lam else 0.0)
                mask = {"head": HEAD, "body": BODY}.get(which, np.ones(6))
                velocity = MOMENTUM * velocity + mask * slope
                weights = weights - LR * mask * velocity
        return weights

    def loss(self, client, weights):
        a, b = self.test[client]
        return 0.5 * np.mean((a @ weights - b) ** 2)

    def mean(self, vectors):
        return self.sizes @ np.array(vectors) / self.sizes.sum()


@cache
def lab() -> Lab:
    return Lab()


def fedper():
    one = lab()
    shared, heads = one.start, [one.start] * CLIENTS
    for _ in range(ROUNDS):
        heads = [one.walk(i, np.where(HEAD, own, shared), STEPS) for i, own in enumerate(heads)]
        shared = one.mean(heads)
    return shared, [np.where(HEAD, own, shared) for own in heads]


def fedrep():
    one = lab()
    shared, heads, steps = one.start, [one.start] * CLIENTS, {"head": 3, "body": STEPS}
    for _ in range(ROUNDS):
        begin = [np.where(HEAD, own, shared) for own in heads]
        heads = [one.walk(i, own, steps, ("head", "body")) for i, own in enumerate(begin)]
        shared = one.mean(heads)
    return shared, [np.where(HEAD, own, shared) for own in heads]


def ditto():
    one = lab()
    shared, own = one.start, [one.start] * CLIENTS
    for _ in range(ROUNDS):
        own = [one.walk(i, v, STEPS, toward=shared, lam=0.7) for i, v in enumerate(own)]
        shared = one.mean([one.walk(i, shared, STEPS) for i in range(CLIENTS)])
    return shared, own


def fedavg():
    one, shared = lab(), lab().start
    for _ in range(ROUNDS):
        shared = one.mean([one.walk(i, shared, STEPS) for i in range(CLIENTS)])
    return shared, [shared] * CLIENTS


def finetune():
    shared, own = fedavg()
    return shared, [lab().walk(i, v, 5) for i, v in enumerate(own)]


def local_only():
    own = [lab().start] * CLIENTS
    for _ in range(ROUNDS):
        own = [lab().walk(i, v, STEPS) for i, v in enumerate(own)]
    return np.mean(own, 0), own


METHODS = {
    "fedper": (fedper, {}),
    "fedrep": (fedrep, {"head_steps": 3, "kept": ["head.weight"]}),
    "ditto": (ditto, {"lam": 0.7}),
    "finetune": (finetune, {"steps": 5}),
    "strategies.server.fedavg:FedAvg": (fedavg, {}),
    "local_only": (local_only, {}),
}


def asked(name, **changes):
    made = given(name, strategy=METHODS[name][1], **changes)
    if name == "local_only":
        del made["strategy"]["participants"]
        made["topology"] = "complete"
    return made


def scores(result, name, round=ROUNDS):
    table = read(result.path, "metrics")
    at = (table["name"] == name) & (table["round"] == round) & (table["node"] >= 0)
    return table["value"][at]


@pytest.mark.parametrize("engine", ["sequential", "lean", "stacked"])
@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_are_those_of_numpy(name, engine, tmp_path):
    made = asked(name)
    made["compute"]["engine"] = engine
    result = fedsim.run(made, out=tmp_path)
    shared, own = METHODS[name][0]()
    weights = result.weights()
    kept = name in ("fedper", "fedrep")  # of what clients keep, the mean is saved
    wanted = np.where(HEAD, np.mean(own, 0), shared) if kept else shared
    found = np.concatenate([weights["body.weight"].ravel(), weights["head.weight"].ravel()])
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    before = [lab().loss(i, v) for i, v in enumerate(own)]
    after = [lab().loss(i, lab().walk(i, v, TUNED)) for i, v in enumerate(own)]
    assert len({round(loss, 6) for loss in (*before, *after)}) == 6
    np.testing.assert_allclose(scores(result, "personal_loss"), before, atol=1e-12)
    np.testing.assert_allclose(scores(result, "tuned_loss"), after, atol=1e-12)
    summary = result.summary
    assert summary["personal_loss_mean"] == pytest.approx(np.mean(before))
    assert summary["personal_loss_worst_decile"] == pytest.approx(max(before))
    apart = np.abs(np.subtract.outer(after, after)).sum()
    assert summary["tuned_loss_gini"] == pytest.approx(apart / (2 * 9 * np.mean(after)))


def test_work_and_bytes_are_those_of_the_papers(tmp_path):
    names = ("strategies.server.fedavg:FedAvg", "fedper", "fedrep", "ditto")
    runs = {name: fedsim.run(asked(name), out=tmp_path, timing_only=True).summary for name in names}
    plain, *others = runs.values()
    # 7 samples a client and step: as many gradients, three more steps for the head, or two gradients for each step
    work = {name: one["work_samples"] / (7 * CLIENTS * ROUNDS) for name, one in runs.items()}
    assert list(work.values()) == [STEPS, STEPS, STEPS + 3, 2 * STEPS]
    head = len("head.weight") + 128 + 8 * 3  # a name, NumPy's header, and three numbers
    saved = [(plain["bytes_up"] - one["bytes_up"]) / (2 * CLIENTS * ROUNDS) for one in others]
    assert saved == [head, head, 0]


@pytest.mark.parametrize("name", ["fedper", "ditto", "local_only"])
def test_measuring_changes_nothing(name, tmp_path):
    plain, measured = (fedsim.run(asked(name, evaluate={"personal": n}), out=tmp_path) for n in (None, 2))
    for key in ("weights_hash", "event_hash", "work_samples", "client_loss"):
        assert plain.summary[key] == measured.summary[key], key
    assert "personal_loss_mean" not in plain.summary
    jobs = [read(one.path, "jobs") for one in (plain, measured)]
    assert [one["identity"].tolist() for one in jobs[:1]] == [one["identity"].tolist() for one in jobs[1:]]


def test_without_steps_nothing_is_tuned(tmp_path):
    result = fedsim.run(asked("fedper", evaluate={"personal": 0}), out=tmp_path)
    assert scores(result, "personal_loss").tolist() == scores(result, "tuned_loss").tolist()


def test_who_has_never_been_asked_has_what_was_there_at_the_start(tmp_path):
    changes = {"strategy": {"participants": 1, "select": "round_robin"}, "stop": {"rounds": 1}}
    found = {}
    for name in ("fedper", "ditto"):
        result = fedsim.run(given(name, **changes), out=tmp_path)
        found[name] = scores(result, "personal_loss", 1), result.weights()
    one = lab()
    first = one.walk(0, one.start, STEPS)  # everybody's, as nobody else was asked
    shared = np.where(HEAD, one.start, first)
    np.testing.assert_allclose(
        found["fedper"][0], [one.loss(0, first), *(one.loss(i, shared) for i in (1, 2))]
    )
    np.testing.assert_allclose(found["ditto"][0][1:], [one.loss(i, first) for i in (1, 2)])


class Stop(fedsim.RunError):
    """Ends a run from inside, as a kill would."""


@pytest.mark.parametrize("name", ["fedrep", "ditto"])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(name, tmp_path):
    churn = {"name": "exponential", "online_s": 3, "offline_s": 2}
    changes = {"churn": churn, "stop": {"rounds": 6}, "network": {"detect_s": 1}}
    made = asked(name, **changes)
    made["record"]["checkpoint"] = {"every_rounds": 2}
    whole = fedsim.run(made, out=tmp_path / "whole")

    def progress(now):
        if now.round == 5:
            raise Stop("as if killed")

    with pytest.raises(Stop):
        fedsim.run(made, out=tmp_path / "killed", progress=progress)
    [folder] = (tmp_path / "killed").iterdir()
    found = fedsim.resume(folder)
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    for key in ("personal_loss", "tuned_loss"):
        assert scores(found, key, 6).tolist() == scores(whole, key, 6).tolist()


@pytest.mark.slow
def test_a_store_and_runs_that_advance_together_give_the_same(tmp_path):
    methods = {
        name: {"strategy": made["strategy"]}
        for name in METHODS
        if "local" not in name and (made := asked(name))
    }
    study = {"base": asked("fedper"), "methods": methods}
    alone = fedsim.sweep(study, out=tmp_path / "alone")
    together = fedsim.sweep(study, out=tmp_path / "together", jobs=9, together=True)
    hashes = [[(one.status, one.summary["run_hash"]) for one in found] for found in (alone, together)]
    assert hashes[0] == hashes[1]
    assert {status for status, _ in hashes[0]} == {"done"}
    first, again = (
        fedsim.run(asked("ditto"), out=tmp_path, store=tmp_path / "store").summary for _ in range(2)
    )
    assert (first["jobs_reused"], again["jobs"]) == (0, 0)
    assert first["personal_loss_mean"] == again["personal_loss_mean"]


def normed(name, held, **own):
    """Return three clients with batch normalisation between two layers, and a short batch at the end of a pass."""
    local = {"epochs": 1, "batch_size": 4, "lr": 0.1}
    return {
        **given(name),
        "data": {"name": "tests.learn.odd_models:points", "clients": 3, "client_test_share": 0.25},
        "model": "tests.learn.odd_models:batch_norm",
        "strategy": {"name": name, "participants": 3, "buffers": held, "local": local, **own},
    }


def test_keeping_batch_normalisation_is_fedbn(tmp_path):
    asked = (
        normed("strategies.server.fedavg:FedAvg", "fedbn"),
        normed("fedper", "local", kept=["between"]),
    )
    fedbn, kept = (fedsim.run(one, out=tmp_path).summary for one in asked)
    assert abs(fedbn["accuracy"] - kept["accuracy"]) < 1e-9
    for key in ("bytes_up", "event_hash"):
        assert fedbn[key] == kept[key], key
    for key in ("client_loss", "personal_loss_mean", "tuned_loss_mean", "loss"):
        assert fedbn[key] == pytest.approx(kept[key], abs=1e-12), key


@pytest.mark.parametrize("held", ["average", "local", "server", "fedbn"])
def test_a_model_with_buffers_can_stay_in_part(held, tmp_path):
    made = [
        {**normed("fedper", held, kept=["last"]), "compute": {"dtype": "float64", "engine": one}}
        for one in ("lean", "stacked")
    ]
    lean, stacked = (fedsim.run(one, out=tmp_path).summary for one in made)
    for key in ("client_loss", "personal_loss_mean", "tuned_loss_mean", "loss"):
        assert lean[key] == pytest.approx(stacked[key], abs=1e-9), key
    assert lean["personal_loss_mean"] == lean["client_loss"]
    task = prepare(load(made[0])).learner.engine.task
    assert set(task.mine) == {"last.weight", "last.bias"} | (
        {"between.weight", "between.bias"} & set(task.norms)
    )
    sent = [name for name, _ in task.sent]
    assert ("between.running_mean" in sent) == (held == "average")
    assert ("between.weight" in sent) == (held != "fedbn")


def test_the_data_set_may_have_a_test_for_each_client(tmp_path):
    made = given("ditto")
    made["data"] = {"name": "synthetic", "clients": 4, "partition": "natural", "max_samples": 60}
    made |= {"model": "softmax", "stop": {"rounds": 2}}
    result = fedsim.run(made, out=tmp_path)
    setup = prepare(load(made))
    data, tests = setup.dataset, setup.learner.tests
    assert [set(data.test_groups[own.numpy()].tolist()) for own in tests] == [{0}, {1}, {2}, {3}]
    assert sum(map(len, tests)) == len(data.y_test)
    assert len(scores(result, "tuned_accuracy", 2)) == 4
    assert sum(map(len, setup.owned)) == len(data.y)  # nothing of the training samples is held out


def test_memory_counts_the_model_of_a_clients_own(tmp_path):
    made = {**asked("ditto"), "devices": {"memory_mb": 1.0}}
    need = {}
    for name in ("strategies.server.fedavg:FedAvg", "ditto", "fedrep"):
        need[name] = max(prepare(load({**made, "strategy": asked(name)["strategy"]})).needs_mb)
    one = 6 * 8 / 1e6  # a vector of six numbers
    plain, ditto, fedrep = need.values()
    # beside weights and momentum: v, its momentum, the w that it is held near, and the numbers lr, loss and steps
    assert ditto - plain == pytest.approx(3 * one + 3 * 8 / 1e6)
    assert fedrep - plain == pytest.approx(one)  # where the head is


ALONE = {"name": "softmax"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.client_test_share": 0},
            "evaluate.personal: 4: is measured on what clients have held out, and they",
        ),
        ({"evaluate.personal": -1}, "evaluate.personal: -1: must be at least 0"),
        (
            {"strategy.kept": ["hed"]},
            "strategy.kept: hed: is no part of the model that is trained; did you mean head",
        ),
        ({"strategy.kept": ["zzz"]}, "strategy.kept: zzz: is no part .*; .*body, head"),
        ({"strategy.kept": ["hea"]}, "strategy.kept: hea: is no part"),
        (
            {"strategy.kept": ["head", "body"]},
            "strategy.kept: .*leaves nothing of the model to be shared; name less",
        ),
        ({"strategy.kept": []}, r"strategy.kept: \[\]: must name at least one part"),
        ({"model": "linear"}, "strategy.kept: 1, the last layer, is all of the model"),
        (
            {"strategy.around": [{"name": "top_k", "share": 0.5}]},
            "strategy.around: changes what clients send",
        ),
        (
            {"strategy.local.curriculum": {"score": "local"}},
            "strategy.kept: clients of fedper keep whole models",
        ),
        ({"strategy.name": "ditto", "strategy.lam": -1}, "strategy.lam: -1: must be at least 0"),
        ({"strategy.name": "fedrep", "strategy.head_steps": 0}, "strategy.head_steps: 0: must be at least 1"),
        (
            {"strategy.name": "fedrep", "strategy.local.optimizer": "adam", "strategy.local.momentum": 0},
            "local.optimizer: adam: this strategy's clients make steps of their own",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        fedsim.check(given("fedper"), overrides=changes)
    assert len(str(caught.value).splitlines()) == 1


def test_a_client_without_a_test_of_its_own_is_named():
    made = given("fedper", model="mlp")
    made["data"] = {"name": f"{__name__}:lonely", "clients": 3, "partition": "natural"}
    with pytest.raises(
        ConfigError, match=r"evaluate.personal: 4: .*no sample of clients \[1, 2\]; set data.client_test"
    ):
        fedsim.check(made)
    made["data"]["partition"] = "iid"  # one group's samples lie with several clients
    with pytest.raises(ConfigError, match=r"evaluate.personal: 4: .*held out nothing"):
        fedsim.check(made)


def lonely(*, clients, seed):
    x, y = torch.eye(9), torch.arange(9) % 2
    groups = np.repeat(np.arange(3), 3)
    return Dataset("lonely", x, y, x[:2], y[:2], 2, groups, test_groups=np.array([0, -1]))


def test_two_models_cannot_share_buffers():
    with pytest.raises(
        ConfigError, match=r"strategy.name: ditto: clients of ditto have two models, and .*GroupNorm"
    ):
        fedsim.check(normed("ditto", "average"))
