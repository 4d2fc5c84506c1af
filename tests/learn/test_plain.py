"""One client alone is plain PyTorch: ``module.train()``, an optimiser, ``eval()`` for the test, within 1e-10."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fedsim
from fedsim.learn import build as learning
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.learn.masks import Draws, Masked
from fedsim.rng import stream
from tests.learn.test_several import WORDS, parts

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


def written(engine="auto", local=LOCAL, model="Both", **changes):
    return {
        "data": {"name": "tests.learn.odd_models:points", "clients": 1},
        "model": {"name": f"tests.learn.test_plain:{model}"},
        "strategy": {"name": "dpsgd", "local": local},
        "topology": "ring",
        "stop": {"rounds": 1},
        "compute": {"device": "cpu", "dtype": "float64", "engine": engine},
        **changes,
    }


def experiment(*args, **changes):
    return fedsim.load(written(*args, **changes))


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


class Texts(nn.Module):
    """Words [B, 4] to logits for each of them [B, 3, 4], with batch statistics over the words, and dropout."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(WORDS, 6), nn.BatchNorm1d(6)
        self.layers, self.drop, self.last = nn.GRU(6, 5, batch_first=True), nn.Dropout(0.3), nn.Linear(5, 3)

    def forward(self, words):
        found, _ = self.layers(self.norm(self.embedding(words).mT).mT)
        return self.last(self.drop(found)).mT


