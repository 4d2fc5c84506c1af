"""Samples of several inputs: a tuple or a dictionary of tensors of any type, from files and objects to evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn import functional as F

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn import build as learning
from fedsim.learn.data.arrays import arrays
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.learn.masks import Draws, Masked
from fedsim.learn.several import Several, called, joined
from fedsim.rng import stream
from fedsim.running.memory import need_mb

HERE = "tests.learn.test_several"
WORDS, LENGTH = 7, 4


def parts(clients, seed):
    rng = np.random.default_rng(seed)
    count = 8 * clients
    words = torch.from_numpy(rng.integers(WORDS, size=(count, LENGTH)))
    mask = torch.from_numpy(rng.random((count, LENGTH)) < 0.7)
    mask[:, 0] = True
    numbers = torch.from_numpy(rng.standard_normal((count, 3)).astype(np.float32))
    y = (words[:, 0] + (numbers[:, 0] > 0)) % 3
    return words, mask, numbers, y


def named(*, clients, seed):
    """Words, which of them count, and numbers, by the names of a model's own."""
    words, mask, numbers, y = parts(clients, seed)
    x = {"numbers": numbers, "words": words, "mask": mask}
    return Dataset("named", x, y, {name: part.flip(0) for name, part in x.items()}, y.flip(0), 3)


def ordered(*, clients, seed):
    """The same, one after the other."""
    words, mask, numbers, y = parts(clients, seed)
    x = (words, mask, numbers)
    return Dataset("ordered", x, y, tuple(part.flip(0) for part in x), y.flip(0), 3)


class Two(nn.Module):
    """A mean of embeddings beside numbers, batch statistics, and dropout."""

    def __init__(self, *, shape, classes, drop=0.3):
        super().__init__()
        sizes = list(shape.values()) if isinstance(shape, dict) else list(shape)
        assert sorted(sizes) == [(3,), (LENGTH,), (LENGTH,)]
        self.embedding, self.norm = nn.Embedding(WORDS, 5), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(drop), nn.Linear(8, classes)

    def forward(self, words, mask, numbers):
        counts = mask.to(numbers.dtype)[..., None]
        mean = (self.embedding(words) * counts).sum(1) / counts.sum(1)
        return self.last(self.drop(self.norm(torch.cat([mean, numbers], 1))))


WHOLE = {"local": {"batch_size": None}}
LOCAL = {"steps": 5, "batch_size": 3, "lr": 0.1}


def experiment(name="named", clients=3, engine="auto", **changes):
    compute = {"device": "cpu", "dtype": "float64", "engine": engine, **changes.pop("compute", {})}
    return {
        "data": {"name": f"{HERE}:{name}", "clients": clients, **changes.pop("data", {})},
        "model": {"name": f"{HERE}:Two", **changes.pop("model", {})},
        "strategy": {"name": "dpsgd", "local": LOCAL | changes.pop("local", {})},
        "topology": "ring",
        "stop": {"rounds": 2},
        "compute": compute,
        "record": {"report": False},
        **changes,
    }


def weights(given, out):
    return fedsim.run(given, out=out).weights()


@pytest.mark.parametrize("data", ["named", "ordered"])
@pytest.mark.parametrize("engine", ["sequential", "lean", "stacked"])
def test_one_client_is_plain_pytorch(data, engine):
    given = fedsim.load(experiment(data, 1, engine))
    learner, dataset, _ = learning.build(given)
    module, update = learning._model(given, dataset).double(), LocalSGD(given.strategy.local)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    words, mask, numbers, y = parts(1, 0)
    key = torch.tensor(int(stream(0, "model draws", 0, 1).integers(2**63)))
    for step, row in enumerate(update.batches(8, stream(0, "batches", 0, 1))):
        index = torch.from_numpy(row[row >= 0])
        optimiser.zero_grad()
        with Masked(Draws(key, step)):
            outputs = module.train()(words[index], mask[index], numbers[index].double())
        F.cross_entropy(outputs, y[index]).backward()
        optimiser.step()
    vector = learner.train(update, 0, {"arrays": learner.initial}, Place(0, 1, 0.0)).pick("arrays")
    wanted = [weight.detach().reshape(-1) for weight in module.parameters()]
    found = vector.value()[: learner.engine.task.trained]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=1e-10)
    outputs = module.eval()(words.flip(0), mask.flip(0), numbers.flip(0).double())
    loss = float(F.cross_entropy(outputs, y.flip(0)).detach())
    assert learner.evaluate(vector).value()["loss"] == pytest.approx(loss, abs=1e-10)


