"""q-FedAvg: Flower's strategy is told what its paper's step is made of, and cannot be told anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.learn.start_loss import StartLoss
from fedsim.rng import stream
from fedsim.running.build import make_strategy, prepare
from fedsim.running.threads import limited
from fedsim.spec.experiment import load


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def experiment(strategy, **more):
    return {
        "seed": 4,
        "data": {"clients": 6, "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 3}},
        "model": "softmax",
        "strategy": {"local": {"steps": 2, "batch_size": 8, "lr": 0.1}, **strategy},
        "stop": {"rounds": 1},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def flat(weights):
    return np.concatenate([value.reshape(-1) for value in weights.values()])


def test_q_fedavg_takes_the_papers_step(tmp_path):
    """Li, Sanjabi, Beirami, Smith, ICLR 2020, algorithm 2, with F_k at the model that was sent."""
    q, lr = 2.0, 0.1
    given = experiment({"name": "qfedavg", "q": q}, stop={"rounds": 1})
    setup = prepare(load(given))
    x, y = setup.dataset.x.double().flatten(1), setup.dataset.y
    start = setup.learner.initial.value()

    def loss(weights, rows):
        return cross_entropy(x[rows] @ weights[:640].reshape(10, 64).T + weights[640:], y[rows])

    update = StartLoss(setup.experiment.strategy.local)
    steps, slopes = torch.zeros_like(start), 0.0
    for client, own in enumerate(setup.owned):
        weights = start.clone()
        pieces = -(-len(own) // min(8, len(own)))
        for row in update.batches(len(own), stream(4, "batches", client, 1))[pieces:]:
            weights.requires_grad_(True)
            [slope] = torch.autograd.grad(loss(weights, own[row[row >= 0]]), weights)
            weights = (weights - lr * slope).detach()
        change, value = (start - weights) / lr, float(loss(start, own))
        steps += value**q * change
        slopes += q * value ** (q - 1) * float(change @ change) + value**q / lr
    wanted = start - steps / slopes
    found = api.run(given, out=tmp_path)
    assert np.abs(flat(found.weights()) - wanted.numpy()).max() < 1e-9
    assert np.abs((wanted - start).numpy()).max() > 1e-3
    work = sum(2 * min(8, len(own)) + -(-len(own) // 3) for own in setup.owned)
    assert found.summary["work_samples"] == pytest.approx(
        work, abs=8
    )  # the last batch of a pass may be short


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_the_loss_at_the_start_is_that_of_an_evaluation(engine, tmp_path):
    local = {"epochs": 2, "batch_size": 7, "lr": 0.1}
    compute = {"dtype": "float64", "engine": engine}
    fair, plain = (
        api.run(experiment({"name": name, "local": local}, compute=compute), out=tmp_path)
        for name in ("qfedavg", "fedavg")
    )
    evaluated = prepare(load(experiment({"name": "fedavg"})))
    losses = [
        evaluated.learner.evaluate(evaluated.learner.initial, client).value()["loss"] for client in range(6)
    ]
    sizes = evaluated.learner.sizes
    wanted = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    assert fair.metrics()["train_start_loss"][1] == pytest.approx(wanted, abs=1e-12)
    # in the first round both train from the same weights, on the same batches
    assert fair.metrics()["train_loss"][1] == pytest.approx(plain.metrics()["train_loss"][1], abs=1e-12)


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        (
            {"client_learning_rate": 0.05},
            "strategy.client_learning_rate: 0.05: must be that of the clients",
        ),
        (
            {"local": {"lr": [0.1] * 6}},
            "strategy.local.lr: [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]: q-FedAvg needs one",
        ),
        (
            {"local": {"lr": [0.1] * 6}, "client_learning_rate": 0.1},
            "strategy.client_learning_rate: 0.1: must be",
        ),
        ({"local": {"lr_decay": 0.1}}, "strategy.local.lr_decay: 0.1: q-FedAvg needs one learning rate"),
        (
            {"local": {"momentum": 0.9}},
            "strategy.local.momentum: 0.9: q-FedAvg reckons with steps of plain SGD",
        ),
        ({"local": {"weight_decay": 0.1}}, "strategy.local.weight_decay: 0.1: q-FedAvg reckons with steps"),
        (
            {"train_loss_key": "train_loss"},
            "strategy.train_loss_key: train_loss: must be start_loss, the loss at",
        ),
        ({"q": -1.0}, "strategy.q: -1.0: must be at least 0"),
    ],
)
def test_what_q_fedavg_cannot_reckon_with_is_refused(strategy, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment({"name": "qfedavg", **strategy}))
    assert str(caught.value).startswith(line)


def test_the_clients_rate_is_the_default_and_may_be_said():
    for own in ({}, {"client_learning_rate": 0.1}):
        strategy = make_strategy(load(experiment({"name": "qfedavg", **own})))
        assert strategy.client_learning_rate == 0.1
