"""Local updates: plans, work and arithmetic, against plain PyTorch training and numbers derived by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import BadValue
from fedsim.learn.local import LocalSGD
from fedsim.learn.models import builtin as models
from fedsim.learn.sampling import shuffled_batches
from fedsim.learn.task import Batch, Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import Anchor, Miner

DOUBLE = torch.float64


def numbers(*values):
    return torch.tensor(values, dtype=DOUBLE)


def quadratic(a, b):
    """Return a task, and the whole of the data of f(w) = mean 0.5 (a_s w - b_s)^2."""
    a, b = torch.as_tensor(a, dtype=DOUBLE), torch.as_tensor(b, dtype=DOUBLE)
    task = Task(models.linear(shape=tuple(a.shape[1:])), "half_square", dtype=DOUBLE)
    return task, Batch(a, b, torch.ones(len(b), dtype=DOUBLE))


def some_quadratic(samples=12, dimension=4, seed=0):
    rng = np.random.default_rng(seed)
    return quadratic(rng.standard_normal((samples, dimension)), rng.standard_normal(samples))


def take(data, row):
    index = torch.from_numpy(row[row >= 0])
    return Batch(data.x[index], data.y[index], data.weight[index])


def run(update, task, data, given, rows, client=0):
    """Do a local update; return what is sent and the state after each step."""
    scalars = {name: numbers(value).squeeze() for name, value in update.scalars(client, 5).items()}
    states = [update.init({**given, **scalars})]
    for row in rows:
        states.append(update.step(task.gradient, states[-1], take(data, row)))
    return update.final(states[-1]), states


def plain_sgd(module, data, rows, **options):
    """Train a plain module with PyTorch's own optimizer; return its weights and mean loss."""
    optimizer = torch.optim.SGD(module.parameters(), **options)
    losses = []
    for row in rows:
        batch = take(data, row)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(batch.x), batch.y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach(), sum(losses) / len(losses)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.02}, {"momentum": 0.5, "weight_decay": 0.1}],
    ids=["plain", "momentum", "decay", "both"],
)
@pytest.mark.parametrize("plan", [{"epochs": 3}, {"steps": 11}])
def test_local_sgd_is_pytorchs_sgd(options, plan):
    module = models.build(models.mlp, {"hidden": 9}, (5,), 3, stream(0, "model")).to(DOUBLE)
    rng = np.random.default_rng(1)
    x, y = torch.from_numpy(rng.standard_normal((17, 5))), torch.from_numpy(rng.integers(0, 3, 17))
    data, task = Batch(x, y, torch.ones(17, dtype=DOUBLE)), Task(module, dtype=DOUBLE)
    update = LocalSGD(Local(batch_size=5, lr=0.2, **plan, **options))
    rows = update.batches(17, stream(0, "batches"))
    assert len(rows) == plan.get("steps", 3 * 4)
    sent, _ = run(update, task, data, {"arrays": task.initial}, rows)
    weights, loss = plain_sgd(module, data, rows, lr=0.2, **options)
    torch.testing.assert_close(sent["arrays"], weights, rtol=0, atol=1e-12)
    assert float(sent["train_loss"]) == pytest.approx(loss, abs=1e-12)
    assert set(sent) == {*update.sends, *update.metrics}


@pytest.mark.parametrize(
    ("options", "path"),
    [
        # gradient w - 1: -1 at 0; then -1/2
        ({}, [0.5, 0.75]),
        # then 0.5 x (-1) - 0.5 = -1
        ({"momentum": 0.5}, [0.5, 1.0]),
        # then -0.5 + 0.1 x 0.5 = -0.45
        ({"weight_decay": 0.1}, [0.5, 0.725]),
        # -1; then 0.5 x (-1) - 0.45 = -0.95
        ({"momentum": 0.5, "weight_decay": 0.1}, [0.5, 0.975]),
    ],
)
def test_local_sgd_by_hand(options, path):
    task, data = quadratic([[1.0]], [1.0])
    update = LocalSGD(Local(steps=2, batch_size=1, lr=0.5, **options))
    sent, states = run(update, task, data, {"arrays": numbers(0.0)}, np.zeros((2, 1), dtype=np.int64))
    assert [float(state["weights"]) for state in states[1:]] == pytest.approx(path, abs=1e-15)
    assert float(sent["arrays"]) == pytest.approx(path[-1], abs=1e-15)
    assert float(sent["train_loss"]) == (0.5 + 0.125) / 2


