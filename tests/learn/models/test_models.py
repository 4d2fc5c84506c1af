"""Models: sizes counted by hand, stacking, reproducible building, and what is refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.models import builtin as models
from fedsim.rng import stream

CLASSIFIERS = {
    "softmax": models.softmax,
    "mlp": models.mlp,
    "lenet5": models.lenet5,
    "gn-lenet": models.gn_lenet,
    "resnet8-gn": models.resnet8_gn,
    "resnet9-gn": models.resnet9_gn,
}


def count(model):
    return sum(weight.numel() for weight in model.parameters())


def make(part, shape, classes=10, seed=0, **params):
    return models.build(part, params, shape, classes, stream(seed, "model"))


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("softmax", (1, 28, 28), 784 * 10 + 10),
        ("mlp", (1, 28, 28), 784 * 64 + 64 + 64 * 10 + 10),
        ("lenet5", (1, 28, 28), 44_426),
        ("lenet5", (1, 8, 8), 156 + 2416 + (16 * 2 * 2 * 120 + 120) + 10_164 + 850),
        ("gn-lenet", (3, 32, 32), 85_354),
        ("resnet8-gn", (3, 32, 32), 78_042),
        ("resnet9-gn", (3, 32, 32), 6_621_540 - 90 * 513),
    ],
)
def test_number_of_parameters(name, shape, parameters):
    assert count(make(CLASSIFIERS[name], shape)) == parameters


def test_mlp_widths():
    assert count(make(models.mlp, (784,), hidden=100)) == 79_510
    assert count(make(models.mlp, (4,), classes=3, hidden=[5, 6])) == 25 + 36 + 21
    kinds = [type(layer).__name__ for layer in make(models.mlp, (4,), hidden=[5, 6])]
    assert kinds == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]


@pytest.mark.parametrize("hidden", [0, [], [4, -1]])
def test_mlp_refuses_empty_layers(hidden):
    with pytest.raises(BadValue, match="at least 1; use softmax for none") as caught:
        make(models.mlp, (4,), hidden=hidden)
    assert caught.value.key == "hidden"


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 14), (2, 4, 4)])
def test_logits_have_the_right_shape(name, shape):
    model = make(CLASSIFIERS[name], shape, classes=7)
    logits = model(torch.ones(5, *shape))
    assert logits.shape == (5, 7)
    assert logits.isfinite().all()
    # Logits, not log-probabilities: those of one sample would be a distribution.
    assert not torch.allclose(logits.exp().sum(1), torch.ones(5), atol=1e-3)


def test_linear_is_a_scalar_product():
    model = make(models.linear, (3,), classes=0)
    [weight] = model.parameters()
    x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    w = weight.detach().flatten()
    assert model(x).shape == (2,)
    torch.testing.assert_close(model(x), torch.stack([w[0], w[0] + 2 * w[1] + 3 * w[2]]))
    assert model(torch.zeros(1, 3)).tolist() == [0.0]


@pytest.mark.parametrize(
    ("target", "outputs", "last"), [((), 1, "Flatten"), ((2,), 2, None), ((2, 3), 6, "Unflatten")]
)
def test_numbers_to_predict_have_the_shape_of_the_targets(target, outputs, last):
    for name, part, weights in (
        ("linear", models.linear, 4 * outputs),
        ("mlp", models.mlp, 4 * 64 + 64 + 64 * outputs + outputs),
    ):
        model = models.build(part, {}, (2, 2), 0, stream(0, "model"), target)
        assert (count(model), model(torch.ones(5, 2, 2)).shape) == (weights, (5, *target)), name
        assert type(model[-1]).__name__ == (last or "Linear")


def test_gn_lenet_pools_before_it_normalises_in_the_first_block_only():
    kinds = [type(layer).__name__ for layer in make(models.gn_lenet, (3, 32, 32))]
    assert kinds == [
        *("Conv2d", "MaxPool2d", "GroupNorm", "ReLU"),
        *("Conv2d", "GroupNorm", "MaxPool2d", "ReLU"),
        *("Conv2d", "GroupNorm", "MaxPool2d", "ReLU"),
        *("Flatten", "Linear"),
    ]


def test_residual_block_adds_its_input():
    model = make(models.resnet8_gn, (3, 8, 8))
    block = model[2]
    with torch.no_grad():
        for weight in block.second.parameters():
            weight.zero_()
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x.relu())


def test_layers_that_are_passed_by_add_to_their_input():
    model = make(models.resnet9_gn, (3, 8, 8))
    block = model[2]
    with torch.no_grad():
        for weight in block.layers[1].parameters():
            weight.zero_()
    x = torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), x)
    assert [type(layer).__name__ for layer in model].count("_Around") == 2


@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - {"mlp"}))
def test_too_few_classes_are_refused(name):
    with pytest.raises(BadValue, match="at least 2 classes, not 0; use linear or mlp"):
        make(CLASSIFIERS[name], (1, 28, 28), classes=0)


@pytest.mark.parametrize("name", ["lenet5", "gn-lenet", "resnet8-gn", "resnet9-gn"])
@pytest.mark.parametrize("shape", [(60,), (1, 1, 28), (28, 28)])
def test_samples_that_are_no_images_are_refused(name, shape):
    with pytest.raises(BadValue, match="needs images") as caught:
        make(CLASSIFIERS[name], shape)
    assert (caught.value.key, caught.value.value) == ("name", name)
    assert str(shape) in caught.value.rule


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_stacked_gradients_equal_the_loop(name):
    shape = (1, 8, 8)
    stacks = [
        dict(make(CLASSIFIERS[name], shape, seed=seed).double().named_parameters()) for seed in range(3)
    ]
    model = make(CLASSIFIERS[name], shape).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (3, 4), generator=generator)

    def loss(weights, x, y):
        return nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)

    stacked = {key: torch.stack([weights[key].detach() for weights in stacks]) for key in stacks[0]}
    together = vmap(grad(loss))(stacked, x, y)
    for client, weights in enumerate(stacks):
        value = loss(weights, x[client], y[client])
        alone = dict(zip(weights, torch.autograd.grad(value, list(weights.values()))))
        for key, gradient in alone.items():
            torch.testing.assert_close(together[key][client], gradient, rtol=1e-12, atol=1e-12)


def test_stacked_linear_gradients_equal_the_formula():
    model = make(models.linear, (3,), classes=0).double()
    [key] = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    w, x = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in [(2, 1, 3), (2, 5, 3)])
    y = torch.randn(2, 5, generator=generator, dtype=torch.float64)

    def loss(weight, x, y):
        return 0.5 * (functional_call(model, {key: weight}, (x,)) - y).square().mean()

    expected = torch.einsum("cb,cbd->cd", torch.einsum("cbd,cd->cb", x, w[:, 0]) - y, x) / 5
    torch.testing.assert_close(vmap(grad(loss))(w, x, y)[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_building_depends_on_the_stream_only(name):
    before = torch.get_rng_state()
    first = make(CLASSIFIERS[name], (1, 8, 8), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = (make(CLASSIFIERS[name], (1, 8, 8), seed=seed) for seed in (1, 2))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters())]
    assert all(same)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))


def test_torchs_generator_survives_a_model_that_fails():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            torch.rand(3)
            raise RuntimeError("broken")

    before = torch.get_rng_state()
    with pytest.raises(
        BadValue,
        match=r"name: Broken: cannot be made: RuntimeError: broken \(tests/learn/models/test_models\.py:[0-9]+\)$",
    ) as caught:
        make(Broken, (2,))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert torch.equal(torch.get_rng_state(), before)


class Raises(nn.Module):
    def __init__(self, error: Any):
        raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TypeError("no such size"), "TypeError: no such size"),
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (MemoryError(), "MemoryError"),
        (KeyError("width"), "KeyError: 'width'"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_whatever_a_module_raises_is_a_bad_value(error, words):
    with pytest.raises(BadValue) as caught:
        make(Raises, (2,), error=error)
    line = inspect.getsourcelines(Raises.__init__)[1] + 1
    rule = f"cannot be made: {words} (tests/learn/models/test_models.py:{line})"
    assert (caught.value.key, caught.value.value, caught.value.rule) == ("name", "Raises", rule)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("hidden", "line"),
    [(10**11, r"^hidden: 100000000000: needs \S"), (10**15, "^hidden: 10+: must be at most 1e\\+12")],
)
def test_a_model_that_fits_no_memory_is_one_line(hidden, line):
    with pytest.raises(BadValue, match=line) as caught:
        make(models.mlp, (64,), hidden=hidden)
    assert len(str(caught.value).splitlines()) == 1


class Neither(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)


class OnlyShape(nn.Module):
    def __init__(self, shape: tuple[int, ...], width: int = 4):
        super().__init__()
        self.layer = nn.Linear(shape[0], width)


class Both(nn.Module):
    def __init__(self, classes: int, *, shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(shape[0], classes)


@pytest.mark.parametrize(
    ("part", "params", "size"),
    [(Neither, {}, (3, 2)), (OnlyShape, {"width": 7}, (7, 2)), (Both, {}, (10, 2))],
)
def test_a_users_class_takes_what_it_names(part, params, size):
    model = make(part, (2,), **params)
    assert isinstance(model, part)
    assert model.layer.weight.shape == size
    with pytest.raises(BadValue, match="unknown key"):
        make(part, (2,), depth=3)


def test_models_are_found_by_name():
    for name, part in {**CLASSIFIERS, "linear": models.linear}.items():
        assert parts.find("models", name) is part


class WithBuffer(Neither):
    def __init__(self, dtype: torch.dtype = torch.float32, persistent: bool = True):
        super().__init__()
        self.register_buffer("table", torch.zeros(3, dtype=dtype), persistent=persistent)


def wrap(layer):
    return lambda: nn.Sequential(nn.Conv2d(1, 2, 3), layer)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (lambda: WithBuffer(torch.complex64), r"complex numbers \(table\)"),
        (lambda: nn.LazyLinear(3), "lazy layers"),
        (nn.ReLU, "no trainable parameters"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "no trainable parameters"),
        (lambda: "model", "must return a torch.nn.Module, not a str"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_cannot_be_trained_apart_are_refused(part, words):
    with pytest.raises(BadValue, match=words) as caught:
        make(part, (1, 8, 8))
    assert caught.value.key == "name"


@pytest.mark.parametrize(
    "part",
    [
        wrap(nn.BatchNorm2d(2, track_running_stats=False)),
        wrap(nn.GroupNorm(1, 2)),
        wrap(nn.InstanceNorm2d(2)),
        wrap(nn.Dropout(0.5)),
        wrap(nn.GRU(2, 2, num_layers=2, dropout=0.3)),
        wrap(nn.GRU(2, 2)),
        WithBuffer,
        lambda: WithBuffer(torch.int64),
        lambda: WithBuffer(persistent=False),
    ],
)
def test_modules_whose_state_is_their_weights_are_accepted(part):
    assert count(make(part, (1, 8, 8))) > 0


def test_the_stream_decides_and_not_its_position_elsewhere():
    rng = np.random.default_rng(3)
    first, second = (models.build(models.softmax, {}, (4,), 2, rng) for _ in range(2))
    assert not torch.equal(first[1].weight, second[1].weight)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_samples_logits_do_not_depend_on_its_batch(name):
    model = make(CLASSIFIERS[name], (1, 8, 8)).double()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = model(x)
    alone = torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    assert torch.equal(model.eval()(x), together)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_weight_has_a_gradient(name):
    model = make(CLASSIFIERS[name], (1, 28, 28))
    x = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    nn.functional.cross_entropy(model(x), torch.arange(8)).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "resnet9-gn"])  # it is too large
def test_ten_samples_can_be_learned_by_heart(name):
    model = make(CLASSIFIERS[name], (1, 8, 8))
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    y = torch.arange(10)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    assert torch.equal(model(x).argmax(1), y)


@pytest.mark.parametrize(("side", "padding"), [(19, 2), (20, 0)])
def test_lenet5_pads_small_images_only(side, padding):
    convolutions = [layer for layer in make(models.lenet5, (1, side, 28)) if isinstance(layer, nn.Conv2d)]
    assert [layer.padding for layer in convolutions] == [(padding, padding)] * 2


@pytest.mark.parametrize(("side", "padding"), [(14, 1), (15, 0)])
def test_gn_lenet_pads_the_pools_of_small_images_only(side, padding):
    pools = [layer for layer in make(models.gn_lenet, (1, side, 28)) if isinstance(layer, nn.MaxPool2d)]
    assert [layer.padding for layer in pools] == [padding] * 3