class Mixed(nn.Module):
    """Words and numbers, of which each has its own way in; Adam makes steps of a bias before a norm out of nothing."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.norm = (
            nn.Embedding(WORDS, 6),
            nn.Linear(3, 6, bias=False),
            nn.BatchNorm1d(6),
        )
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, words, numbers):
        return self.last(self.drop(self.norm(self.embedding(words).mean(1) + self.first(numbers))))


def texts(*, clients, seed):
    words, mask, _, _ = parts(2 * clients, seed)
    y = torch.where(mask, words % 3, -100)
    return Dataset("texts", words, y, words.flip(0), y.flip(0), 3)


def mixed(*, clients, seed):
    words, _, numbers, y = parts(2 * clients, seed)
    return Dataset("mixed", (words, numbers), y, (words.flip(0), numbers.flip(0)), y.flip(0), 3)


OPTIMISERS = {
    "adamw": lambda weights, lr: torch.optim.AdamW(weights, lr=lr, weight_decay=0.05),
    "sgd": lambda weights, lr: torch.optim.SGD(weights, lr=lr, weight_decay=0.05, momentum=0.5),
    "rmsprop": lambda weights, lr: torch.optim.RMSprop(weights, lr=lr, weight_decay=0.05),
}
COSINE = {"name": "cosine", "rounds": 3, "end": 0.5}
"""Factors by hand: 1, then 0.5 + 0.5 (1 + cos(pi / 2)) / 2 = 0.75, and the last one 0.5."""


def cut(x, index=slice(None)):
    """Return what a module is called with."""
    return [
        v[index].double() if v.is_floating_point() else v[index] for v in (x if type(x) is tuple else (x,))
    ]


@pytest.mark.parametrize(
    ("name", "model", "optimizer", "engine"),
    [
        *(("mixed", Mixed, optimizer, "stacked") for optimizer in OPTIMISERS),
        ("mixed", Mixed, "adamw", "lean"),
        ("texts", Texts, "adamw", "lean"),  # vmap has no rule for recurrent layers
        ("texts", Texts, "adamw", "sequential"),
    ],
)
def test_visits_with_schedule_and_clipping(name, model, optimizer, engine):
    """Three visits, each with an optimiser of its own: what is left of a former one is the model alone."""
    momentum = {"momentum": 0.5} if optimizer == "sgd" else {}
    local = {"steps": 5, "batch_size": 6, "lr": 0.02, "optimizer": optimizer, "weight_decay": 0.05}
    local |= {"clip_norm": 0.5, "schedule": COSINE, **momentum}
    given = experiment(engine, local, model.__name__, data={"name": f"{__name__}:{name}", "clients": 1})
    learner, data, _ = learning.build(given)
    update, module = LocalSGD(given.strategy.local), learning._model(given, data).double()
    inputs = data.x.parts if name == "mixed" else data.x
    held, vector, lengths = data.x_test, learner.initial, []
    for round, factor in ((1, 1.0), (2, 0.75), (3, 0.5)):
        steps = OPTIMISERS[optimizer](module.parameters(), 0.02 * factor)
        key = torch.tensor(int(stream(0, "model draws", 0, round).integers(2**63)))
        for step, row in enumerate(update.batches(len(data.y), stream(0, "batches", 0, round))):
            index = torch.from_numpy(row[row >= 0])
            steps.zero_grad()
            with Masked(Draws(key, step)):
                outputs = module.train()(*cut(inputs, index))
            nn.functional.cross_entropy(outputs, data.y[index]).backward()
            lengths.append(float(nn.utils.clip_grad_norm_(module.parameters(), 0.5)))
            steps.step()
        vector = learner.train(update, 0, {"arrays": vector}, Place(0, round, 0.0)).pick("arrays")
    assert max(lengths) > 0.5  # some are clipped
    found = state(learner, vector.value())
    for path, value in module.state_dict().items():
        np.testing.assert_allclose(found[path], value.numpy(), rtol=0, atol=1e-10, err_msg=path)
    outputs = module.eval()(*cut(held.parts if name == "mixed" else held))
    wanted = float(nn.functional.cross_entropy(outputs, data.y_test).detach())
    assert learner.evaluate(vector).value()["loss"] == pytest.approx(wanted, abs=1e-10)


PROPERTY = {
    "points": ("tests.learn.odd_models:points", "Both", "iid"),
    "texts": (f"{__name__}:texts", "Texts", "iid"),
    "mixed": (f"{__name__}:mixed", "Mixed", {"name": "quantity", "sigma": 0.5, "minimum": 4}),
}
WAYS = [
    {"compute": {"engine": "lean"}},
    {"compute": {"engine": "stacked", "slots": 3}},
    {"compute": {"engine": "lean", "workers": 2}},
    {"evaluate": {"every": 2, "batch_size": 7}},
    {"evaluate": {"metrics": ["macro_f1"]}},
    {},
]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["strategies.server.fedavg:FedAvg", "fedasync", "dpsgd", "choco"])
@pytest.mark.parametrize("name", PROPERTY)
def test_whatever_is_brought_only_the_experiment_decides_what_comes_out(name, strategy, tmp_path):
    """Engine, grouping, processes, evaluation and repetition change nothing: not the events, and no weight by 1e-10."""
    data, model, partition = PROPERTY[name]
    server = {"participants": 2} if strategy.startswith("strategies") else {}
    server |= {"concurrency": 2} if strategy == "fedasync" else {}
    local = {"epochs": 1, "batch_size": 4, "lr": 0.05, "clip_norm": 1.0, "schedule": COSINE}

    def run(compute=None, evaluate=None):
        given = written(
            "sequential",
            model=model,
            data={"name": data, "clients": 4, "partition": partition},
            strategy={"name": strategy, "local": local, **server},
            topology="ring" if strategy in ("dpsgd", "choco") else "star",
            stop={"rounds": 3},
            record={"report": False},
            evaluate=evaluate or {},
        )
        given["compute"] |= compute or {}
        return fedsim.run(given, out=tmp_path)

    first = run()
    for way in WAYS:
        if name == "texts" and way.get("compute", {}).get("engine") == "stacked":
            continue
        again = run(**way)
        assert again.summary["event_hash"] == first.summary["event_hash"]
        for path, value in first.weights().items():
            np.testing.assert_allclose(
                again.weights()[path], value, rtol=0, atol=1e-10, err_msg=f"{way} {path}"
            )
        assert again.summary["loss"] == pytest.approx(first.summary["loss"], abs=1e-10)