def test_order_names_engines_processes_and_sizes_of_evaluation_change_nothing(tmp_path):
    compute = {
        "stacked": {"engine": "stacked", "slots": 2},
        "two": {"workers": 2},
        "lean": {"engine": "lean"},
    }
    first = fedsim.run(experiment(engine="sequential"), out=tmp_path)
    for name, settings in compute.items():
        again = fedsim.run(experiment(compute=settings, evaluate={"batch_size": 5}), out=tmp_path)
        for key, value in first.weights().items():
            np.testing.assert_allclose(again.weights()[key], value, rtol=0, atol=1e-10, err_msg=name)
        assert again.summary["loss"] == pytest.approx(first.summary["loss"], abs=1e-10)
    other = fedsim.run(experiment("ordered", engine="sequential"), out=tmp_path)
    assert other.summary["weights_hash"] == first.summary["weights_hash"]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "data": {
                "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 3},
                "client_test_share": 0.25,
            },
            **WHOLE,
        },
        {"data": {"val_share": 0.2}, **WHOLE},
        {"local": {"curriculum": {"measure": "loss", "a": 0.5}, "steps": None, "epochs": 2}},
        {
            "local": {
                "curriculum": {"score": "expert", "a": 0.5},
                "steps": None,
                "epochs": 1,
            },
            "expert": {"epochs": 1},
        },
        {"evaluate": {"metrics": ["macro_f1", {"name": "top_k", "k": 2}]}},
    ],
)
def test_what_else_looks_at_samples(changes, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    result = fedsim.run(experiment(**changes), out=tmp_path)
    assert result.summary["rounds"] == 2
    assert np.isfinite(result.summary["loss"])


def test_memory_counts_all_of_a_sample():
    learner, _, _ = learning.build(fedsim.load(experiment()))
    task, [need, *_] = (
        learner.engine.task,
        need_mb(learner.engine, [LocalSGD(fedsim.load(experiment()).strategy.local)]),
    )
    sample = LENGTH * 8 + LENGTH * 1 + 3 * 8 + 8  # words, mask, numbers, label
    state = 8 * (task.trained + 3)  # weights, and three numbers
    assert need * 1e6 == state + 8 * task.size + task.fixed_bytes + 3 * sample
    assert learner.nbytes == 2 * 24 * sample + 3 * 8 * task.size


def test_every_input_is_part_of_what_a_result_is_named_by():
    def identity(change=lambda x: None):
        learner, _, _ = learning.build(fedsim.load(experiment()))
        change(learner.engine.data.x.kwargs)
        return learner.evaluate(learner.initial, 0).identity

    first = identity()
    assert identity() == first
    for name, row in (("words", 0), ("mask", 1), ("numbers", 2)):

        def change(x, name=name, row=row):
            x[name][:] = x[name].roll(row + 1, 0)

        assert identity(change) != first


@pytest.mark.parametrize("folder", [False, True])
def test_arrays_from_files(folder, tmp_path):
    words, mask, numbers, y = (part.numpy() for part in parts(5, 0))
    held = {"a": words, "b": mask, "c": numbers, "y": y}
    held |= {f"{name}_test": array[::-1] for name, array in held.items()}
    path = tmp_path / ("data" if folder else "data.npz")
    if folder:
        path.mkdir()
        for name, array in held.items():
            np.save(path / f"{name}.npy", array)
    else:
        np.savez(path, **held)
    made = arrays(path=str(path), x={"words": "a", "mask": "b", "numbers": "c"}, inputs="tokens", seed=0)
    assert made.shape == {"words": (LENGTH,), "mask": (LENGTH,), "numbers": (3,)}
    assert [part.dtype for part in made.x.parts] == [torch.int64, torch.bool, torch.float32]
    np.testing.assert_array_equal(made.x_test.kwargs["numbers"].numpy(), numbers[::-1])
    given = experiment()
    given["data"] = {"name": "arrays", "path": str(path), "x": ["a", "b", "c"], "inputs": "tokens"} | {
        "clients": 5
    }
    by_file = weights(given, tmp_path / "runs")
    np.testing.assert_array_equal(
        by_file["last.weight"], weights(experiment("ordered", 5), tmp_path)["last.weight"]
    )


def test_without_a_test_rows_are_split_together(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.arange(20), b=np.arange(20)[:, None] * 2, y=np.arange(20) % 2)
    made = arrays(path=str(tmp_path / "d.npz"), x=["a", "b"], seed=0, test_share=0.25)
    for x, y in ((made.x, made.y), (made.x_test, made.y_test)):
        assert torch.equal(x.parts[1][:, 0], 2 * x.parts[0])
        assert torch.equal(x.parts[0].long() % 2, y)
    assert (len(made.x), len(made.x_test)) == (16, 4)  # a quarter of 10, rounded, of each class


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": ["a", "c"]}, r"x: c: there is no such array in .*d.npz"),
        ({"x": []}, r"x: .*name at least one array"),
        ({"x": ["a", "short"]}, r"path: .*its inputs must have as many samples each, not \[20, 19\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, words, tmp_path):
    np.savez(tmp_path / "d.npz", a=np.arange(20), short=np.arange(19), y=np.arange(20) % 2)
    with pytest.raises(BadValue, match=words):
        arrays(path=str(tmp_path / "d.npz"), seed=0, **change)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ((torch.zeros(2), torch.zeros(3)), r"x: \[2, 3\]: all inputs must have as many samples"),
        ({"a b": torch.zeros(2)}, r"x: \['a b'\]: must have names that a model can take"),
        ((torch.zeros(2), 3), r"x: must be a tensor, or a tuple or dictionary of tensors"),
        ((), r"x: must be a tensor"),
        ({"a": torch.tensor([0.0, torch.nan])}, r"x\.a: inputs must be finite numbers, and sample 1 has NaN"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, words):
    y = torch.tensor([0, 1])
    with pytest.raises(BadValue, match=f"^{words}"):
        Dataset("bad", x, y, x, y, 2)


def test_a_test_with_other_inputs_is_refused():
    y, x = torch.tensor([0, 1]), torch.zeros(2)
    with pytest.raises(BadValue, match=r"^x_test: .*must have the shape of x"):
        Dataset("bad", {"a": x, "b": x}, y, {"a": x}, y, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "softmax"}}, r"^model.*takes one input, and these samples have several"),
        ({"engine": "closed"}, r"^compute\.engine: closed: does not fit"),
        ({"local": {"augment": ["flip"]}}, r"^strategy\.local\.augment\.0: flip: is for one input"),
        ({"data": {"name": "noisy", "of": f"{HERE}:named", "levels": [0.1]}}, r"has several inputs"),
    ],
)
def test_what_is_for_one_input_says_so(changes, words):
    given = experiment()
    given["model"] = changes.pop("model", given["model"])
    given["data"] |= changes.pop("data", {})
    given["strategy"]["local"] |= changes.pop("local", {})
    given["compute"] |= changes
    with pytest.raises(ConfigError, match=words) as caught:
        fedsim.check(given)
    assert len(str(caught.value).splitlines()) == 1


