"""Losses, metrics, and inputs and targets of any type and shape: equal to plain PyTorch, or refused in one line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn import build as learning
from fedsim.learn import metrics
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.learn.losses import loss_of
from fedsim.learn.measured import metrics_of
from fedsim.learn.task import Batch, Task
from fedsim.spec.blocks import Part

WORDS, LENGTH = 6, 5


def texts(*, clients, seed):
    """Words [8 clients, 5] and the next ones, of which the last is padding in every second text."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(WORDS, size=(8 * clients, LENGTH)))
    y = (x + 1) % WORDS
    y[::2, -1] = -100
    return Dataset("texts", x, y, x.flip(0), y.flip(0), WORDS)


def labels(*, clients, seed):
    """Points [8 clients, 4], each with three labels that are 0 or 1."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((8 * clients, 4)).astype(np.float32))
    y = (x[:, :3] > 0).float()
    return Dataset("labels", x, y, x.flip(0), y.flip(0), 0, loss="bce")


def ratings(*, clients, seed):
    """Pairs of 5 users and 7 items, and ratings."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(np.stack([rng.integers(5, size=8 * clients), rng.integers(7, size=8 * clients)], 1))
    y = x[:, 0].float() - 0.5 * x[:, 1]
    return Dataset("ratings", x, y, x.flip(0), y.flip(0), 0, loss="mse")


def points(*, clients, seed):
    """Five classes of points."""
    rng = np.random.default_rng(seed)
    y = torch.arange(10 * clients) % 5
    x = torch.from_numpy(rng.standard_normal((len(y), 6)).astype(np.float32)) + functional.one_hot(y, 6)
    return Dataset("points", x, y, x.flip(0), y.flip(0), 5)


def three(*, shape):
    return nn.Linear(shape[0], 3)


def hinge(outputs, y, *, margin: float = 1.0):
    """Somebody's own loss: one number for each sample."""
    return functional.multi_margin_loss(outputs, y, reduction="none", margin=margin)


def averaged(outputs, y):
    return functional.cross_entropy(outputs, y)


def share_above(preds, target, *, level: float = 0.0):
    """Somebody's own metric, whose parameters are called as torchmetrics calls them."""
    del target
    return float((preds > level).double().mean())


HERE = "tests.learn.test_losses"


def experiment(data, model, engine="auto", clients=1, **changes):
    local = {"steps": 5, "batch_size": 3, "lr": 0.1}
    return {
        "data": {"name": f"{HERE}:{data}", "clients": clients},
        "model": model,
        "strategy": {"name": "dpsgd", "local": local},
        "topology": "ring",
        "stop": {"rounds": 1},
        "compute": {"device": "cpu", "dtype": "float64", "engine": engine},
        "record": {"report": False},
        **changes,
    }


LSTM = {"name": "lstm", "embedding": 3, "hidden": 4, "layers": 1}
GRU = {"name": "gru", "embedding": 3, "hidden": 4}
TRANSFORMER = {"name": "transformer", "width": 8, "heads": 2, "layers": 1}
FACTORS = {"name": "matrix_factorisation", "users": 5, "items": 7, "factors": 3}
OWN = {"name": f"{HERE}:hinge", "margin": 0.5}
SMOOTH = {"name": "cross_entropy", "label_smoothing": 0.1}
PLAIN = {
    "lstm": ("texts", LSTM, None, functional.cross_entropy),
    "gru": ("texts", GRU, None, functional.cross_entropy),
    "transformer": ("texts", TRANSFORMER, None, functional.cross_entropy),
    "bce": ("labels", f"{HERE}:three", None, functional.binary_cross_entropy_with_logits),
    "factors": ("ratings", FACTORS, None, functional.mse_loss),
    "huber": (
        "ratings",
        FACTORS,
        {"name": "huber", "delta": 0.5},
        lambda o, y: functional.huber_loss(o, y, delta=0.5),
    ),
    "mae": ("ratings", FACTORS, "mae", functional.l1_loss),
    "smooth": ("points", "softmax", SMOOTH, lambda o, y: functional.cross_entropy(o, y, label_smoothing=0.1)),
    "hinge": ("points", "softmax", OWN, lambda o, y: functional.multi_margin_loss(o, y, margin=0.5)),
}


