"""A model and a loss as functions of one vector, against plain modules and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.learn.identity import identity
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Batch, Task
from fedsim.rng import stream
from fedsim.running.threads import limited

DOUBLE = torch.float64
MODELS = {
    "softmax": (models.softmax, (7,)),
    "mlp": (models.mlp, (1, 8, 8)),
    "lenet5": (models.lenet5, (1, 8, 8)),
    "gn-lenet": (models.gn_lenet, (1, 8, 8)),
    "resnet8-gn": (models.resnet8_gn, (3, 8, 8)),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


def make(name, classes=3):
    part, shape = MODELS[name]
    module = models.build(part, {}, shape, classes, stream(0, "model")).to(DOUBLE)
    return module, shape


def samples(shape, count, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((count, *shape)))
    return x, torch.from_numpy(rng.integers(0, classes, count))


def full(x, y):
    return Batch(x, y, torch.ones(len(x), dtype=DOUBLE))


def by_hand(weights=(1.0, 2.0)):
    """Two weights, predictions 3 and 2 for targets 1 and 4."""
    task = Task(models.linear(shape=(2,)), "half_square", dtype=DOUBLE)
    x = torch.tensor([[1.0, 1.0], [2.0, 0.0]], dtype=DOUBLE)
    return task, torch.tensor(weights, dtype=DOUBLE), full(x, torch.tensor([1.0, 4.0], dtype=DOUBLE))


def test_layout_follows_the_parameters():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    task = Task(module)
    assert task.layout == [("0.weight", (3, 2)), ("0.bias", (3,)), ("2.weight", (1, 3))]
    assert task.size == 6 + 3 + 3
    assert torch.equal(task.initial[6:9], module[0].bias)
    assert torch.equal(task.initial, torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert not task.initial.requires_grad


def test_the_initial_weights_are_a_copy():
    module = nn.Linear(2, 2)
    task, before = Task(module), module.weight.detach().clone()
    task.initial.zero_()
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_dtype(dtype):
    task = Task(nn.Linear(3, 2).to(torch.float16), dtype=dtype)
    assert task.initial.dtype == task.dtype == dtype
    assert task.predict(task.initial, torch.ones(1, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("name", MODELS)
def test_predict_is_the_module(name):
    module, shape = make(name)
    task = Task(module, dtype=DOUBLE)
    x, _ = samples(shape, 4)
    assert torch.equal(task.predict(task.initial, x), module(x))
    other = task.initial * 0.5
    expected = torch.nn.utils.parameters_to_vector(module.parameters()) * 0.5
    assert torch.equal(other, expected)
    torch.nn.utils.vector_to_parameters(other, module.parameters())
    assert torch.equal(task.predict(other, x), module(x))


@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_autograd_through_the_module(name):
    module, shape = make(name)
    task = Task(module, dtype=DOUBLE)
    x, y = samples(shape, 5)
    loss = nn.functional.cross_entropy(module(x), y)
    loss.backward()
    loss = loss.detach()
    expected = torch.cat([p.grad.flatten() for p in module.parameters()])
    for carried in (task.carried, task.pure):
        found, value, _ = carried(task.initial, full(x, y), task.start)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert float(value) == pytest.approx(float(loss), abs=1e-12)
        assert not found.requires_grad
        assert not value.requires_grad


def test_half_square_by_hand():
    task, weights, batch = by_hand()
    assert task.losses(task.predict(weights, batch.x), batch.y).tolist() == [2.0, 2.0]
    gradient, loss = task.gradient(weights, batch)
    # residuals 2 and -2: mean of (2, 2) and (-4, 0)
    assert (gradient.tolist(), float(loss)) == ([-1.0, 1.0], 2.0)
    assert not task.classifies


def test_cross_entropy_by_hand():
    task = Task(models.softmax(shape=(1,), classes=4), dtype=DOUBLE)
    assert task.classifies
    x, y = torch.ones(2, 1, dtype=DOUBLE), torch.tensor([0, 3])
    gradient, loss = task.gradient(torch.zeros(8, dtype=DOUBLE), full(x, y))
    assert float(loss) == pytest.approx(math.log(4), abs=1e-15)
    # softmax 1/4 everywhere, less the labels' shares 1/2, 0, 0, 1/2; the same for weights (x = 1) and bias
    assert gradient.tolist() == [-0.25, 0.25, 0.25, -0.25] * 2


def test_the_gradient_changes_neither_weights_nor_module():
    task, weights, batch = by_hand()
    before = [p.detach().clone() for p in task.module.parameters()]
    task.gradient(weights, batch)
    task.pure(weights, batch, task.start)
    assert weights.tolist() == [1.0, 2.0]
    assert not weights.requires_grad
    assert all(p.grad is None and torch.equal(p, old) for p, old in zip(task.module.parameters(), before))


def test_padding_by_hand():
    task, weights, batch = by_hand()
    alone = Batch(batch.x, batch.y, torch.tensor([1.0, 0.0], dtype=DOUBLE))
    gradient, loss = task.gradient(weights, alone)
    assert (gradient.tolist(), float(loss)) == ([2.0, 2.0], 2.0)


@pytest.mark.parametrize("method", ["carried", "pure"])
def test_nothing_but_padding_has_no_gradient(method):
    task, weights, batch = by_hand()
    empty = batch._replace(weight=torch.zeros(2, dtype=DOUBLE))
    gradient, loss, _ = getattr(task, method)(weights, empty, task.start)
    assert (gradient.tolist(), float(loss)) == ([0.0, 0.0], 0.0)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["softmax", "mlp", "lenet5"]),
    st.integers(1, 5),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
)
def test_padding_changes_nothing(name, count, padding, shuffle):
    module, shape = make(name)
    task = Task(module, dtype=DOUBLE)
    x, y = samples(shape, count + padding, seed=count)
    places = list(range(count + padding))
    shuffle.shuffle(places)
    weight = torch.zeros(count + padding, dtype=DOUBLE)
    weight[places[:count]] = 1.0
    kept = weight > 0
    expected, loss = task.gradient(task.initial, full(x[kept], y[kept]))
    for carried in (task.carried, task.pure):
        found, value, _ = carried(task.initial, Batch(x, y, weight), task.start)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert float(value) == pytest.approx(float(loss), abs=1e-12)


def test_frozen_weights_stay_with_the_module():
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False), nn.Flatten(0))
    module[0].weight.requires_grad_(False)
    module[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))
    task = Task(module, "half_square", dtype=DOUBLE)
    assert task.layout == [("1.weight", (1, 2))]
    batch = full(torch.ones(1, 2, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    gradient, loss = task.gradient(torch.ones(2, dtype=DOUBLE), batch)
    # prediction 2 + 3, features (2, 3)
    assert (gradient.tolist(), float(loss)) == ([10.0, 15.0], 12.5)


class Tied(nn.Module):
    """Two layers with one weight: w w x."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x)).flatten()


def test_shared_weights_are_one_piece():
    task = Task(Tied(), "half_square", dtype=DOUBLE)
    assert task.layout == [("first.weight", (1, 1))]
    batch = full(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE))
    for carried in (task.carried, task.pure):
        # 0.5 w^4 at w = 2
        found, loss, _ = carried(torch.tensor([2.0], dtype=DOUBLE), batch, task.start)
        assert (found.tolist(), float(loss)) == ([16.0], 8.0)


def test_what_somebody_has_asked_a_task_for_is_no_part_of_its_name():
    """Whether a round was judged before the first update was made must not make another run of it."""
    task = Task(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
        buffers=["1.running_mean", "1.running_var"],
        held="fedbn",
    )
    before = identity(task)
    assert task.mine == ["1.weight", "1.bias"]
    assert task.own.tolist() == [9, 10, 11, 12, 13, 14]  # behind 3 x 2 weights and 3 biases
    assert identity(task) == before