def shift(*, x, draws):
    return x.map(lambda part: part**2 if part.is_floating_point() else part)


def test_an_augmentation_of_ones_own_gets_all_inputs(tmp_path):
    plain = weights(experiment(), tmp_path)["last.weight"]
    moved = weights(experiment(local={"augment": [f"{HERE}:shift"]}), tmp_path)["last.weight"]
    assert not np.allclose(plain, moved)


def test_several_behave_like_one_tensor():
    both = Several((torch.arange(6).view(3, 2), torch.tensor([0.5, 1.5, 2.5])))
    assert (len(both), both.nbytes, both.shape) == (3, 6 * 8 + 3 * 4, ((2,), ()))
    assert [len(piece) for piece in both.split(2)] == [2, 1]
    back = joined(both.split(2))
    assert all(map(torch.equal, back.parts, both.parts))
    assert both.index_select(0, torch.tensor([2])).parts[0].tolist() == [[4, 5]]
    assert both[torch.tensor([[0, 1], [1, 2]])].parts[1].tolist() == [[0.5, 1.5], [1.5, 2.5]]
    doubled = vmap(lambda x: x.map(lambda part: 2 * part))(both)
    assert doubled.parts[1].tolist() == [1.0, 3.0, 5.0]
    assert called(nn.Bilinear(2, 1, 1), Several((torch.ones(3, 2), torch.ones(3, 1)))).shape == (3, 1)
