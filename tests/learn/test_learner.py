"""Training and evaluation as deferred values: what is batched, what is random, and what an error says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from fedsim.errors import NotFiniteError, RunError, StalledError, ValueNeeded
from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.engines import Sequential, Shard, Stacked
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalSGD
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import Anchor, Miner

START = Place(0, 1, 0.0)
ENGINES = pytest.mark.parametrize(
    "make", [Sequential, lambda task, data: Stacked(task, data, 4)], ids=["sequential", "stacked"]
)


class Counting(Sequential):
    """Logs the clients and the number of vectors of each call."""

    def __init__(self, task, data):
        super().__init__(task, data)
        self.trained, self.evaluated = [], []

    def train(self, jobs):
        self.trained.append([job.client for job in jobs])
        return super().train(jobs)

    def evaluate(self, weights, x, y, chunk):
        self.evaluated.append((len(weights), len(x)))
        return super().evaluate(weights, x, y, chunk)


def learner(make=Counting, dtype=torch.float64, seed=0, **more):
    """Four clients with 2, 3, 4 and 5 samples of a regression in two dimensions."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.standard_normal((14, 2))).to(dtype), torch.arange(14.0).to(dtype)
    task = Task(models.linear(shape=(2,)), "half_square", dtype=dtype)
    task.initial = torch.ones(2, dtype=dtype)
    data = Shard(x, y, list(torch.split(torch.arange(14), [2, 3, 4, 5])))
    return Learner(make(task, data), x[:6], y[:6], seed, **more)


def train(one, update, client, round=1, sim_time_s=0.0, start=None):
    given = {"arrays": one.initial if start is None else start}
    return one.train(update, client, given, Place(client, round, sim_time_s))


def test_sizes_and_initial_weights():
    one = learner()
    assert one.sizes == [2, 3, 4, 5]
    assert one.initial.done
    assert one.initial.value() is one.engine.task.initial


def test_training_is_put_off_and_batched():
    one, update = learner(), LocalSGD(Local(lr=0.01))
    results = [train(one, update, client) for client in range(4)]
    assert one.engine.trained == []
    assert results[2].pick("arrays").value().shape == (2,)
    assert one.engine.trained == [[2]]
    compute(results)
    assert one.engine.trained == [[2], [0, 1, 3]]
    assert [set(result.value()) for result in results] == [{"arrays", "train_loss"}] * 4


def test_all_that_is_ready_is_handed_over_together():
    one = learner()
    anchor, miner = Anchor(), Miner(Local(steps=2, lr=0.01))
    given = {"arrays": one.initial, "anchor-mean": Deferred.known(torch.ones(2, dtype=torch.float64))}
    results = [one.train((anchor, miner)[client % 2], client, given, START) for client in range(4)]
    compute(results)
    assert one.engine.trained == [[0, 1, 2, 3]]


def test_one_full_step_by_hand():
    one = learner()
    result = train(one, LocalSGD(Local(batch_size=None, lr=0.5)), 1).value()
    x, y = one.engine.data.x[2:5], one.engine.data.y[2:5]
    residual = x @ torch.ones(2, dtype=torch.float64) - y
    torch.testing.assert_close(result["arrays"], 1 - 0.5 * x.T @ residual / 3, rtol=0, atol=1e-12)
    assert float(result["train_loss"]) == pytest.approx(float(0.5 * (residual**2).mean()), abs=1e-12)


def test_batches_depend_on_seed_client_and_round_alone():
    update = LocalSGD(Local(epochs=1, batch_size=1, lr=0.05))

    def weights(seed=0, round=1, sim_time_s=0.0):
        return train(learner(seed=seed), update, 3, round, sim_time_s).value()["arrays"]

    assert torch.equal(weights(), weights())
    assert torch.equal(weights(), weights(sim_time_s=7.0))
    assert len({tuple(weights(round=round).tolist()) for round in range(6)}) > 3
    assert len({tuple(weights(seed=seed).tolist()) for seed in range(6)}) > 3


def test_what_was_computed_beside_it_does_not_matter():
    update = LocalSGD(Local(epochs=2, batch_size=2, lr=0.05, momentum=0.5))
    one = learner(lambda task, data: Stacked(task, data, 3), torch.float32)
    together = [train(one, update, client) for client in range(4)]
    compute(together)
    for client, result in enumerate(together):
        alone = train(one, update, client).value()
        assert all(torch.equal(alone[name], value) for name, value in result.value().items())


def test_evaluations_on_the_same_data_run_together():
    one = learner()
    models_ = [Deferred.known(torch.full((2,), float(i), dtype=torch.float64)) for i in range(3)]
    scores = [one.evaluate(model) for model in models_] + [one.evaluate(models_[0], client=3)]
    assert one.engine.evaluated == []
    compute(scores)
    assert sorted(one.engine.evaluated) == [(1, 5), (3, 6)]