def test_each_client_has_its_rate():
    update = LocalSGD(Local(steps=1, batch_size=1, lr=[0.5, 0.25]))
    task, data = quadratic([[1.0]], [1.0])
    rows = np.zeros((1, 1), dtype=np.int64)
    found = [float(run(update, task, data, {"arrays": numbers(0.0)}, rows, i)[0]["arrays"]) for i in range(2)]
    assert found == [0.5, 0.25]
    assert dict(Miner(Local(steps=1, lr=[0.5, 0.25])).scalars(1, 5)) == {"lr": 0.25, "lr-factor": 1.0}
    assert dict(LocalSGD(Local(lr=0.1)).scalars(7, 5)) == {"lr": 0.1}


def test_the_weights_received_stay_as_they_are():
    task, data = some_quadratic()
    start, direction = torch.ones(4, dtype=DOUBLE), torch.full((4,), 0.5, dtype=DOUBLE)
    for update in (
        LocalSGD(Local(steps=3, lr=0.1, momentum=0.9)),
        Anchor(),
        Miner(Local(steps=3, lr=0.1)),
    ):
        given = {"arrays": start, "anchor-mean": direction}
        run(update, task, data, given, update.batches(12, stream(0, "batches")))
    assert start.tolist() == [1.0] * 4
    assert direction.tolist() == [0.5] * 4


def test_ragged_last_batch():
    rows = shuffled_batches(7, 3, 2, None, stream(0, "batches"))
    assert rows.shape == (6, 3)
    assert (rows >= 0).sum(1).tolist() == [3, 3, 1, 3, 3, 1]
    assert rows[2, 1:].tolist() == [-1, -1]


PLANS = st.one_of(
    st.builds(Local, epochs=st.integers(1, 4), batch_size=st.integers(1, 50) | st.none()),
    st.builds(Local, steps=st.integers(1, 40), batch_size=st.integers(1, 50) | st.none()),
)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), PLANS, st.integers(0, 3))
def test_passes_and_work(samples, local, seed):
    update = LocalSGD(local)
    rows = update.batches(samples, stream(seed, "batches"))
    width = min(local.batch_size or samples, samples)
    per_pass = -(-samples // width)
    assert rows.shape == (local.steps or local.epochs * per_pass, width)
    assert update.width(samples) == width
    assert update.work(samples) == (rows >= 0).sum()
    for first in range(0, len(rows), per_pass):
        chunk = rows[first : first + per_pass]
        used = chunk[chunk >= 0].tolist()
        assert len(set(used)) == len(used)
        assert set(used) <= set(range(samples))
        if len(chunk) == per_pass:
            assert sorted(used) == list(range(samples))


def test_passes_are_shuffled_afresh_and_by_the_stream_alone():
    rows = shuffled_batches(20, 20, 3, None, stream(0, "batches"))
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert np.array_equal(rows, shuffled_batches(20, 20, 3, None, stream(0, "batches")))
    assert not np.array_equal(rows, shuffled_batches(20, 20, 3, None, stream(1, "batches")))
    # A longer plan begins like a shorter one.
    assert np.array_equal(shuffled_batches(20, 20, None, 2, stream(0, "batches")), rows[:2])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 600), st.integers(1, 700) | st.none())
def test_anchor_plan(samples, large_batch):
    update = Anchor(large_batch)
    rows = update.batches(samples, stream(0, "batches"))
    drawn = rows[rows >= 0]
    assert len(drawn) == len(set(drawn.tolist())) == update.work(samples) == min(large_batch or 600, samples)
    assert set(drawn.tolist()) <= set(range(samples))
    assert rows.shape[1] == update.width(samples) <= 256
    assert (rows[:-1] >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 50) | st.none())
def test_miner_plan(samples, steps, batch_size):
    update = Miner(Local(steps=steps, batch_size=batch_size))
    rows = update.batches(samples, stream(0, "batches"))
    assert rows.shape == (steps - 1, update.width(samples))
    assert update.work(samples) == 2 * (rows >= 0).sum()


