"""The built-in clients: what a visit draws, what it keeps, and what it answers besides training."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.learn.around import Around, Clip
from fedsim.learn.build import build
from fedsim.learn.local import LocalSGD
from fedsim.methods.select import QUERY_SIZE
from fedsim.spec.experiment import Local, load
from strategies.server.feddyn import GRADIENT, Dynamic

LOCAL = Local(steps=2, batch_size=4, lr=0.1)


@pytest.fixture(autouse=True)
def _identity():
    with compat.session(0, 99, lambda seconds: None):
        yield


@pytest.fixture(scope="module")
def learner():
    given = {
        "data": {"clients": 3},
        "model": "softmax",
        "strategy": "fedavg",
        "stop": {"rounds": 1},
        "compute": {"dtype": "float64"},
    }
    return build(load(given))[0]


def ask(learner, client, round=None, action="train"):
    arrays = pack(learner.initial, learner.engine.task.layout, "float64")
    config = ConfigRecord({} if round is None else {"server-round": round})
    return Message(RecordDict({"arrays": arrays, "config": config}), client, action)


def visit(clients, client, round=None, action="train"):
    message = ask(clients.learner, client, round, action)
    return unpack(clients.answer(client, message, 0.0)["arrays"]).value()


@pytest.mark.parametrize(
    "rounds",
    [
        [3, 3, 2, 3, 4, 4, 3],  # as they may come in when nobody waits for anybody
        [3, 3, 4, 3],  # the last is no second visit of round 3
        [1, 1, 1, 2, 1, 3, 1, 2, 2, 3],
    ],
)
def test_every_visit_draws_batches_of_its_own(rounds, learner):
    clients = BuiltinClients(learner, {"train": LocalSGD(LOCAL)})
    results = [visit(clients, 1, round) for round in rounds]
    for i, one in enumerate(results):
        assert not any(torch.equal(one, other) for other in results[i + 1 :])


def test_the_first_visit_of_a_round_depends_on_the_round_alone(learner):
    update = {"train": LOCAL}
    fresh, used = (BuiltinClients(learner, {"train": LocalSGD(update["train"])}) for _ in range(2))
    for round in (1, 1, 2):
        visit(used, 1, round)
    visit(used, 2, 5)
    assert torch.equal(visit(used, 1, 5), visit(fresh, 1, 5))
    assert not torch.equal(visit(used, 1, 5), visit(fresh, 2, 5))


def test_without_rounds_visits_are_counted(learner):
    one, two = (BuiltinClients(learner, {"train": LocalSGD(LOCAL)}) for _ in range(2))
    first, second = visit(one, 1), visit(one, 1)
    assert not torch.equal(first, second)
    assert torch.equal(first, visit(two, 1, 1))
    assert torch.equal(second, visit(two, 1, 2))


def test_what_is_kept_is_each_clients_own(learner):
    update = Dynamic(LOCAL, 0.5)
    clients = BuiltinClients(learner, {"train": update})
    start = learner.initial.value()
    moved = {client: visit(clients, client, 1) - start for client in (0, 2)}
    for client, move in moved.items():
        assert (
            float((clients.local.kept.of(client, update)[GRADIENT].value() + 0.5 * move).abs().max()) < 1e-12
        )
    assert float(clients.local.kept.of(1, update)[GRADIENT].value().abs().max()) == 0.0
    again = visit(clients, 0, 2) - start
    wanted = -0.5 * (moved[0] + again)
    assert float((clients.local.kept.of(0, update)[GRADIENT].value() - wanted).abs().max()) < 1e-12


def test_what_is_kept_is_never_sent(learner):
    clients = BuiltinClients(learner, {"train": Dynamic(LOCAL, 0.5)})
    reply = clients.answer(0, ask(learner, 0, 1), 0.0)
    assert set(reply) == {"arrays", "metrics"}
    assert set(reply["metrics"]) == {"num-examples", "train_loss"}


def test_the_number_of_samples_costs_nothing_to_say(learner):
    clients = BuiltinClients(learner, {})
    message = Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), 2, QUERY_SIZE)
    assert clients.work(2, message) == 0
    assert clients.answer(2, message, 0.0)["metrics"] == {"num-examples": learner.sizes[2]}


def test_the_proximal_term_of_flowers_fedprox_reaches_into_what_is_around(learner):
    wrapped = Around(LocalSGD(LOCAL), Clip(max_norm=1e9), "train.0")
    ends = []
    for update, mu in ((LocalSGD(LOCAL), 0.0), (LocalSGD(LOCAL), 5.0), (wrapped, 5.0)):
        clients, message = BuiltinClients(learner, {"train": update}), ask(learner, 0, 1)
        message.content["config"]["proximal-mu"] = mu
        ends.append(unpack(clients.answer(0, message, 0.0)["arrays"]).value())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-3
    assert float((ends[1] - ends[2]).abs().max()) < 1e-12


def test_an_unknown_message_is_an_error_with_a_place(learner):
    clients = BuiltinClients(learner, {"train": LocalSGD(LOCAL)})
    with pytest.raises(RunError, match=r"train\.other; it knows \['train'\]") as caught:
        clients.work(1, ask(learner, 1, 4, "train.other"))
    assert (caught.value.node, caught.value.round) == (1, 4)
