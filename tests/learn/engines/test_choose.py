"""Which engine a run uses, and why."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.errors import BadValue
from fedsim.learn.engines import Closed, Lean, Sequential, Shard, Stacked, TrainJob
from fedsim.learn.engines.choose import choose, probe, same_bits
from fedsim.learn.local import LocalSGD
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


class Branching(nn.Module):
    """Its control flow depends on the data."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else 2 * y


class Centred(nn.Module):
    """Mixes the samples of a batch, so that padding changes the others."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Slow(nn.Module):
    """Uses an operation that vmap does one by one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.renorm(self.layer(x), 2, 0, 1.0)


def world(module, shape=(4,), loss="cross_entropy", sizes=(3, 5, 2)):
    rng, total = np.random.default_rng(0), sum(sizes)
    x = torch.from_numpy(rng.standard_normal((total, *shape)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, total))
    task = Task(module, loss)
    owned = list(torch.split(torch.arange(total), list(sizes)))
    return task, Shard(x, y if task.classifies else y.float(), owned)


def built(part, shape=(4,)):
    return models.build(part, {}, shape, 3, stream(0, "model"))


@pytest.mark.parametrize("part", [models.softmax, models.mlp, models.lenet5])
def test_chains_of_plain_layers_have_their_gradients_written_out(part):
    shape = (1, 8, 8)
    engine, reason = choose(*world(built(part, shape), shape), "auto", None)
    assert isinstance(engine, Closed)
    assert reason == "the model is a chain of plain layers, whose gradients are written out"


def test_regression_is_such_a_chain():
    engine, _ = choose(*world(models.linear(shape=(4,)), loss="half_square"), "auto", None)
    assert isinstance(engine, Closed)


@pytest.mark.parametrize(
    ("part", "unknown"), [(models.gn_lenet, "MaxPool2d"), (models.resnet8_gn, "GroupNorm")]
)
def test_other_models_are_lean_on_a_cpu(part, unknown):
    shape = (1, 8, 8)
    engine, reason = choose(*world(built(part, shape), shape), "auto", 20)
    assert isinstance(engine, Lean)
    assert reason == f"the closed engine does not fit this model: {unknown} is not among its layers"


@pytest.mark.parametrize("part", [models.lenet5, models.gn_lenet, models.resnet8_gn])
@pytest.mark.parametrize("engine", [Stacked, Lean])
def test_convolutions_pass_the_probe(part, engine):
    shape = (1, 8, 8)
    assert probe(engine, *world(built(part, shape), shape)) == ""


@pytest.mark.parametrize("module", [Branching, Centred, Slow])
def test_odd_models_have_the_same_bits_in_the_lean_engine(module):
    task, data = world(module())
    assert isinstance(choose(task, data, "auto", None)[0], Lean)
    assert same_bits(task, data)