@pytest.mark.parametrize("engine", ["lean", "stacked"])
@pytest.mark.parametrize("name", PLAIN)
def test_one_client_is_plain_pytorch(name, engine):
    data, model, loss, theirs = PLAIN[name]
    given = fedsim.load(experiment(data, model, "auto" if name in ("lstm", "gru") else engine, loss=loss))
    learner, dataset, _ = learning.build(given)
    task, update = learner.engine.task, LocalSGD(given.strategy.local)
    module = learning._model(given, dataset).double()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    x, y = learner.engine.data.x, learner.engine.data.y
    for row in update.batches(len(y), fedsim.rng.stream(0, "batches", 0, 1)):
        index = torch.from_numpy(row[row >= 0])
        optimiser.zero_grad()
        theirs(module.train()(x[index]), y[index]).backward()
        optimiser.step()
    vector = learner.train(update, 0, {"arrays": learner.initial}, Place(0, 1, 0.0)).pick("arrays")
    wanted = torch.cat([weight.detach().reshape(-1) for weight in module.parameters()])
    torch.testing.assert_close(vector.value(), wanted, rtol=0, atol=1e-10)
    scores = learner.evaluate(vector).value()
    with torch.no_grad():
        outputs = module.eval()(learner.x_test)
    assert scores["loss"] == pytest.approx(float(theirs(outputs, learner.y_test)), abs=1e-9)
    assert ("accuracy" in scores) == (data in ("texts", "points"))
    if data == "texts":
        valid = learner.y_test != -100
        right = (outputs.argmax(1) == learner.y_test)[valid]
        assert scores["accuracy"] == pytest.approx(float(right.double().mean()), abs=1e-12)
    assert task.classifies == (data in ("texts", "points"))


def test_padding_counts_nothing():
    """Two texts of two words, the second one half padding: the mean of three losses, not of two means."""
    task = Task(nn.Linear(1, 1), "cross_entropy", dtype=torch.float64)
    outputs = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[2.0, 9.0], [0.0, 9.0]]], dtype=torch.float64)
    y = torch.tensor([[0, 0], [1, -100]])
    a, b, c = math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))
    batch = Batch(outputs, y, torch.ones(2, dtype=torch.float64))
    assert float(task.mean(outputs, batch)) == pytest.approx((a + b + c) / 3)
    assert task.losses(outputs, y).tolist() == pytest.approx([(a + b) / 2, c])
    # a sample of weight 0 is padding of the batch
    alone = batch._replace(weight=torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert float(task.mean(outputs, alone)) == pytest.approx((a + b) / 2)
    nothing = batch._replace(y=torch.full((2, 2), -100))
    assert float(task.mean(outputs, nothing)) == 0


@pytest.mark.parametrize(
    ("data", "model", "changes", "words"),
    [
        ("points", "softmax", {"loss": "mse"}, r"loss: mse: needs numbers to predict, and points has labels"),
        ("ratings", FACTORS, {"loss": "cross_entropy"}, r"loss: .*needs labels, and ratings has numbers"),
        (
            "points",
            "softmax",
            {"loss": "crossentropy"},
            r"loss: .*no such loss; did you mean cross_entropy\?",
        ),
        (
            "points",
            "softmax",
            {"loss": {"name": "cross_entropy", "smoothing": 0.1}},
            r"loss\.smoothing: unknown key",
        ),
        (
            "points",
            "softmax",
            {"loss": {"name": "cross_entropy", "label_smoothing": 1.5}},
            r"loss\.label_smoothing: 1\.5: must be at most 1",
        ),
        ("points", "softmax", {"loss": f"{HERE}:averaged"}, r"model.*must return one number for each sample"),
        (
            "points",
            "softmax",
            {"evaluate": {"metrics": ["mse"]}},
            r"evaluate\.metrics\.0.*mse: does not fit points",
        ),
        (
            "ratings",
            FACTORS,
            {"evaluate": {"metrics": ["macro_f1"]}},
            r"macro_f1: does not fit ratings: .*classes",
        ),
        (
            "points",
            "softmax",
            {"evaluate": {"metrics": [{"name": "top_k", "k": 5}]}},
            r"top_k: does not fit points: .*more than 5 classes",
        ),
        (
            "ratings",
            FACTORS,
            {"evaluate": {"metrics": ["auc"]}},
            r"auc: does not fit ratings: .*needs targets of 0 and 1",
        ),
        (
            "ratings",
            FACTORS,
            {"evaluate": {"metrics": ["perplexity"]}},
            r"perplexity: does not fit ratings: .*needs labels",
        ),
        (
            "points",
            "softmax",
            {"evaluate": {"metrics": ["mse"]}},
            r"mse: does not fit points: .*needs one number for each",
        ),
        ("points", "softmax", {"evaluate": {"metrics": ["auk"]}}, r"no such metric; did you mean auc\?"),
        (
            "points",
            "softmax",
            {"evaluate": {"metrics": ["auc", "auc"]}},
            r"there is a metric called auc already",
        ),
        ("texts", "softmax", {}, r"model(\.name)?: softmax: does not fit texts"),
        ("points", f"{HERE}:three", {}, r"outputs of shape \(1, 3\) for one sample of points, not \(1, 5\)"),
        ("points", "lstm", {}, r"softmax|lstm"),
        ("ratings", "transformer", {}, r"transformer.*at least 2 classes"),
        ("texts", {**TRANSFORMER, "heads": 3}, {}, r"heads: 3: must divide the width of 8"),
        ("texts", FACTORS, {}, r"needs pairs of user and item"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(data, model, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        fedsim.check(experiment(data, model, **changes))
    assert len(str(caught.value).splitlines()) == 1


def test_metrics_by_hand():
    outputs = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 5.0]])
    y = torch.tensor([0, 1, 1, 1])  # said: 0, 0, 1, 2
    assert metrics.accuracy(outputs, y) == 0.5
    assert metrics.top_k(outputs, y, k=2) == 1.0
    # class 0: 1 right of 2 said and 1 there: 2/3; class 1: 1 of 1 and 3: 1/2; class 2: 0
    assert metrics.macro_f1(outputs, y) == pytest.approx((2 / 3 + 1 / 2) / 3)
    score, right = torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert metrics.auc(score, right) == pytest.approx(3 / 4)  # of four pairs, one is in the wrong order
    assert metrics.mse(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0])) == 5.0
    assert metrics.mae(torch.tensor([1.0, 4.0]), torch.tensor([0.0, 1.0])) == 2.0
    padded = torch.tensor([[0, -100]])
    assert metrics.perplexity(torch.zeros(1, 4, 2), padded) == pytest.approx(4.0)


