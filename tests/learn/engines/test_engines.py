"""The stacked engine against the sequential reference, and whether grouping matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.learn.engines import Sequential, Shard, Stacked, TrainJob
from fedsim.learn.local import LocalSGD
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import Anchor, Miner
from strategies.server.feddyn import Dynamic
from strategies.server.scaffold import Controlled

RAGGED = [1, 40, 7, 16, 5]
MODELS = {
    "softmax": (models.softmax, (9,)),
    "mlp": (models.mlp, (1, 8, 8)),
    "lenet5": (models.lenet5, (1, 8, 8)),
    "gn-lenet": (models.gn_lenet, (1, 8, 8)),
}
UPDATES = {
    "sgd": LocalSGD(Local(epochs=2, batch_size=5, lr=0.1)),
    "momentum": LocalSGD(Local(epochs=1, batch_size=8, lr=0.1, momentum=0.9, weight_decay=0.01)),
    "whole": LocalSGD(Local(steps=2, batch_size=None, lr=0.1)),
    "rates": LocalSGD(Local(steps=3, batch_size=4, lr=[0.1, 0.2, 0.3, 0.4, 0.5])),
    "anchor": Anchor(),
    "anchor-9": Anchor(9),
    "miner-1": Miner(Local(steps=1, batch_size=4, lr=0.1)),
    "miner-2": Miner(Local(steps=2, batch_size=4, lr=0.1)),
    "miner-5": Miner(Local(steps=5, batch_size=4, lr=0.1)),
    "proximal": LocalSGD(Local(steps=3, batch_size=4, lr=0.1), proximal=0.5),
    "scaffold-1": Controlled(Local(epochs=1, batch_size=4, lr=0.1), 1),
    "scaffold-2": Controlled(Local(epochs=1, batch_size=4, lr=0.1), 2),
    "dynamic": Dynamic(Local(epochs=1, batch_size=4, lr=0.1), 0.5),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with limited(1):
        yield


def world(name, dtype=torch.float64, sizes=RAGGED, classes=4):
    part, shape = MODELS[name]
    task = Task(models.build(part, {}, shape, classes, stream(0, "model")), dtype=dtype)
    rng, total = np.random.default_rng(0), sum(sizes)
    x = torch.from_numpy(rng.standard_normal((total, *shape))).to(dtype)
    y = torch.from_numpy(rng.integers(0, classes, total))
    owned = np.split(rng.permutation(total), np.cumsum(sizes)[:-1])
    return task, Shard(x, y, [torch.from_numpy(own) for own in owned])


def make_jobs(task, data, update):
    given = {"arrays": task.initial}
    rng = np.random.default_rng(1)
    for name in (*update.takes[1:], *update.keeps):
        given[name] = torch.from_numpy(rng.standard_normal(task.size) / task.size**0.5).to(task.dtype)
    plans = [update.batches(size, stream(0, "batches", i)) for i, size in enumerate(data.sizes)]
    return [TrainJob(update, i, rows, given) for i, rows in enumerate(plans)]


def gap(found, wanted):
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("name", MODELS)
def test_stacked_is_sequential(name, update):
    task, data = world(name)
    jobs = make_jobs(task, data, update)
    wanted = Sequential(task, data).train(jobs)
    found = Stacked(task, data, 5).train(jobs)
    assert max(map(gap, found, wanted)) < 1e-10
    assert float((wanted[1]["arrays"] - task.initial).abs().max()) > 1e-3
    assert not any(value.requires_grad for result in (*found, *wanted) for value in result.values())


@pytest.mark.parametrize("name", MODELS)
def test_one_step_in_float32(name):
    task, data = world(name, torch.float32)
    for update in (LocalSGD(Local(steps=1, batch_size=8, lr=0.1)), Anchor()):
        jobs = make_jobs(task, data, update)
        for found, wanted in zip(Stacked(task, data, 5).train(jobs), Sequential(task, data).train(jobs)):
            difference = (found["arrays"] - wanted["arrays"]).norm() / wanted["arrays"].norm()
            assert float(difference) < 1e-5
            assert float(found["train_loss"]) == pytest.approx(float(wanted["train_loss"]), rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 4), st.integers(1, 12))
def test_any_sizes_and_any_number_of_slots(sizes, slots, batch_size):
    task, data = world("softmax", sizes=sizes)
    update = LocalSGD(Local(epochs=1, batch_size=batch_size, lr=0.1, momentum=0.5))
    jobs = make_jobs(task, data, update)
    found = Stacked(task, data, slots).train(jobs)
    assert max(map(gap, found, Sequential(task, data).train(jobs))) < 1e-10


def test_slots_fit_jobs_in_any_number():
    task, data = world("mlp")
    jobs = make_jobs(task, data, UPDATES["sgd"]) * 2
    wanted = Sequential(task, data).train(jobs)
    for slots in (1, 3, 10, 16):
        assert max(map(gap, Stacked(task, data, slots).train(jobs), wanted)) < 1e-10
    assert Stacked(task, data, 3).train([]) == Sequential(task, data).train([]) == []


GROUPED = {}


def grouped(name, kind):
    """Return engine, jobs and their results when all are done at once."""
    if (name, kind) not in GROUPED:
        task, data = world(name, torch.float32)
        engine, jobs = Stacked(task, data, 3), make_jobs(task, data, UPDATES[kind])
        GROUPED[name, kind] = engine, jobs, engine.train(jobs)
    return GROUPED[name, kind]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["softmax", "mlp", "lenet5"]),
    st.sampled_from(["sgd", "momentum", "rates", "anchor", "miner-5"]),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
)
def test_grouping_does_not_matter(name, kind, chosen):
    engine, jobs, wanted = grouped(name, kind)
    for i, result in zip(chosen, engine.train([jobs[i] for i in chosen])):
        assert same(result, wanted[i])


def test_grouping_does_not_matter_for_group_normalisation():
    engine, jobs, wanted = grouped("gn-lenet", "sgd")
    for chosen in ([4, 0], [3], [2, 1, 3, 4, 0]):
        assert all(
            same(result, wanted[i]) for i, result in zip(chosen, engine.train([jobs[i] for i in chosen]))
        )


def test_results_do_not_share_the_stack():
    engine, jobs, _ = grouped("softmax", "sgd")
    first, second = engine.train(jobs[:2])
    assert first["arrays"].untyped_storage().nbytes() == first["arrays"].nbytes
    before = second["arrays"].clone()
    first["arrays"].zero_()
    assert torch.equal(second["arrays"], before)


def test_a_client_that_diverges_leaves_its_neighbours_alone():
    task, data = world("mlp", torch.float32)
    calm = LocalSGD(Local(epochs=2, batch_size=5, lr=[0.1] * 5))
    wild = LocalSGD(Local(epochs=2, batch_size=5, lr=[0.1, 1e30, 0.1, 0.1, 0.1]))
    engine = Stacked(task, data, 5)
    wanted = engine.train(make_jobs(task, data, calm))
    found = engine.train(make_jobs(task, data, wild))
    assert not found[1]["arrays"].isfinite().all()
    assert all(same(found[i], wanted[i]) for i in (0, 2, 3, 4))


def test_engines_leave_the_jobs_as_they_are():
    task, data = world("mlp")
    jobs = make_jobs(task, data, UPDATES["miner-5"])
    rows, given = [job.rows.copy() for job in jobs], {k: v.clone() for k, v in jobs[0].given.items()}
    for engine in (Sequential(task, data), Stacked(task, data, 2)):
        engine.train(jobs)
    assert all(np.array_equal(job.rows, old) for job, old in zip(jobs, rows))
    assert same(jobs[0].given, given)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_evaluations_agree(name, chunk):
    task, data = world(name)
    weights = [task.initial * factor for factor in (1.0, 0.5, -2.0, 0.0)]
    x, y = data.x[:16], data.y[:16]
    wanted = Sequential(task, data).evaluate(weights, x, y, 5)
    ways = [Sequential(task, data).evaluate]
    for slots in (3, 9):
        ways += [Stacked(task, data, slots).evaluate, Stacked(task, data, slots).evaluate_stacked]
    for evaluate in ways:
        for found, expected in zip(evaluate(weights, x, y, chunk), wanted, strict=True):
            assert found == pytest.approx(expected, abs=1e-10)
    assert wanted[3]["loss"] == pytest.approx(math.log(4), abs=1e-12)
    # Equal logits: the first class wins.
    assert wanted[3]["accuracy"] == float((y == 0).double().mean())


@pytest.mark.parametrize(
    "evaluate",
    [lambda *world: Sequential(*world).evaluate, lambda *world: Stacked(*world, 2).evaluate_stacked],
    ids=["sequential", "stacked"],
)
def test_evaluation_of_a_regression_by_hand(evaluate):
    task = Task(models.linear(shape=(1,)), "half_square", dtype=torch.float64)
    x, y = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.tensor([1.0, 2.0, 5.0]).double()
    data = Shard(x, y, [torch.arange(3)])
    weights = [torch.tensor([w], dtype=torch.float64) for w in (1.0, 2.0, 0.0)]
    # residuals (0, 0, -2), (1, 2, 1), (-1, -2, -5)
    expected = [{"loss": 4 / 6}, {"loss": 6 / 6}, {"loss": 30 / 6}]
    assert evaluate(task, data)(weights, x, y, 2) == [pytest.approx(e, abs=1e-15) for e in expected]


def test_grouping_does_not_matter_for_evaluations():
    task, data = world("mlp", torch.float32)
    engine = Stacked(task, data, 3)
    weights = [task.initial * factor for factor in (1.0, 0.5, -2.0, 0.1)]
    for evaluate in (engine.evaluate, engine.evaluate_stacked):
        together = evaluate(weights, data.x, data.y, 20)
        assert together == [evaluate([one], data.x, data.y, 20)[0] for one in weights]
        assert together[::-1] == evaluate(weights[::-1], data.x, data.y, 20)


def test_shard_and_scalars():
    task, data = world("softmax")
    assert data.sizes == RAGGED
    job = make_jobs(task, data, UPDATES["rates"])[2]
    scalars = Sequential(task, data).scalars(job)
    assert float(scalars["lr"]) == pytest.approx(0.3)
    assert (scalars["lr"].dtype, scalars["lr"].shape) == (torch.float64, ())


def test_regression_in_a_stack():
    task = Task(models.linear(shape=(3,)), "half_square", dtype=torch.float64)
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((9, 3))), torch.from_numpy(rng.standard_normal(9))
    data = Shard(x, y, [torch.arange(2), torch.arange(2, 9)])
    jobs = make_jobs(task, data, LocalSGD(Local(epochs=3, batch_size=2, lr=0.1)))
    found, wanted = Stacked(task, data, 4).train(jobs), Sequential(task, data).train(jobs)
    assert max(map(gap, found, wanted)) < 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_on_an_accelerator(name):
    part, shape = MODELS[name]
    task, data = world(name)
    wanted = Sequential(task, data).train(make_jobs(task, data, UPDATES["momentum"]))
    module = models.build(part, {}, shape, 4, stream(0, "model"))
    there = Task(module, device="cuda", dtype=torch.float64)
    shard = Shard(data.x.cuda(), data.y.cuda(), [own.cuda() for own in data.owned])
    engine, jobs = Stacked(there, shard, 3), make_jobs(task, data, UPDATES["momentum"])
    jobs = [TrainJob(job.update, job.client, job.rows, {"arrays": there.initial}) for job in jobs]
    found = engine.train(jobs)
    for result, expected in zip(found, wanted):
        assert float((result["arrays"].cpu() - expected["arrays"]).abs().max()) < 1e-10
    assert all(same(engine.train([job])[0], result) for job, result in zip(jobs, found))