class Watchful(nn.Module):
    """Looks at whether its weights are its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) * (1 if isinstance(self.layer.weight, nn.Parameter) else 2)


def test_what_is_not_the_same_to_the_last_bit_there_is_sequential():
    task, data = world(Watchful())
    engine, reason = choose(task, data, "auto", None)
    assert type(engine) is Sequential
    assert reason == "the lean engine does not give the same bits for this model"


def test_a_wish_overrides():
    task, data = world(built(models.softmax))
    assert choose(task, data, "stacked", 7)[1] == "asked for"
    assert choose(task, data, "stacked", 7)[0].slots == 7
    shape = (1, 8, 8)
    assert isinstance(choose(*world(built(models.lenet5, shape), shape), "stacked", None)[0], Stacked)
    engine, reason = choose(*world(built(models.softmax)), "sequential", None)
    assert isinstance(engine, Sequential)
    assert reason == "asked for"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Branching, "data-dependent control flow|a Tensor in some"),
        (Centred, r"it differs by [0-9.]+e-[0-9]+;"),
    ],
)
def test_a_stack_that_gives_other_weights_is_refused_by_name(module, reason):
    with pytest.raises(BadValue, match=reason) as caught:
        choose(*world(module()), "stacked", None)
    assert (caught.value.key, caught.value.value) == ("engine", "stacked")
    assert len(str(caught.value).splitlines()) == 1


def test_a_slow_stack_is_used_where_it_is_asked_for_and_torch_does_not_warn():
    task, data = world(Slow())
    engine, reason = choose(task, data, "stacked", None)
    assert isinstance(engine, Stacked)
    assert reason == "asked for, but torch does aten::renorm for one client at a time"
    update = LocalSGD(Local(steps=1, batch_size=2))
    rows = update.batches(3, stream(0, "batches"))
    job = TrainJob(update, 0, rows, {"arrays": task.initial})
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found, wanted = (one.train([job])[0]["arrays"] for one in (engine, Sequential(task, data)))
    assert heard == []
    torch.testing.assert_close(found, wanted)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers, self.last = kind(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.last(self.layers(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_models_are_lean(kind):
    engine, reason = choose(*world(Recurrent(kind), (4, 2)), "auto", None)
    assert isinstance(engine, Lean)
    assert reason == "the closed engine does not fit this model: Recurrent is not among its layers"


def test_what_draws_is_sequential_and_a_stack_is_refused_by_name():
    task, data = world(built(models.softmax))
    task.draws = True
    reason = "the model draws random numbers in training, which clients in a stack would share"
    with pytest.raises(BadValue, match=f"engine: stacked: does not fit this model: {reason}; use auto"):
        choose(task, data, "stacked", None)


def test_the_number_of_slots_can_be_given():
    engine, _ = choose(*world(built(models.softmax)), "stacked", 3)
    assert engine.slots == engine.grain == 3
    assert choose(*world(built(models.softmax)), "stacked", None)[0].slots == 10


@pytest.mark.parametrize("sizes", [(1,), (1, 1), (40,), (2, 1, 1)])
@pytest.mark.parametrize("engine", [Stacked, Closed, Lean])
def test_any_number_of_clients_and_samples(engine, sizes):
    assert probe(engine, *world(built(models.softmax), sizes=sizes)) == ""


@pytest.mark.parametrize("wanted", ["auto", "stacked", "lean", "closed"])
def test_the_choice_leaves_no_trace(wanted):
    task, data = world(built(models.mlp))
    weights, x = task.initial.clone(), data.x.clone()
    state, owned = torch.get_rng_state(), [own.clone() for own in data.owned]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        choose(task, data, wanted, None)
    assert heard == []
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(task.initial, weights)
    assert torch.equal(data.x, x)
    assert all(torch.equal(own, old) for own, old in zip(data.owned, owned))
    assert {p.dtype for p in task.module.parameters()} == {torch.float32}
    assert all(p.grad is None for p in task.module.parameters())


@pytest.mark.parametrize(
    ("wanted", "rule"),
    [
        ("stakced", r"no such engine; did you mean stacked\?"),
        ("fedsim.learn.task:Task", "is not an engine; take a subclass of fedsim.learn.engines.Engine"),
        ("fedsim.learn.task.Tsak", r"cannot be imported \(.* has no attribute 'Tsak'\).*"),
    ],
)
def test_what_is_no_engine_is_told(wanted, rule):
    with pytest.raises(BadValue, match=f"^engine: {wanted}: {rule}$"):
        choose(*world(built(models.softmax)), wanted, None)


def test_an_engine_that_cannot_take_the_model_is_refused_by_name():
    with pytest.raises(
        BadValue, match=r"^engine: closed: does not fit this model: Slow is not among its layers; "
    ):
        choose(*world(Slow()), "closed", None)


class Halved(Sequential):
    """An engine with a mistake."""

    def carried(self, weights, batch, buffers):
        gradient, loss, after = super().carried(weights, batch, buffers)
        return gradient / 2, loss, after


def test_an_own_engine_is_found_by_its_path_and_tried(monkeypatch):
    monkeypatch.setattr("fedsim.learn.engines.sequential.Halved", Halved, raising=False)
    monkeypatch.setattr(
        "fedsim.learn.engines.sequential.Whole", type("Whole", (Sequential,), {}), raising=False
    )
    task, data = world(built(models.softmax))
    engine, reason = choose(task, data, "fedsim.learn.engines.sequential:Whole", None)
    assert (type(engine).__name__, reason) == ("Whole", "asked for")
    with pytest.raises(BadValue, match=r"it differs by [0-9.]+e-[0-9]+; use auto or sequential"):
        choose(task, data, "fedsim.learn.engines.sequential:Halved", None)


class Wide(Stacked):
    """An engine of one's own that stacks, too."""


class Drawing(nn.Module):
    """Draws by itself, which clients in a stack would share."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) + torch.rand_like(x[:, :3]) * self.training


def test_an_engine_of_ones_own_that_stacks_is_treated_as_one(monkeypatch):
    monkeypatch.setattr("fedsim.learn.engines.stacked.Wide", Wide, raising=False)
    own = "fedsim.learn.engines.stacked:Wide"
    engine, reason = choose(*world(built(models.softmax)), own, 3)
    assert (engine.slots, reason) == (3, "asked for")
    assert choose(*world(Slow()), own, 3)[1].startswith("asked for, but torch does")
    task, data = world(Drawing())
    task.draws = True
    with pytest.raises(BadValue, match="which clients in a stack would share"):
        choose(task, data, own, 3)