def test_auc_of_classes_is_the_mean_of_each_against_the_rest():
    outputs = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    y = torch.tensor([0, 0, 1, 1])  # nobody has the third one
    # class 0: the two right scores are the highest: 1; class 1: of 2 x 2 pairs, all but none in the wrong order
    soft = outputs.softmax(1)
    pairs = [float(soft[i, 1] > soft[j, 1]) for i in (2, 3) for j in (0, 1)]
    assert metrics.auc(outputs, y) == pytest.approx((1 + np.mean(pairs)) / 2)
    with pytest.raises(ValueError, match="some of both"):
        metrics.auc(outputs[:2], y[:2])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_metrics_are_recorded_for_server_and_peers(engine, workers, tmp_path):
    asked = ["macro_f1", "auc", {"name": "top_k", "k": 2}, {"name": f"{HERE}:share_above", "level": 0.1}]
    compute = {"device": "cpu", "engine": engine, "workers": workers}
    for strategy in ("fedavg", "dpsgd"):
        given = experiment("points", "softmax", clients=3, evaluate={"metrics": asked}, compute=compute)
        given["strategy"]["name"] = strategy
        given |= {"topology": "star" if strategy == "fedavg" else "ring"}
        table = fedsim.run(given, out=tmp_path).metrics()
        assert {"macro_f1", "auc", "top_k", "share_above"} <= set(table)
        assert table["top_k"][-1] >= table["accuracy"][-1]


def test_a_loss_says_how_it_counts():
    loss = loss_of("cross_entropy", {"ignore_index": 0})
    y = torch.tensor([[0, 1], [1, 2]])
    assert loss.counts(y, torch.float32).tolist() == [1, 2]
    assert loss_of("mse").counts(y.float(), torch.float32).tolist() == [2, 2]
    assert (loss.plain, loss_of("cross_entropy").plain, loss_of("mse").plain) == (False, True, False)


