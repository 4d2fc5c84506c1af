"""Where buffers are the clients' own, whatever is judged is judged with them, and nothing moves those of a server."""

from __future__ import annotations

import pytest
import torch

import fedsim
from fedsim.learn import build as learning
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD
from fedsim.methods.server import Ask
from fedsim.running.clients import LocalClients, Order
from fedsim.running.servers import with_buffers
from fedsim.spec.experiment import Local
from tests.learn.test_buffers import SENT, experiment, task_of


def test_the_one_model_of_a_round_is_judged_with_the_mean_of_what_peers_have(tmp_path):
    given = experiment("modest", "local", extra={"sample_size": 3}, topology="complete")
    assert int(fedsim.run(given, out=tmp_path).weights()["batches"]) > 0
    given["strategy"]["buffers"] = "server"
    assert int(fedsim.run(given, out=tmp_path).weights()["batches"]) == 0


@pytest.mark.parametrize("held", ["local", "server"])
def test_a_client_judges_a_model_with_the_buffers_that_it_has(held):
    learner, _, _ = learning.build(fedsim.load(experiment(held=held)))
    clients = LocalClients(learner, {"train": LocalSGD(Local(epochs=1, batch_size=3))})

    def loss():
        ask = Ask(0, "evaluate", {"arrays": learner.initial})
        return clients.reply(0, Order(1, ask), 0.0).metrics["loss"]

    task, data = learner.engine.task, learner.engine.data
    own, vector = data.owned[0], task.initial.clone()

    def wanted():
        return float(task.losses(task.predict(vector, data.x[own]), data.y[own]).mean())

    assert loss() == pytest.approx(wanted(), abs=1e-12)
    clients.reply(0, Order(1, Ask(0, "train", {"arrays": learner.initial})), 0.0)
    vector[-1] = 3.0 if held == "local" else 0.0  # 8 samples in 3 batches; the loss reads their number alone
    assert loss() == pytest.approx(wanted(), abs=1e-12)


def test_a_round_without_replies_leaves_the_buffers_as_they_are():
    task = task_of("average")
    former = Deferred.known(torch.full((SENT + 3,), 2.0))
    moved = Deferred.known(torch.full((SENT + 3,), -7.0))  # as a method that moves by what it remembers
    assert with_buffers(task, former, moved, []).value().tolist() == [-7.0] * SENT + [2.0] * 3