@ENGINES
def test_evaluation_by_hand(make):
    one = learner(make, chunk=2)
    zero = Deferred.known(torch.zeros(2, dtype=torch.float64))
    # All predictions are 0: half the mean of the squared targets 0..5, and of client 1's targets 2, 3, 4.
    assert one.evaluate(zero).value() == pytest.approx({"loss": 55 / 12}, abs=1e-12)
    assert one.evaluate(zero, client=1).value() == pytest.approx({"loss": 29 / 6}, abs=1e-12)


def test_evaluation_follows_training():
    one = learner()
    result = train(one, LocalSGD(Local(epochs=5, batch_size=None, lr=0.1)), 3)
    before, after = (one.evaluate(model, client=3) for model in (one.initial, result.pick("arrays")))
    assert after.value()["loss"] < before.value()["loss"]


@ENGINES
@pytest.mark.parametrize("alone", [True, False])
def test_infinite_weights_name_their_place(make, alone):
    one = learner(make, torch.float32)
    update = LocalSGD(Local(steps=40, batch_size=None, lr=[0.01, 0.01, 1e8, 0.01]))
    results = [train(one, update, client, 3, 1.5 + client) for client in range(4)]
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in arrays.*learning rate") as caught:
        compute([results[2]] if alone else results)
    error = caught.value
    assert (error.node, error.round, error.sim_time_s, error.phase) == (2, 3, 3.5, "train")
    assert str(error).startswith("node 2, round 3, t = 3.500000 s, train: ")


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (float("nan"), "the weights received have it already"),
        # (1e200)^2 is more than a float64 can hold
        (1e200, "the model received gives it for this client's samples, before any step"),
    ],
)
def test_nan_that_was_received_is_not_blamed_on_the_learning_rate(start, why):
    given = Deferred.known(torch.full((2,), start, dtype=torch.float64))
    result = train(learner(), LocalSGD(Local(steps=1, batch_size=None, lr=0.1)), 1, start=given)
    with pytest.raises(NotFiniteError, match=f"NaN or infinity in .*; {why}$"):
        result.value()


class Broken(LocalSGD):
    """Fails for one client, in the way asked for."""

    def __init__(self, error, where):
        super().__init__(Local(steps=1, lr=0.1))
        self.error, self.where = error, where

    def scalars(self, client, samples):
        if self.where == "scalars" and client == 2:
            raise self.error
        return super().scalars(client, samples)

    def batches(self, samples, rng):
        if self.where == "batches" and samples == 4:
            raise self.error
        return super().batches(samples, rng)


@ENGINES
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("where", ["scalars", "batches"])
def test_an_error_names_whose_it_is(make, alone, where):
    one, original = learner(make), ZeroDivisionError("nothing to divide by")
    update = Broken(original, where)
    results = [train(one, update, client, 7, 0.25) for client in range(4)]
    with pytest.raises(RunError, match="ZeroDivisionError: nothing to divide by") as caught:
        compute([results[2]] if alone else results)
    error = caught.value
    assert (error.node, error.round, error.sim_time_s, error.phase) == (2, 7, 0.25, "train")
    assert error.__cause__ is original


@ENGINES
def test_an_error_inside_a_step(make):
    class Typo(LocalSGD):
        def step(self, gradient, state, batch):
            return super().step(gradient, state, batch.no_such_field)

    with pytest.raises(RunError, match=r"AttributeError: .*no_such_field") as caught:
        train(learner(make), Typo(Local(lr=0.1)), 1).value()
    assert isinstance(caught.value.__cause__, AttributeError)
    assert caught.value.node == 1


def test_errors_of_ours_pass_unchanged():
    original = StalledError("stuck", 5)
    with pytest.raises(StalledError) as caught:
        train(learner(), Broken(original, "scalars"), 2).value()
    assert caught.value is original


def test_a_missing_vector():
    one = learner()
    with pytest.raises(RunError) as caught:
        one.train(Miner(Local(steps=2)), 1, {"arrays": one.initial}, Place(1, 4, 2.0))
    assert (
        str(caught.value) == "node 1, round 4, t = 2.000000 s, train: "
        "the update needs ['anchor-mean'] and was given ['arrays']"
    )


def test_vectors_that_the_update_does_not_take_are_not_computed():
    class Untouchable:
        batch = None

        def run(self, calls, inputs):
            raise AssertionError("nobody needs this")

    one = learner()
    given = {"arrays": one.initial, "other": Deferred(Untouchable(), {})}
    assert one.train(Anchor(), 0, given, START).value()["arrays"].shape == (2,)


def test_a_dry_learner_gives_phantoms():
    one = dataclasses.replace(learner(), dry=True)
    known = Deferred.known(torch.ones(2, dtype=torch.float64))
    result = train(one, Anchor(), 1, start=known)
    for value in (one.initial, result, result.pick("arrays"), one.evaluate(known), one.evaluate(known, 1)):
        assert value.is_phantom
        with pytest.raises(ValueNeeded):
            value.value()
    assert one.sizes == [2, 3, 4, 5]
    assert one.engine.trained == one.engine.evaluated == []
