"""One client alone is plain PyTorch: ``module.train()``, an optimiser, ``eval()`` for the test, within 1e-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.learn import build as learning
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.learn.masks import Draws, Masked
from fedsim.rng import stream

BATCH, STEPS = 5, 7
LOCAL = {"steps": STEPS, "batch_size": BATCH, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


class Both(nn.Module):
    """Batch statistics, dropout, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.norm, self.drop, self.last = nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.norm(self.frozen(x)))))


def experiment(engine="auto", local=LOCAL, model="Both", **changes):
    return fedsim.load(
        {
            "data": {"name": "tests.learn.odd_models:points", "clients": 1},
            "model": {"name": f"tests.learn.test_plain:{model}"},
            "strategy": {"name": "dpsgd", "local": local},
            "topology": "ring",
            "stop": {"rounds": 1},
            "compute": {"device": "cpu", "dtype": "float64", "engine": engine},
            **changes,
        }
    )


def plain(module, data, optimiser, seed=0, round=1, clip=None):
    """Train as everybody does, with the batches and the key of the simulation's first client."""
    rows = LocalSGD(fedsim.load(experiment().model_dump()).strategy.local).batches(
        len(data.y), stream(seed, "batches", 0, round)
    )
    key = torch.tensor(int(stream(seed, "model draws", 0, round).integers(2**63)))
    module.train()
    for step, row in enumerate(rows):
        index = torch.from_numpy(row[row >= 0])
        optimiser.zero_grad()
        with Masked(Draws(key, step)):
            loss = nn.functional.cross_entropy(module(data.x[index].double()), data.y[index])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimiser.step()
    return module.eval()


def simulated(learner, update, round=1):
    given = {name: learner.initial for name in update.takes} | {n: learner.zeros for n in update.keeps}
    return learner.train(update, 0, given, Place(0, round, 0.0)).pick("arrays")


def state(learner, vector):
    task = learner.engine.task
    named = zip(task.layout, task.split(vector), strict=True)
    return task.state({name: piece.numpy() for (name, _), piece in named})


def made(learner):
    module = Both().double()
    start = state(learner, learner.initial.value())
    module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in start.items()})
    return module


@pytest.mark.parametrize("engine", ["sequential", "lean", "stacked"])
def test_batch_norm_dropout_momentum_and_decay(engine):
    given = experiment(engine)
    learner, data, owned = learning.build(given)
    assert owned[0].tolist() == sorted(owned[0].tolist())  # the batches below are of samples in their order
    module = made(learner)
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.01)
    plain(module, data, optimiser)
    vector = simulated(learner, LocalSGD(given.strategy.local))
    found, wanted = state(learner, vector.value()), module.state_dict()
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-10, err_msg=name)
        assert found[name].dtype == value.numpy().dtype
    assert int(found["norm.num_batches_tracked"]) == STEPS
    outputs = module(data.x_test.double())
    scores = learner.evaluate(vector).value()
    assert scores["loss"] == pytest.approx(
        float(nn.functional.cross_entropy(outputs, data.y_test).detach()), abs=1e-10
    )
    assert scores["accuracy"] == float((outputs.argmax(1) == data.y_test).double().mean())
