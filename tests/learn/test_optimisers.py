"""Local optimisers, clipping and schedules: equal to torch's own, and followed by whoever has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn import build as learning
from fedsim.learn.local import LocalSGD
from fedsim.learn.optimisers import Optimiser, clipped, optimiser
from fedsim.learn.schedules import by_list, cosine, schedule
from fedsim.parts import call, find, names
from fedsim.spec.experiment import Local
from tests.learn import test_plain as plain


class Signs(Optimiser):
    """Somebody's own: signs of gradients."""

    def init(self, weights):
        return {}

    def step(self, direction, state, count):
        return direction.sign(), {}


def local(**changes):
    return Local.model_validate({"steps": 6, "batch_size": 3, "lr": 0.05, **changes})


TORCHS = {
    "adam": (torch.optim.Adam, {"beta1": 0.8, "eps": 1e-6}, {"betas": (0.8, 0.999), "eps": 1e-6}),
    "adamw": (torch.optim.AdamW, {"beta2": 0.9}, {"betas": (0.9, 0.9)}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9}, {"alpha": 0.9}),
    "sgd": (torch.optim.SGD, {}, {}),
}


@pytest.mark.parametrize("engine", ["lean", "stacked"])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("name", TORCHS)
def test_one_client_is_torchs_optimiser(name, clip, engine):
    make, params, theirs = TORCHS[name]
    given = local(optimizer={"name": name, **params}, clip_norm=clip, weight_decay=0.1).model_dump()
    experiment = plain.experiment(engine, given)
    learner, data, _ = learning.build(experiment)
    module = plain.made(learner)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    rows = given["batch_size"]
    assert rows == 3
    train(module, data, make(trained, lr=0.05, weight_decay=0.1, **theirs), experiment, clip)
    vector = plain.simulated(learner, LocalSGD(experiment.strategy.local)).value()
    for key, value in module.state_dict().items():
        np.testing.assert_allclose(plain.state(learner, vector)[key], value.numpy(), rtol=0, atol=1e-10)


def train(module, data, optimiser, experiment, clip):
    rows = LocalSGD(experiment.strategy.local).batches(len(data.y), plain.stream(0, "batches", 0, 1))
    key = torch.tensor(int(plain.stream(0, "model draws", 0, 1).integers(2**63)))
    module.train()
    for step, row in enumerate(rows):
        index = torch.from_numpy(row[row >= 0])
        optimiser.zero_grad()
        with plain.Masked(plain.Draws(key, step)):
            nn.functional.cross_entropy(module(data.x[index].double()), data.y[index]).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimiser.step()


def test_an_own_one_is_found_by_its_path():
    made = optimiser(local(optimizer="tests.learn.test_optimisers:Signs"))
    update = LocalSGD(local(optimizer="tests.learn.test_optimisers:Signs"))
    assert type(made).__name__ == "Signs"
    given = {"arrays": torch.tensor([1.0, 2.0, 3.0]), "lr": torch.tensor(0.5)}
    state = update.step(
        lambda w, b: (torch.tensor([5.0, -0.1, 0.0]), torch.tensor(1.0)), update.init(given), None
    )
    assert state["weights"].tolist() == [0.5, 2.5, 3.0]


def test_a_short_gradient_is_left_as_it_is():
    assert torch.equal(clipped(torch.tensor([0.3, 0.4]), 1.0), torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "adan"}, r"optimizer: adan: no such optimiser; did you mean adam\?"),
        ({"optimizer": {"name": "adam", "beta1": 1.0}}, r"optimizer\.beta1: 1\.0: must be less than 1"),
        ({"optimizer": {"name": "adam", "beta3": 1.0}}, r"optimizer\.beta3: unknown key; did you mean beta2"),
        (
            {"optimizer": "torch.optim:Adam"},
            r"optimizer: torch\.optim:Adam: is not an optimiser that can be mapped",
        ),
        ({"optimizer": "collections:Counter"}, r"optimizer: .* is not an optimiser"),
        ({"optimizer": "adam", "momentum": 0.9}, r"optimizer: adam: momentum \(0\.9\) belongs to sgd"),
        ({"clip_norm": 0}, r"clip_norm: 0: must be greater than 0"),
        ({"schedule": "cosin"}, r"schedule: cosin: no such schedule; did you mean cosine\?"),
        ({"schedule": "step"}, r"schedule\.every: is required"),
        (
            {"schedule": {"name": "list", "factors": []}},
            r"schedule\.factors: .*there must be at least one",
        ),
        (
            {"schedule": {"name": "cosine", "rounds": 5, "warm_up": 5}},
            r"schedule\.warm_up: 5: must be less than 5",
        ),
    ],
)
def test_mistakes_are_one_line(changes, words):
    given = plain.experiment().model_dump()
    given["strategy"]["local"] = {"steps": 2, **changes}
    with pytest.raises(ConfigError, match=rf"^strategy\.local\.{words}") as caught:
        fedsim.check(given)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("strategy", "changes", "words"),
    [
        ("scaffold", {"optimizer": "adam"}, r"local\.optimizer: adam: this strategy's clients make steps"),
        ("scaffold", {"clip_norm": 1.0}, r"local\.clip_norm: 1\.0: this strategy's clients make steps"),
        ("fednova", {"clip_norm": 1.0}, r"local\.optimizer: .*FedNova reckons with plain steps"),
        ("gradient_tracking", {"optimizer": "adam"}, r"local\.optimizer: adam: this strategy's"),
    ],
)
def test_who_steps_in_a_way_of_its_own_says_so(strategy, changes, words):
    own = {} if strategy == "gradient_tracking" else {"participants": 1}
    given = {
        "data": {"name": "tests.learn.odd_models:points", "clients": 2},
        "model": "softmax",
        "strategy": {"name": strategy, "local": {"steps": 2, **changes}, **own},
        "stop": {"rounds": 1},
    }
    given |= {"topology": "complete"} if strategy == "gradient_tracking" else {}
    with pytest.raises(ConfigError, match=words):
        fedsim.check(given)