def test_miner_work_of_the_example():
    # 600 samples, K = 10, b' = 64: nine batches of 64, two gradients for each sample
    assert Miner(Local(steps=10, batch_size=64)).work(600) == 2 * 9 * 64
    assert Anchor(600).work(600) == Anchor().work(600) == 600
    assert LocalSGD(Local(steps=10, batch_size=64)).work(600) == 9 * 64 + 24


def test_anchor_is_the_mean_gradient_at_the_weights_received():
    task, data = some_quadratic(samples=600, dimension=3)
    update, start = Anchor(), numbers(1.0, -2.0, 0.5)
    rows = update.batches(600, stream(0, "batches"))
    assert (rows >= 0).sum(1).tolist() == [256, 256, 88]
    sent, _ = run(update, task, data, {"arrays": start}, rows)
    residual = data.x @ start - data.y
    torch.testing.assert_close(sent["arrays"], data.x.T @ residual / 600, rtol=0, atol=1e-12)
    assert float(sent["train_loss"]) == pytest.approx(float(0.5 * (residual**2).mean()), abs=1e-12)


def test_anchor_by_hand():
    # f = x^2 / 2 - 3 x: gradients w and 3 (3 w - 6) at w = 1 are 1 and -9, losses 0.5 and 4.5
    task, data = quadratic([[1.0], [3.0]], [0.0, 6.0])
    sent, _ = run(Anchor(), task, data, {"arrays": numbers(1.0)}, np.array([[0, 1]]))
    assert (float(sent["arrays"]), float(sent["train_loss"])) == (-4.0, 2.5)
    sent, _ = run(Anchor(1), task, data, {"arrays": numbers(1.0)}, np.array([[1]]))
    assert (float(sent["arrays"]), float(sent["train_loss"])) == (-9.0, 4.5)


def test_sarah_not_svrg():
    # Two samples 0.5 h x^2 with h = 1 and 3; x = 1, direction 2, rate 0.1.
    task, data = quadratic([[1.0], [3.0**0.5]], [0.0, 0.0])
    update = Miner(Local(steps=3, batch_size=1, lr=0.1))
    given = {"arrays": numbers(1.0), "anchor-mean": numbers(2.0)}
    sent, states = run(update, task, data, given, np.array([[0], [1]]))
    assert [float(state["weights"]) for state in states] == pytest.approx([0.8, 0.62, 0.494], abs=1e-12)
    assert [float(state["direction"]) for state in states] == pytest.approx([2, 9 / 5, 63 / 50], abs=1e-12)
    assert float(sent["arrays"]) == pytest.approx(1 - 0.494, abs=1e-12)
    assert float(sent["train_loss"]) == pytest.approx((0.5 * 0.8**2 + 1.5 * 0.62**2) / 2, abs=1e-12)


def test_directions_on_quadratics_are_products():
    task, data = some_quadratic(dimension=3)
    update = Miner(Local(steps=5, batch_size=2, lr=0.05))
    rows = update.batches(12, stream(3, "batches"))
    direction = numbers(1.0, -1.0, 2.0)
    given = {"arrays": numbers(0.3, 0.2, 0.1), "anchor-mean": direction}
    _, states = run(update, task, data, given, rows)
    for row, state in zip(rows, states[1:]):
        a = data.x[row]
        direction = direction - 0.05 * (a.T @ (a @ direction)) / 2
        torch.testing.assert_close(state["direction"], direction, rtol=0, atol=1e-12)


def test_one_step_needs_no_data():
    update = Miner(Local(steps=1, batch_size=3, lr=0.1))
    rows = update.batches(12, stream(0, "batches"))
    assert len(rows) == update.work(12) == 0
    task, data = some_quadratic()
    direction = numbers(1.0, 2.0, -3.0, 0.5)
    given = {"arrays": torch.zeros(4, dtype=DOUBLE), "anchor-mean": direction}
    sent, _ = run(update, task, data, given, rows)
    torch.testing.assert_close(sent["arrays"], 0.1 * direction, rtol=0, atol=1e-15)
    assert update.metrics == ()


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_full_batches_telescope(steps):
    task, data = some_quadratic()
    update = Miner(Local(steps=steps, batch_size=None, lr=0.05))
    start, mean = numbers(0.1, 0.2, 0.3, 0.4), numbers(1.0, 2.0, -3.0, 0.5)
    rows = update.batches(12, stream(0, "batches"))
    sent, states = run(update, task, data, {"arrays": start, "anchor-mean": mean}, rows)
    at_start = task.gradient(start, data)[0]
    for state in states[1:]:
        expected = mean + task.gradient(state["before"], data)[0] - at_start
        torch.testing.assert_close(state["direction"], expected, rtol=0, atol=1e-12)
    total = sum(state["direction"] for state in states)
    torch.testing.assert_close(sent["arrays"], 0.05 * total, rtol=0, atol=1e-12)


