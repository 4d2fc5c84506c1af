"""Plain descent in place: the bits of the update's own steps, and nothing of what was given is changed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.learn.curriculum.order import Order
from fedsim.learn.engines.base import Shard, TrainJob
from fedsim.learn.engines.closed import Closed, descends
from fedsim.learn.engines.lean import Lean
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.local import LocalSGD
from fedsim.learn.models.builtin import build, lenet5, mlp
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local

SHAPE, CLASSES, SAMPLES = (1, 12, 12), 3, 17


def engine(kind, model=mlp, dtype=torch.float32):
    module = build(model, {}, SHAPE, CLASSES, stream(0, "model")).to(dtype)
    rng = stream(1, "images")
    x = torch.from_numpy(rng.standard_normal((2 * SAMPLES, *SHAPE))).to(dtype)
    y = torch.from_numpy(rng.integers(0, CLASSES, 2 * SAMPLES))
    owned = torch.from_numpy(rng.permutation(2 * SAMPLES)).split(SAMPLES)
    return kind(Task(module, dtype=dtype), Shard(x, y, list(owned)))


def job(made, update, client=1):
    rows = update.batches(SAMPLES, stream(2, "batches", client))
    start = made.task.initial + 0.01
    return TrainJob(update, client, rows, {"arrays": start, "lr": torch.tensor(0.3, dtype=start.dtype)}, 5)


UPDATES = {
    "epochs, with a short last batch": LocalSGD(Local(epochs=3, batch_size=5)),
    "steps": LocalSGD(Local(steps=7, batch_size=4)),
    "a rate that falls inside a visit": LocalSGD(Local(epochs=2, batch_size=6, lr_decay=0.5, lr_power=0.75)),
    "one sample at a time": LocalSGD(Local(epochs=1, batch_size=1)),
}


@pytest.mark.parametrize("model", [mlp, lenet5])
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
def test_descent_in_place_has_the_bits_of_the_steps(update, model):
    made = engine(Closed, model)
    asked = job(made, update)
    before = asked.given["arrays"].clone()
    assert descends(update)
    in_place = made.train([asked])[0]
    stepped = Sequential._walked(made, asked, made.data.owned[1], {**asked.given, **made.scalars(asked)})
    assert in_place.keys() == stepped.keys() == {"arrays", "train_loss"}
    assert torch.equal(in_place["arrays"], stepped["arrays"])
    assert torch.equal(in_place["train_loss"], stepped["train_loss"])
    assert torch.equal(asked.given["arrays"], before)
    assert not torch.equal(in_place["arrays"], before)


@pytest.mark.parametrize("kind", [Sequential, Lean])
def test_descent_in_place_is_that_of_other_engines(kind):
    update = LocalSGD(Local(epochs=2, batch_size=5))
    mine, other = (
        made.train([job(made, update)])[0] for made in (engine(k, mlp, torch.float64) for k in (Closed, kind))
    )
    assert torch.allclose(mine["arrays"], other["arrays"], rtol=0, atol=1e-12)
    assert torch.allclose(mine["train_loss"], other["train_loss"], rtol=0, atol=1e-12)


def test_by_hand():
    """One linear weight, half squares: w goes 1, then by -0.1 (w x - y) x for (x, y) = (2, 0) and (1, 3)."""
    module = nn.Sequential(nn.Linear(1, 1, bias=False))
    made = Closed(
        Task(module, "half_square"),
        Shard(torch.tensor([[2.0], [1.0]]), torch.tensor([0.0, 3.0]), [torch.arange(2)]),
    )
    update = LocalSGD(Local(epochs=1, batch_size=1))
    given = {"arrays": torch.tensor([1.0]), "lr": torch.tensor(0.1)}
    found = made.train([TrainJob(update, 0, np.array([[0], [1]]), given, 0)])[0]
    # 1 - 0.1 * 2 * 2 = 0.6, then 0.6 - 0.1 * (0.6 - 3) = 0.84; losses 2 and 0.5 * 2.4^2 = 2.88
    assert found["arrays"].tolist() == pytest.approx([0.84])
    assert float(found["train_loss"]) == pytest.approx((2 + 2.88) / 2)


class Own(LocalSGD):
    """Somebody's own step."""

    def step(self, gradient, state, batch):
        return super().step(gradient, state, batch) | {"loss": torch.tensor(7.0)}


@pytest.mark.parametrize(
    "update",
    [
        LocalSGD(Local(epochs=1, momentum=0.9)),
        LocalSGD(Local(epochs=1, weight_decay=0.1)),
        LocalSGD(Local(epochs=1, clip_norm=1.0)),
        LocalSGD(Local(epochs=1), proximal=0.1),
        LocalSGD(Local(epochs=1, optimizer={"name": "adam"})),
        Own(Local(epochs=1)),
    ],
)
def test_what_does_more_takes_its_own_steps(update):
    assert not descends(update)


def test_a_step_of_ones_own_is_taken():
    made = engine(Closed)
    assert float(made.train([job(made, Own(Local(epochs=1, batch_size=SAMPLES)))])[0]["train_loss"]) == 7.0


def test_samples_in_order_of_difficulty_are_taken_in_that_order():
    made = engine(Closed)
    plain = LocalSGD(Local(steps=1, batch_size=4))
    ordered = LocalSGD(Local(steps=1, batch_size=4))
    ordered.order = Order("global")
    asked = replace(job(made, ordered), rows=np.array([[0, 1, 2, 3]]))
    scores = made.scores(ordered.order, asked)
    easiest = scores.argsort(stable=True)[:4].numpy()
    found = made.train([asked])[0]
    same = made.train([replace(asked, update=plain, rows=easiest[None])])[0]
    assert torch.equal(found["arrays"], same["arrays"])


def test_jobs_one_after_another_leave_each_others_results_alone():
    made, update = engine(Closed), LocalSGD(Local(epochs=2, batch_size=5))
    asked = [job(made, update, client) for client in (0, 1, 0)]
    together = made.train(asked)
    alone = [engine(Closed).train([one])[0] for one in asked]
    assert all(
        torch.equal(one["arrays"], other["arrays"]) for one, other in zip(together, alone, strict=True)
    )
    assert torch.equal(together[0]["arrays"], together[2]["arrays"])
    assert not torch.equal(together[0]["arrays"], together[1]["arrays"])


class Drawing(Own):
    """Draws from torch's own generator in its steps."""

    def step(self, gradient, state, batch):
        return super().step(gradient, {**state, "loss": torch.rand(())}, batch)


def test_steps_of_ones_own_draw_from_the_seed_of_the_job_and_plain_descent_draws_nothing():
    made, local = engine(Closed), Local(epochs=1, batch_size=SAMPLES)
    drawing, plain = job(made, Drawing(local)), job(made, LocalSGD(local))
    assert made.draws(drawing)
    assert not made.draws(plain)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    made.train([plain, drawing, plain])
    assert torch.equal(torch.get_rng_state(), before)