# by hand: ten rounds of which two warm up; then the cosine of 0, pi/7, ..., pi
FACTORS = {
    "constant": ({}, {1: 1.0, 100: 1.0}),
    "step": ({"every": 3, "factor": 0.5}, {1: 1.0, 3: 1.0, 4: 0.5, 6: 0.5, 7: 0.25}),
    "cosine": (
        {"rounds": 10, "end": 0.2, "warm_up": 2},
        {1: 0.5, 2: 1.0, 3: 1.0, 4: 0.2 + 0.4 * (1 + np.cos(np.pi / 7)), 10: 0.2, 50: 0.2},
    ),
    "warm_up": ({"rounds": 4}, {1: 0.25, 2: 0.5, 4: 1.0, 5: 1.0}),
    "list": ({"factors": [0.1, 1.0, 0.5]}, {1: 0.1, 2: 1.0, 3: 0.5, 9: 0.5}),
}


@pytest.mark.parametrize("name", FACTORS)
def test_schedules_by_hand(name):
    params, wanted = FACTORS[name]
    assert set(names("schedules")) == set(FACTORS)
    for round, factor in wanted.items():
        assert call(find("schedules", name), params, {"round": round}) == pytest.approx(factor, abs=1e-12)
    paced = schedule(local(schedule={"name": name, **params}))
    assert [paced(round) for round in wanted] == pytest.approx(list(wanted.values()), abs=1e-12)


def test_bounds_of_schedules():
    assert cosine(round=1, rounds=1) == 1.0
    with pytest.raises(BadValue, match="each greater than 0"):
        by_list(round=1, factors=[1.0, 0.0])
    assert schedule(local()) is None


class Constant(nn.Module):
    """Has the gradient 1 - 2 / 3 for label 0 and so on: what matters is that steps are the rate times a gradient."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.bias + 0 * x[:, :3]


@pytest.mark.parametrize("strategy", ["strategies.server.fedavg:FedAvg", "fedavg", "scaffold", "dpsgd"])
def test_every_method_follows_a_schedule(strategy, tmp_path):
    """One step a round from a gradient that is known: the bias moves by lr times the factor of the round."""
    own = {"participants": 2} if "server" in strategy or strategy == "scaffold" else {}
    given = {
        "data": {"name": "tests.learn.odd_models:points", "clients": 2},
        "model": "tests.learn.test_optimisers:Constant",
        "strategy": {
            "name": strategy,
            "local": {
                "steps": 1,
                "batch_size": None,
                "lr": 0.3,
                "schedule": {"name": "list", "factors": [1.0, 0.1, 0.01]},
            },
            **own,
        },
        "stop": {"rounds": 3},
        "compute": {"device": "cpu", "dtype": "float64"},
        "record": {"report": False},
    }
    given |= {"topology": "complete"} if strategy == "dpsgd" else {}
    bias, shares = np.zeros(3), []
    _, data, owned = learning.build(fedsim.load(given))
    shares = [np.bincount(data.y[own].numpy(), minlength=3) / len(own) for own in owned]
    for factor in (1.0, 0.1, 0.01):  # the gradient of cross entropy: softmax minus the shares of the labels
        soft = np.exp(bias) / np.exp(bias).sum()
        bias = bias - 0.3 * factor * (soft - np.mean(shares, axis=0))
    result = fedsim.run(given, out=tmp_path)
    if strategy == "dpsgd":
        found = load_file(result.path / "weights.safetensors")["peers/weights"].mean(0)
    else:
        found = result.weights()["bias"]
    np.testing.assert_allclose(found, bias, rtol=0, atol=1e-9)