def test_fresh_mean_and_full_batches_are_gradient_descent():
    task, data = some_quadratic()
    update, weights = Miner(Local(steps=4, batch_size=None, lr=0.05)), torch.ones(4, dtype=DOUBLE)
    given = {"arrays": weights, "anchor-mean": task.gradient(weights, data)[0]}
    sent, _ = run(update, task, data, given, update.batches(12, stream(0, "batches")))
    for _ in range(4):
        weights = weights - 0.05 * task.gradient(weights, data)[0]
    torch.testing.assert_close(1.0 - sent["arrays"], weights, rtol=0, atol=1e-12)


def test_a_miner_rests_where_the_mean_is_zero():
    task, data = some_quadratic()
    start = numbers(1.0, 2.0, 3.0, 4.0)
    assert task.gradient(start, data)[0].norm() > 1
    update = Miner(Local(steps=8, batch_size=2, lr=0.1))
    given = {"arrays": start, "anchor-mean": torch.zeros(4, dtype=DOUBLE)}
    sent, _ = run(update, task, data, given, update.batches(12, stream(0, "batches")))
    assert sent["arrays"].tolist() == [0.0] * 4


def test_both_points_of_a_step_see_the_same_batch():
    task, data = some_quadratic()
    seen = []

    def spy(weights, batch):
        seen.append((weights, batch.y))
        return task.gradient(weights, batch)

    update = Miner(Local(steps=4, batch_size=3, lr=0.1))
    rows = update.batches(12, stream(0, "batches"))
    given = {"arrays": numbers(1.0, 1, 1, 1), "anchor-mean": numbers(1.0, 0, 0, 0), "lr": numbers(0.1)[0]}
    given["lr-factor"] = numbers(1.0)[0]
    state = update.init(given)
    assert seen == []
    iterates = [given["arrays"], state["weights"]]
    for row in rows:
        state = update.step(spy, state, take(data, row))
        iterates.append(state["weights"])
    for k, row in enumerate(rows):
        (newer, first), (older, second) = seen[2 * k : 2 * k + 2]
        assert torch.equal(first, second)
        assert torch.equal(first, data.y[row])
        assert torch.equal(newer, iterates[k + 1])
        assert torch.equal(older, iterates[k])
    assert len({tuple(row) for row in rows.tolist()}) == 3


@pytest.mark.parametrize(
    ("local", "key"),
    [
        (Local(epochs=2), "local.steps"),
        (Local(steps=2, momentum=0.9), "local.momentum"),
        (Local(steps=2, weight_decay=0.1), "local.weight_decay"),
    ],
)
def test_miner_refuses_what_has_no_place(local, key):
    with pytest.raises(BadValue, match="FedAMD") as caught:
        Miner(local)
    assert caught.value.key == key


def test_the_proximal_term_pulls_back_to_the_weights_received():
    # f(w) = 0.5 w^2 from w = 1, rate 0.1, mu = 2: w_1 = 1 - 0.1 * 1 = 0.9 (no pull yet),
    # w_2 = 0.9 - 0.1 * (0.9 + 2 * (0.9 - 1)) = 0.83; without the term it is 0.81
    def gradient(weights, batch):
        return weights.clone(), (0.5 * weights**2).sum()

    for proximal, wanted in ((2.0, 0.83), (0.0, 0.81)):
        update = LocalSGD(Local(steps=2, lr=0.1), proximal)
        state = update.init(
            {"arrays": torch.tensor([1.0]).double(), "lr": torch.tensor(0.1, dtype=torch.float64)}
        )
        for _ in range(2):
            state = update.step(gradient, state, None)
        assert float(update.final(state)["arrays"]) == pytest.approx(wanted, abs=1e-15)
