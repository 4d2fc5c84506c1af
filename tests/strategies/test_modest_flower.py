"""MoDeST's relay: the samples of the hash order, who stands in for whom, who averages, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from server_lab import local, quadratics, trained, walk

import fedsim
from fedsim.errors import BadValue, ConfigError, RunError, StalledError
from fedsim.flower import client_app, compat, run_app
from fedsim.flower.deploy.template import write_app
from fedsim.flower.face import FlowerFace
from fedsim.flower.gridserver import GridServer, Hasty
from fedsim.flower.gridview import Shown
from fedsim.flower.records import pack, solid, unpack, wire_bytes
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.deferred import Deferred
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import ask_all, uniform_mean
from fedsim.running.watched import costs
from fedsim.spec.experiment import load
from fedsim.world import world as worlds
from strategies.modest.relay import AVERAGE, PING, LiveNodes, MoDeSTRelay, averaged
from strategies.modest.sampling import order, quorum
from topologies.graphs import star

SGD = {"epochs": 1, "batch_size": 8, "lr": 0.1}


class Plain(FlowerFace, Rounds):
    """FedAvg that counts all clients the same."""

    def ask(self, round, model, cohort):
        return ask_all(cohort, "train", arrays=model)

    def merge(self, round, model, replies):
        return uniform_mean(replies)


class Lab:
    """A relay on hand-made quadratics in a world with latency, one event at a time."""

    def __init__(self, copies=(1, 1, 1, 1), latency_ms=1000.0, seconds_per_sample=1.0, **params):
        n = len(copies)
        h, c = [1.0] * n, [float(2**i) for i in range(n)]
        self.learner = quadratics(h, c, copies)
        self.strategy = MoDeSTRelay(local=local(steps=1, lr=0.5), **params)
        self.strategy.check(n)
        file = {
            "data": {"clients": n},
            "strategy": "fedavg",
            "network": {"latency_ms": latency_ms},
            "devices": {"seconds_per_sample": seconds_per_sample},
            "stop": {"rounds": 1},
        }
        self.world = worlds.build(load(file), star(n + 1), True)
        self.sent = []
        self.world.network.hazards.append(self._note)
        clients = BuiltinClients(self.learner, self.strategy.updates, self.strategy.queries)
        self.grid = SimGrid(self.world, clients, detect_s=3.0)
        self.server = GridServer(self.grid)
        self.models, self.times = [], []

    def _note(self, transfer):
        instruction = transfer.message.payload
        if transfer.message.kind == "instruction":
            kind = instruction.payload.metadata.message_type
            self.sent.append((kind, transfer.dst.id, round(self.world.clock.now_s, 6)))

    def at(self, seconds, call, *args):
        self.world.clock.after(round(seconds * 1e6), call, *args)

    def run(self, rounds=1, timeout=3600.0):
        def note(_, arrays):
            self.models.append(float(unpack(arrays).value()))
            self.times.append(self.world.clock.now_s)

        start = pack(self.learner.initial, self.learner.engine.task.layout, "float64")
        with compat.session(0, self.grid.server.id, self.grid.sleep):
            return self.strategy.start(self.grid, start, num_rounds=rounds, timeout=timeout, evaluate_fn=note)

    def of(self, kind):
        return [node for sent, node, _ in self.sent if sent == kind]


def step(x, c):
    """One gradient step of 0.5 from x on (x - c)^2 / 2."""
    return x - 0.5 * (x - c)


def experiment(name, topology, **strategy):
    return {
        "seed": 5,
        "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 5}},
        "model": {"name": "mlp", "hidden": 8},
        "strategy": {"name": name, "local": SGD, **strategy},
        "topology": topology,
        "network": {"latency_ms": 20, "up_mbps": 1, "down_mbps": 4},
        "compute": {"engine": "sequential"},
        "stop": {"rounds": 3},
        "record": {"report": False},
    }


# the same models as without Flower


@pytest.mark.parametrize("size", [8, 3])
def test_it_gives_the_models_of_modest_bit_for_bit(size, tmp_path):
    peers = fedsim.run(experiment("modest", "complete", sample_size=size), out=tmp_path)
    relay = fedsim.run(experiment("modest_flower", "star", sample_size=size), out=tmp_path)
    assert peers.summary["weights_hash"] == relay.summary["weights_hash"]
    assert peers.summary["accuracy"] == relay.summary["accuracy"]
    assert relay.summary["bytes_up"] > peers.summary["bytes_up"]  # everything goes through the server


def test_with_everybody_it_is_unweighted_fedavg():
    learner = quadratics(copies=(1, 3, 2), start=0.3)
    sgd = local()
    relay, _ = walk(MoDeSTRelay(local=sgd, sample_size=3), learner, 4)
    plain, _ = walk(Plain(participants=3, local=sgd), learner, 4)
    assert relay == plain
    x = 0.3
    for _ in range(4):
        x = sum(trained(h, c, x) for h, c in ((1.0, 1.0), (2.0, -1.0), (4.0, 2.0))) / 3
    assert relay[-1] == pytest.approx(x, rel=1e-12)


# who is in the sample


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 7), min_size=1, max_size=8), st.integers(1, 50), st.integers(1, 8))
def test_a_live_sample_is_the_first_of_the_order_that_are_online(awake, round, size):
    lab = Lab(copies=(1,) * 8, sample_size=2, ping_timeout_s=5.0)
    nodes = LiveNodes(5.0)
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        assert nodes.live(1, lab.server, 8) == order("01234567", 1)
        for node in lab.world.members:
            node.set_online(node.id in awake)
        found = nodes.live(round, lab.server, size)
        assert found == [node for node in order("01234567", round) if node in awake][:size]
        assert nodes.choose(round, Deferred.phantom(), lab.server, size) == sorted(found)
        rest = [node for node in order("01234567", round) if node in awake][1:]
        assert nodes.live(round, lab.server, 1, found[:1]) == rest[:1]


def test_one_that_is_offline_is_pinged_and_replaced():
    lab = Lab(sample_size=2, ping_timeout_s=60.0)
    first = order("0123", 1)
    lab.at(0.5, lab.world.nodes[first[0]].crash)  # while its ping is under way
    lab.run()
    assert lab.of("train") == sorted(first[1:3])
    pings = [(node, at) for kind, node, at in lab.sent if kind == PING]
    assert pings[:2] == [(first[0], 0.0), (first[1], 0.0)]
    replaced, at = pings[2]
    assert replaced == first[2]
    assert at == 3.5  # noticed 3 s after the crash


def test_one_that_is_slow_to_answer_is_replaced_after_the_timeout():
    lab = Lab(sample_size=1, ping_timeout_s=5.0)
    first = order("0123", 1)
    busy = lab.world.nodes[first[0]].compute(100)  # a SuperNode answers one message at a time
    lab.run()
    assert busy.triggered is False
    assert lab.of("train") == [first[1]]
    assert [at for kind, _, at in lab.sent if kind == PING][:2] == [0.0, 5.0]


def test_one_that_comes_later_becomes_a_candidate():
    nodes = LiveNodes(5.0)
    lab = Lab(sample_size=2)
    lab.world.nodes[2].set_online(False)
    with compat.session(0, lab.grid.server.id, lab.grid.sleep):
        assert 2 not in nodes.live(1, lab.server, 4)
        lab.world.nodes[2].set_online(True)
        assert nodes.live(2, lab.server, 4) == order("0123", 2)


def test_nobody_who_answers_is_said():
    lab = Lab(sample_size=2, ping_timeout_s=0.5)
    with pytest.raises(RunError, match=r"no node has answered a ping within 0.5 s, 100 times in a row"):
        lab.run()


def test_a_world_without_nodes_is_said():
    lab = Lab(sample_size=2)
    for node in lab.world.members:
        node.crash()
    with pytest.raises(StalledError, match="4 of 4 have crashed"):
        lab.run()


# the success fraction


def test_the_success_fraction_cuts_stragglers():
    """Nodes 0 to 2 work for 1 s and node 3 for 500 s: three of four models are enough."""
    lab = Lab(copies=(1, 1, 1, 500), sample_size=4, success_fraction=0.6, ping_timeout_s=5.0)
    lab.run(rounds=2)
    assert lab.models[1] == pytest.approx((step(0, 1.0) + step(0, 2.0) + step(0, 4.0)) / 3)
    # pings 2 s, training 3 s, a ping 2 s (or 5 s and again, if it went to the busy node), averaging 2 s
    assert lab.times[1] == 9.0  # pings 2 s, training 3 s, a ping of 2 s, averaging 2 s
    assert lab.of("train")[4:] == [0, 1, 2]  # a busy node does not answer the second round's ping
    two = (0.5 + 1.0) / 2  # of those three, two are enough
    assert lab.models[2] == pytest.approx(lab.models[1] / 2 + two)


def test_a_late_model_is_dropped_and_its_node_is_asked_again():
    lab = Lab(copies=(1, 1, 1, 20), sample_size=4, success_fraction=0.75, ping_timeout_s=60.0)
    lab.run(rounds=2)
    assert lab.of("train") == [0, 1, 2, 3] * 2
    assert lab.models[2] == pytest.approx(lab.models[1] / 2 + (0.5 + 1.0 + 2.0) / 3)


def test_a_round_without_any_model_keeps_the_old_one():
    lab = Lab(copies=(50, 50, 50, 50), sample_size=2, ping_timeout_s=5.0)
    history = lab.run(timeout=10.0).train_metrics_clientapp
    assert lab.models == [0.0, 0.0]
    assert lab.times[1] == 12.0  # two for the pings, ten for nothing
    assert dict(history[1]) == {"replies": 0, "aggregator": -1}


class Link(Shown):
    """A grid whose replies come one pull after the other, and that could not send the first message."""

    def __init__(self, replies):
        super().__init__(None)
        self.replies = replies
        self.asked = []

    def push_messages(self, messages):
        self.sent = list(messages)
        ids = [f"m{at}" for at in range(len(self.sent))]
        for id, message in zip(ids, self.sent):
            compat.name_message(message, id, 9)
        return [None, *ids[1:]]

    def pull_messages(self, ids):
        self.asked.append(list(ids))
        return [answer(self.sent[at], ok) for at, ok in self.replies.pop(0)]


def answer(message, ok):
    if ok:
        return Message(RecordDict(), reply_to=message)
    return Message(Error(1, "broken"), reply_to=message)


def trainings(count):
    return [Message(RecordDict({"config": ConfigRecord({})}), node, "train") for node in range(count)]


def test_enough_replies_of_a_superlink_end_the_wait():
    slept = []
    with compat.session(0, 9, slept.append):
        grid = Hasty(link := Link([[], [(2, False)], [(3, True)], [(4, True), (1, True)]]), 0.4)
        came = grid.send_and_receive(trainings(5), timeout=7.0)
    assert [one.metadata.reply_to_message_id for one in came] == [
        "m3",
        "m4",
    ]  # ceil(0.4 x 5), errors not counted
    assert slept == [1.0]
    assert link.asked[0] == ["m1", "m2", "m3", "m4"]  # m0 was never sent
    assert link.asked[-1] == ["m1", "m4"]
    assert {message.metadata.ttl for message in link.sent} == {7.0}


def test_waiting_ends_when_nobody_is_left():
    with compat.session(0, 9, lambda _: None):
        grid = Hasty(Link([[(1, False)], [(2, True)]]), 1.0)
        came = grid.send_and_receive(trainings(3))
        assert [one.metadata.reply_to_message_id for one in came] == ["m2"]


@given(st.floats(0.01, 1.0), st.integers(1, 200))
@settings(max_examples=50)
def test_enough_is_the_share_rounded_up(share, size):
    enough = quorum(share, size, size)
    assert 1 <= enough <= size
    assert enough - 1 < share * size <= enough + 1e-6


# who averages


def test_the_first_node_of_the_next_sample_averages():
    lab = Lab(sample_size=2, ping_timeout_s=5.0)
    history = lab.run(rounds=3).train_metrics_clientapp
    firsts = [order("0123", round)[0] for round in (2, 3, 4)]
    assert lab.of(AVERAGE) == firsts
    assert [history[round]["aggregator"] for round in (1, 2, 3)] == firsts
    one, two = sorted(order("0123", 1)[:2])
    assert lab.models[1] == pytest.approx((step(0, 2.0**one) + step(0, 2.0**two)) / 2)
    # a round: pings, training and averaging with 2 s on the way each, a ping of 2 s for the aggregator, and 1 s of work
    assert lab.times == [0.0, 9.0, 18.0, 27.0]


def test_the_next_one_averages_if_the_first_one_fails():
    lab = Lab(sample_size=2, ping_timeout_s=5.0)
    first, second = order("0123", 2)[:2]
    lab.at(7.5, lab.world.nodes[first].crash)  # it has answered the ping; the models are under way
    history = lab.run().train_metrics_clientapp
    assert lab.of(AVERAGE) == [first, second]
    assert history[1]["aggregator"] == second
    one, two = order("0123", 1)[:2]
    assert lab.models[1] == pytest.approx((step(0, 2.0**one) + step(0, 2.0**two)) / 2)


def test_a_round_that_nobody_averages_is_lost(caplog):
    lab = Lab(sample_size=2, ping_timeout_s=5.0, timeout_s=1.0)  # an answer takes two seconds
    history = lab.run().train_metrics_clientapp
    assert sorted(lab.of(AVERAGE)) == [0, 1, 2, 3]
    assert lab.models == [0.0, 0.0]
    assert history[1]["aggregator"] == -1
    assert "round 1 is lost: nobody has averaged its models, asked were [0, 1, 2, 3]" in caplog.text


@given(st.permutations(range(5)))
@settings(max_examples=20)
def test_the_average_does_not_depend_on_the_order_of_a_message(places):
    values = [0.1, 1e8, -1e8, 0.7, 1e-9]
    models = {f"model-{at:06}": Deferred.known(torch.tensor([values[at]])) for at in places}
    total = torch.zeros(1)
    for value in values:
        total += torch.tensor([value])
    assert averaged(models)["arrays"].value().equal(total / 5)


# what it costs


def test_bytes_by_formula():
    """A round of s nodes: s + 1 pings and pongs; s models down and up; one message of s models, one average back."""
    n, s, rounds = 4, 3, 2
    lab = Lab(copies=(1,) * n, sample_size=s, ping_timeout_s=60.0)
    lab.run(rounds=rounds)
    header, layout = lab.world.network.header_bytes, lab.learner.engine.task.layout
    model = pack(lab.learner.initial, layout, "float64")
    config, examples = ConfigRecord({"server-round": 1}), MetricRecord({"num-examples": 1})
    ask, pong = wire_bytes(RecordDict({"config": config})), wire_bytes(RecordDict({"metrics": examples}))
    loss = len("train_loss") + 8
    weights = wire_bytes(RecordDict({"arrays": model}))
    named = wire_bytes(RecordDict({"model-000000": model}))
    down = (s + 1) * ask + s * (weights + ask) + s * named + ask
    up = (s + 1) * pong + s * (weights + pong + loss) + weights + pong
    messages = 2 * ((s + 1) + s + 1)
    assert lab.world.totals()["bytes_up"] == rounds * (down + up + messages * header)
    assert lab.world.totals()["bytes_down"] == lab.world.totals()["bytes_up"]


def test_averaging_takes_no_time_of_training():
    lab = Lab(sample_size=2)
    lab.run()
    assert costs(lab.world)["work_samples"] == 2
    assert lab.grid.updates == 2  # averages and pings are no updates


def test_churn_ends_in_an_ordinary_run(tmp_path):
    file = experiment("modest_flower", "star", sample_size=4, success_fraction=0.5, ping_timeout_s=2.0)
    file["churn"] = {"name": "exponential", "online_s": 20, "offline_s": 5}
    one, two = fedsim.run(file, out=tmp_path), fedsim.run(file, out=tmp_path, timing_only=True)
    assert one.summary["rounds"] == 3
    assert one.summary["event_hash"] == two.summary["event_hash"]
    assert math.isfinite(one.summary["loss"])


# parameters


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sample_size": 5}, "sample_size: 5: must be at most 4, the number of clients"),
        ({"success_fraction": 0.0}, "success_fraction: 0.0: must be above 0 and at most 1"),
    ],
)
def test_parameters_that_cannot_be(params, message):
    with pytest.raises(BadValue, match=message):
        MoDeSTRelay(local=local(), **{"sample_size": 2, **params}).check(4)


@pytest.mark.parametrize("selector", ["uniform", {"name": "curriculum", "rounds": 3}])
def test_it_takes_no_selector_because_it_has_its_own_order(selector):
    file = experiment("modest_flower", "star", sample_size=2, select=selector)
    with pytest.raises(ConfigError) as caught:
        fedsim.check(file)
    assert str(caught.value) == (
        "strategy.select: modest_flower chooses its clients in a way of its own and takes no selector; "
        "leave strategy.select out"
    )


# in a deployment


@pytest.fixture
def session():
    with compat.session(0, 99, lambda _: None):
        yield


def test_a_supernode_answers_pings_and_averages(session):
    block = {"name": "modest_flower", "sample_size": 2, "local": SGD}
    app = client_app(model="softmax", data="digits", strategy=block)
    context = compat.make_context(7, {"partition-id": 1, "num-partitions": 4}, {})
    config = ConfigRecord({"server-round": 1})
    back = app(Message(RecordDict({"config": config}), 7, PING), context)
    assert list(back.content) == ["metrics"]

    def record(value):
        weights = {"1.weight": np.full((10, 64), value, "float32"), "1.bias": np.full(10, -value, "float32")}
        return ArrayRecord({name: Array(array) for name, array in weights.items()})

    models = {"model-000000": record(1.0), "model-000003": record(4.0)}
    back = app(Message(RecordDict({**models, "config": config}), 7, AVERAGE), context)
    average = back.content.array_records["arrays"]
    assert {type(array) for array in average.values()} == {Array}  # what leaves the process is ordinary
    assert average["1.weight"].numpy().tolist() == np.full((10, 64), 2.5).tolist()
    assert average["1.bias"].numpy().tolist() == [-2.5] * 10


def test_a_solid_record_is_what_was_packed():
    vector = Deferred.known(torch.arange(6.0))
    record = solid(pack(vector, [("w", (2, 2)), ("b", (2,))]))
    assert record["w"].numpy().tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert unpack(record).value().equal(vector.value())


def test_a_written_app_gives_the_weights_of_the_experiment(tmp_path):
    write_app(tmp_path / "relay", "modest_flower")
    through = run_app(
        tmp_path / "relay",
        nodes=4,
        out=tmp_path,
        run_config="num-nodes=4",
        overrides={"record.report": False},
    )
    direct = fedsim.run(
        {
            "data": {"clients": 4, "partition": {"name": "dirichlet", "alpha": 1.0}},
            "model": "softmax",
            "strategy": {
                "name": "modest_flower",
                "sample_size": 2,
                "local": {"epochs": 1, "batch_size": 32, "lr": 0.05},
            },
            "stop": {"rounds": 3},
            "compute": {"engine": "sequential", "device": "cpu"},
            "record": {"report": False},
        },
        out=tmp_path,
    )
    for name, array in direct.weights().items():
        np.testing.assert_array_equal(through.weights()[name], array)