def test_metrics_of_sequences_leave_padding_out():
    # two sequences of three steps and three classes; said are 0 1 2 and 2 2 0, in the second place 1 0 1 and 0 1 1
    said, second = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[1, 0, 1], [0, 1, 1]])
    one_hot = torch.nn.functional.one_hot
    outputs = (2 * one_hot(said, 3) + one_hot(second, 3)).movedim(2, 1).float()
    y = torch.tensor(
        [[0, 0, -100], [2, 0, -100]]
    )  # met: the first and the fourth; the second in the second place
    assert metrics.accuracy(outputs, y) == 2 / 4
    assert metrics.top_k(outputs, y, k=2) == 3 / 4
    # class 0: said once, right, there 3 times: 1/2; class 1: said once, never there: 0; class 2: 2 said, 1 there: 2/3
    assert metrics.macro_f1(outputs, y) == pytest.approx((1 / 2 + 0 + 2 / 3) / 3)
    # the odds of class 1 are 0.35 where it is right, 0.1 and 0.4 where not: of two pairs one is in order; class 0 alike
    logits, right = torch.tensor([[[0.0] * 4, [0.1, 0.4, 0.35, 0.8]]]), torch.tensor([[0, 0, 1, -100]])
    assert metrics.auc(logits, right) == 1 / 2
    assert metrics.accuracy(outputs, torch.where(y < 0, 1, y), ignore_index=1) == 2 / 4
    assert metrics.accuracy(outputs, torch.full((2, 3), -100)) == 0


def test_metrics_of_one_name_are_told_apart_by_their_parameters():
    asked = [
        Part.model_validate(block)
        for block in ({"name": "top_k", "k": 1}, {"name": "top_k", "k": 2}, "macro_f1")
    ]
    found = metrics_of(asked, loss_of("cross_entropy"))
    assert list(found) == ["top_k_1", "top_k_2", "macro_f1"]
    outputs, y = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1])
    assert [found[name](outputs, y) for name in ("top_k_1", "top_k_2")] == [0, 1]
    with pytest.raises(BadValue, match=r"metrics\.1\.name: top_k: there is a metric called top_k_2 already"):
        metrics_of([asked[1], asked[1]], loss_of("cross_entropy"))


def accuracy(outputs, y):
    """Not the share of right labels, which a target and all tables mean by this name."""
    return float(outputs.mean())


def test_no_other_metric_passes_for_the_accuracy():
    own = Part(name=f"{HERE}:accuracy")
    words = (
        r"metrics\.0\.name: .*: there is a metric called accuracy already; call it from a function of another"
    )
    with pytest.raises(BadValue, match=words):
        metrics_of([own], loss_of("cross_entropy"))
    assert list(metrics_of([own], loss_of("bce"))) == ["accuracy"]  # of several labels, none is there yet
    assert list(metrics_of([Part(name="accuracy")], loss_of("cross_entropy"))) == ["accuracy"]


@pytest.mark.parametrize("partition", [{"name": "dirichlet", "alpha": 0.5}, "shards"])
def test_what_divides_classes_refuses_samples_with_several_labels(partition):
    given = experiment("texts", GRU, clients=3)
    given["data"]["partition"] = partition
    words = r"^data\.partition(\.name)?: \w+: divides classes, and these samples have several labels each; use iid"
    with pytest.raises(ConfigError, match=words):
        fedsim.check(given)


def test_a_metric_of_torchmetrics_is_named_by_its_path(tmp_path):
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    path = "torchmetrics.functional.classification:multiclass_"
    classes = points(clients=3, seed=0).classes
    asked = [
        {"name": f"{path}{kind}", "num_classes": classes} for kind in ("accuracy", "auroc", "cohen_kappa")
    ]
    asked[0]["average"] = "micro"
    given = experiment("points", "softmax", clients=3, evaluate={"metrics": asked})
    result = fedsim.run(given, out=tmp_path)
    assert result.summary["accuracy"] == pytest.approx(result.metrics()["multiclass_accuracy"][-1], abs=1e-6)
    learner, dataset, _ = learning.build(fedsim.load(given))
    found = learner.evaluate(learner.initial).value()
    outputs = learner.engine.task.predict(learner.initial.value(), dataset.x_test.double())
    wanted = theirs.multiclass_cohen_kappa(outputs, dataset.y_test, num_classes=classes)
    assert found["multiclass_cohen_kappa"] == pytest.approx(float(wanted), abs=1e-6)
