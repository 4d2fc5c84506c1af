"""Numbers that a server sends with a message, in place of a client's own."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.instruction import numbers_of
from fedsim.learn.around import Around, Clip
from fedsim.learn.build import build
from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.methods.server import ask_all, trains
from fedsim.spec.experiment import Local, load


@pytest.fixture(autouse=True)
def _identity():
    with compat.session(0, 99, lambda seconds: None):
        yield


@pytest.fixture(params=["sequential", "stacked"])
def learner(request):
    given = {"data": {"clients": 3}, "model": "softmax", "strategy": "fedavg", "stop": {"rounds": 1}}
    return build(load({**given, "compute": {"engine": request.param, "dtype": "float64"}}))[0]


def sent(learner, update, client, **config):
    arrays = pack(learner.initial, learner.engine.task.layout, "float64")
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1, **config})})
    return unpack(
        BuiltinClients(learner, {"train": update}).answer(client, Message(content, client, "train"), 0.0)[
            "arrays"
        ]
    )


def of(lr):
    return LocalSGD(Local(steps=3, batch_size=8, lr=lr))


def test_a_rate_in_the_message_stands_in_for_the_clients_own(learner):
    told, own = sent(learner, of(0.5), 1, lr=0.02).value(), sent(learner, of(0.02), 1).value()
    assert torch.equal(told, own)
    assert not torch.equal(told, sent(learner, of(0.5), 1).value())


def test_it_reaches_into_what_is_around(learner):
    wrapped = Around(of(0.5), Clip(max_norm=1e9), "train.0")
    gap = sent(learner, wrapped, 0, lr=0.02).value() - sent(learner, of(0.02), 0).value()
    assert float(gap.abs().max()) < 1e-12


def test_numbers_that_an_update_does_not_have_are_ignored(learner):
    assert torch.equal(sent(learner, of(0.1), 2, momentum=0.9).value(), sent(learner, of(0.1), 2).value())


def test_clients_of_one_batch_may_be_told_different_numbers(learner):
    update, rates = of(0.5), [0.01, 0.02, 0.04]
    given = {"arrays": learner.initial}
    results = [
        learner.train(update, client, given, Place(client, 1, 0.0), {"lr": lr})
        for client, lr in enumerate(rates)
    ]
    compute(results)
    for client, (result, lr) in enumerate(zip(results, rates)):
        alone = learner.train(of(lr), client, given, Place(client, 1, 0.0)).value()
        assert float((result.value()["arrays"] - alone["arrays"]).abs().max()) < 1e-12


def test_only_numbers_of_the_configuration_count():
    configs = {
        "a": ConfigRecord({"lr": 1, "name": "x", "flag": True, "many": [1.0]}),
        "b": ConfigRecord({"s": 0.5}),
    }
    assert numbers_of(RecordDict(configs)) == {"lr": 1.0, "s": 0.5}
    assert numbers_of(RecordDict()) == {}


def test_all_may_be_asked_with_the_same_numbers():
    asks = ask_all([1, 2], "train", {"lr": 0.5}, arrays=Deferred.phantom())
    assert [(ask.node, dict(ask.numbers)) for ask in asks] == [(1, {"lr": 0.5}), (2, {"lr": 0.5})]
    assert [dict(ask.numbers) for ask in ask_all([1], "train", arrays=Deferred.phantom())] == [{}]


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ("train", True),
        ("train.anchor", True),
        ("training", False),
        ("query.size", False),
        ("evaluate", False),
    ],
)
def test_which_messages_train(action, wanted):
    assert trains(action) is wanted
