"""What server strategies share: who is asked what, what comes back, and the passes beside the rounds."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsim.errors import BadValue
from fedsim.flower import compat
from fedsim.flower.face import FlowerFace
from fedsim.flower.gridserver import heard
from fedsim.flower.records import pack, unpack
from fedsim.learn.deferred import Deferred
from fedsim.methods.rounds import Rounds
from fedsim.methods.select import RoundRobin
from fedsim.methods.server import Ask, ask_all, average, uniform_mean
from fedsim.spec.experiment import Local
from strategies.server.mifa import MIFA

LAYOUT = [("weight", (1, 2)), ("bias", (1,))]
HUGE = 2**63 + 7  # node ids of a real deployment are any integers


@pytest.fixture(autouse=True)
def _identity():
    with compat.session(0, 99, lambda seconds: None):
        yield


class Mean(FlowerFace, Rounds):
    """Asks for two vectors, and notes what it is given."""

    def __init__(self, **more):
        super().__init__(**{"participants": 2, "local": Local(), **more})
        self.seen, self.first, self.extra = [], [], False

    def begin(self, model):
        self.first = [
            (reply.node, reply.examples) for reply in self.exchange(ask_all(self.online(), "train.first"))
        ]

    def ask(self, round, model, cohort):
        twice = 2.0 * model
        if self.extra:
            self.seen = self.exchange(ask_all(cohort[:1], "train.extra", arrays=model))
        return ask_all(cohort, "train", arrays=model, other_half=twice)

    def merge(self, round, model, replies):
        self.seen = replies
        return average(replies)


class Echo:
    """A grid whose clients send back their id as every number."""

    def __init__(self, nodes, lost=()):
        self.nodes, self.lost, self.sent = list(nodes), set(lost), []

    def get_node_ids(self):
        return self.nodes

    def send_and_receive(self, messages, *, timeout=None):
        sent = list(messages)
        self.sent.append((sent, timeout))
        return [self.answer(message) for message in reversed(sent)]

    def answer(self, message):
        node = message.metadata.dst_node_id
        if node in self.lost:
            reply = Message(Error(5, "gone"), reply_to=message)
        else:
            numbers = torch.full((3,), float(node % 100), dtype=torch.float64)
            arrays = pack(Deferred.known(numbers), LAYOUT, "float64")
            examples = MetricRecord({"num-examples": node % 100 + 1})
            reply = Message(RecordDict({"arrays": arrays, "metrics": examples}), reply_to=message)
        compat.name_message(reply, "1", node)
        return reply


def start():
    return pack(Deferred.known(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), LAYOUT, "float64")


def test_a_round_on_any_grid():
    strategy, grid = Mean(participants=3, select=RoundRobin()), Echo([HUGE, 5, 3, 8])
    config, arrays = ConfigRecord(), start()
    messages = strategy.configure_train(1, arrays, config, grid)
    assert [message.metadata.dst_node_id for message in messages] == [3, 5, 8]
    assert {message.metadata.message_type for message in messages} == {"train"}
    assert all(message.content is messages[0].content for message in messages)
    content = messages[0].content
    assert list(content) == ["arrays", "other-half", "config"]
    assert content["arrays"] is arrays
    assert unpack(content["other-half"]).value().tolist() == [2.0, 4.0, 6.0]
    assert content["config"] == {"server-round": 1}
    new, facts = strategy.aggregate_train(1, grid.send_and_receive(messages))
    # 3, 5 and 8 with 4, 6 and 9 samples
    assert unpack(new).value().tolist() == pytest.approx([(12 + 30 + 72) / 19] * 3)
    assert [(name, array.shape) for name, array in new.items()] == LAYOUT
    assert facts == {"replies": 3}
    assert [reply.node for reply in strategy.seen] == [3, 5, 8]


def test_the_pass_before_the_first_round():
    strategy, grid = Mean(timeout_s=7.0), Echo([4, HUGE, 1], lost=[4])
    strategy.configure_train(1, start(), ConfigRecord({"lr": 0.5}), grid)
    assert strategy.first == [(1, 2), (HUGE, HUGE % 100 + 1)]
    [(sent, timeout)] = grid.sent
    assert timeout == 7.0
    assert [message.content["config"] for message in sent] == [{"lr": 0.5, "server-round": 0}] * 3
    strategy.configure_train(2, start(), ConfigRecord(), grid)
    assert len(grid.sent) == 1


def test_an_extra_exchange_within_a_round():
    strategy, grid = Mean(), Echo([1, 2])
    strategy.extra = True
    messages = strategy.configure_train(3, start(), ConfigRecord(), grid)
    assert [(reply.node, reply.action) for reply in strategy.seen] == [(1, "train.extra")]
    assert grid.sent[0][0][0].content["config"] == {"server-round": 3}
    assert len(messages) == 2


def test_a_round_without_replies_keeps_the_model():
    strategy, grid = Mean(), Echo([1, 2], lost=[1, 2])
    messages = strategy.configure_train(2, start(), ConfigRecord(), grid)
    new, _ = strategy.aggregate_train(2, grid.send_and_receive(messages))
    assert unpack(new).value().tolist() == [1.0, 2.0, 3.0]
    assert strategy.seen == []


def test_replies_are_sorted_and_errors_left_out():
    grid = Echo([7, 3, HUGE], lost=[3])
    asked = [Message(RecordDict({"arrays": start()}), node, "train.a") for node in (7, 3, HUGE)]
    replies = heard(grid.send_and_receive(asked))
    assert [(reply.node, reply.action, reply.examples) for reply in replies] == [
        (7, "train.a", 8),
        (HUGE, "train.a", HUGE % 100 + 1),
    ]
    assert uniform_mean(replies).value().tolist() == pytest.approx([(7 + HUGE % 100) / 2] * 3)


def test_plain_arrays_of_a_deployment_are_read_too():
    plain = ArrayRecord([torch.ones(1, 2).numpy(), torch.zeros(1).numpy()])
    message = Message(RecordDict({"arrays": start()}), 4, "train")
    reply = Message(RecordDict({"arrays": plain, "metrics": MetricRecord({"loss": 2.0})}), reply_to=message)
    compat.name_message(reply, "1", 4)
    [one] = heard([reply])
    assert one.vectors["arrays"].value().tolist() == [1.0, 1.0, 0.0]
    assert (one.metrics["loss"], one.examples) == (2.0, 0)


def test_different_vectors_do_not_share_a_message():
    class Each(Mean):
        def ask(self, round, model, cohort):
            return [Ask(node, "train", {"arrays": float(node) * model}) for node in cohort]

    strategy, grid = Each(participants=4), Echo([1, 2, 3, 4])
    messages = strategy.configure_train(2, start(), ConfigRecord(), grid)
    firsts = [float(unpack(message.content["arrays"]).value()[0]) for message in messages]
    assert firsts == [1.0, 2.0, 3.0, 4.0]


def test_there_is_nothing_to_evaluate_and_nothing_to_say():
    strategy = Mean()
    assert list(strategy.configure_evaluate(1, start(), ConfigRecord(), Echo([1]))) == []
    assert strategy.aggregate_evaluate(1, []) is None
    strategy.summary()


def test_check_knows_how_many_there_are():
    strategy = Mean(participants=3)
    strategy.check(3)
    assert strategy.clients == 3
    with pytest.raises(BadValue, match="at most 2, the number of clients"):
        strategy.check(2)


def test_a_strategy_that_nobody_has_told_counts_the_clients():
    """A server of Flower's own does not call ``check``; MIFA divides by the number of all clients."""
    strategy, grid = MIFA(participants=2, local=Local(), select=RoundRobin()), Echo([1, 2, 3, 4])
    messages = strategy.configure_train(1, start(), ConfigRecord(), grid)
    new, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert strategy.clients == 4
    # clients 1 and 2 have answered: x - (x - 1 + x - 2) / 4 for x = 1, 2, 3
    assert unpack(new).value().tolist() == pytest.approx([1.25, 1.75, 2.25])
