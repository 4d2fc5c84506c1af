"""Peers whose rounds have one model, and training that is broken off.

A round of training is one batch of 10 samples at 0.1 s each: one second.
"""

from __future__ import annotations

import math

import pytest

from fedsim.errors import StalledError
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import PeerStrategy
from fedsim.record.store import Record
from fedsim.running.build import prepare
from fedsim.running.observer import SYSTEM, Observer
from fedsim.running.peers import PeerRun
from fedsim.spec.experiment import Local, load

UPDATE = LocalSGD(Local(steps=1, batch_size=10, lr=0.1))


class Acts(PeerStrategy):
    """Every node does what a test says."""

    one_model = True

    def __init__(self, life):
        self.life = life

    def run(self, node):
        yield from self.life(node)


class Noting(Observer):
    def on_round(self, round, models, updates):
        self.ends = [*getattr(self, "ends", []), (round, self.world.clock.now_s, updates, list(models))]
        return super().on_round(round, models, updates)


@pytest.fixture
def make(tmp_path):
    with Record(tmp_path) as record:

        def make(life, nodes=3, **blocks):
            file = {
                "data": {"clients": nodes},
                "model": "softmax",
                "strategy": "dpsgd",
                "topology": "complete",
                "stop": {"rounds": 3},
                "devices": {"seconds_per_sample": 0.1},
                **blocks,
            }
            setup = prepare(load(file), dry=True)
            observer = Noting(setup.experiment, setup.learner, setup.world, record)
            run = PeerRun(setup.world, setup.learner, Acts(life), observer)
            run.events = []
            setup.world.log.listen(lambda *event: run.events.append(event))
            return run

        yield make


def work(run, node):
    """When a node began to work and ended, in seconds, and how many samples it had done."""
    kinds = ("compute", "done", "aborted")
    return [
        (time / 1e6, kind, size) for time, kind, id, _, size, _ in run.events if id == node and kind in kinds
    ]


def test_a_round_ends_when_the_first_says_so(make):
    def life(node):
        for round in (1, 2, 3):
            model = yield from node.train(UPDATE, node.initial_model, round)
            if node.id < 2:
                node.conclude(round, model, updates=2)

    run = make(life)
    run.world.nodes[0].ps_per_sample *= 2
    run.run()
    assert run.observer.ends == [(0, 0.0, 0, [SYSTEM])] + [(k, float(k), 2 * k, [SYSTEM]) for k in (1, 2, 3)]


def test_training_that_is_broken_off_is_wasted_and_the_next_begins(make):
    def life(node):
        if node.id == 0:
            first = node.start(node.train(UPDATE, node.initial_model, 1))
            second = node.start(node.train(UPDATE, node.initial_model, 2))
            yield node.node.clock.timeout(400_000)
            first.interrupt("not wanted")
            yield second
            for round in (1, 2, 3):
                node.conclude(round, node.initial_model, 1)

    run = make(life)
    run.run()
    assert work(run, 0) == [
        (0.0, "compute", 10),
        (0.4, "aborted", 4),
        (0.4, "compute", 10),
        (1.4, "done", 10),
    ]
    assert (run.world.nodes[0].work, run.world.nodes[0].wasted) == (14, 4)


def test_training_that_waits_for_another_can_be_broken_off_too(make):
    def life(node):
        if node.id == 0:
            first = node.start(node.train(UPDATE, node.initial_model, 1))
            second = node.start(node.train(UPDATE, node.initial_model, 2))
            yield node.node.clock.timeout(400_000)
            second.interrupt("not wanted")
            yield first
            node.conclude(3, node.initial_model, 1)

    run = make(life)
    run.run()
    assert work(run, 0) == [(0.0, "compute", 10), (1.0, "done", 10)]
    assert run.world.nodes[0].wasted == 0
    assert run.observer.round == 3


def test_a_call_that_is_due_keeps_the_run_alive(make):
    def life(node):
        if node.id == 1:
            node.after(5000.0, node.conclude, 3, node.initial_model, 0)
        yield from ()
        yield node.node.receive()

    run = make(life)
    run.run()
    assert run.observer.ends[-1][:2] == (3, 5000.0)


def test_nobody_to_conclude_is_a_stall_and_those_who_know_why_come_first(make):
    def life(node):
        node.waiting_for = lambda: "better times" if node.id == 2 else ""
        yield node.node.receive()

    with pytest.raises(
        StalledError, match=r"progress: node 2 waits for better times; node 0 waits for a message"
    ):
        make(life).run()


@pytest.mark.parametrize(("does", "stalled"), [("waits", True), ("works", False), ("sleeps", False)])
def test_a_run_out_of_time_says_whether_anybody_could_have_gone_on(make, caplog, does, stalled):
    """The limit is that of the watch, too, which sees nothing wrong in one look."""

    def life(node):
        if node.id == 0 and does == "works":
            while True:
                yield from node.train(UPDATE, node.initial_model, 1)
        if node.id == 0 and does == "sleeps":
            yield from node.sleep(1e6)
        yield from node.receive_models([2], 4)

    run = make(life, stop={"sim_time_s": 600.0})
    run.world.clock.after(1, run.world.nodes[1].crash)
    run.run()
    waits = "; ".join(f"node {node} waits for model of round 4 from [2]" for node in (0, 2))
    assert run.observer.stalled == (f"{waits}; gone for good: [1]" if stalled else "")
    assert (run.observer.stalled in caplog.text and "when the time was up" in caplog.text) is stalled


def test_a_run_that_reaches_its_last_round_has_not_stalled(make, caplog):
    def life(node):
        node.conclude(3, node.initial_model, 1)
        yield from node.receive()

    run = make(life, stop={"rounds": 3, "sim_time_s": 600.0})
    run.run()
    assert (run.observer.stalled, caplog.text) == ("", "")


def test_those_who_are_away_are_named_and_do_not_wait(make):
    def life(node):
        yield node.node.receive()

    run = make(life, nodes=4)
    run.world.nodes[1].set_online(False)
    run.world.nodes[3].crash()
    assert run.diagnosis() == (
        "node 0 waits for nothing; node 2 waits for nothing; offline: [1]; gone for good: [3]"
    )
    for node in run.world.nodes:
        node.set_online(False)
    run.founders = []
    assert run.diagnosis() == "nobody was online to begin; offline: [0, 1, 2]; gone for good: [3]"


def test_what_a_node_sends_to_itself_costs_nothing_and_others_are_told_of(make):
    told = []

    def life(node):
        if node.id == 0:
            node.send([0, 1, 2], ("hello",), 100, 1, "word", lambda to, ok: told.append((to, ok)))
        message = yield node.node.receive()
        told.append((node.id, message.payload))
        if len(told) == 5:
            node.conclude(3, node.initial_model, 0)

    run = make(life, network={"latency_ms": 10, "header_bytes": 0})
    run.world.nodes[0].network.hazards.append(lambda transfer: None)
    run.run()
    assert sorted(told, key=repr) == [(0, ("hello",)), (1, ("hello",)), (1, True), (2, ("hello",)), (2, True)]
    assert run.world.totals()["bytes_up"] == 200


def test_a_goodbye_is_said_before_a_node_leaves(make):
    said = []

    def life(node):
        def goodbye():
            said.append((node.id, node.node.clock.now_s, node.node.online))
            yield node.node.clock.timeout(250_000)

        node.on_retire(goodbye)
        if node.id == 0:
            node.after(5.0, node.conclude, 3, node.initial_model, 0)
        yield node.node.receive()

    run = make(life, churn={"name": "depart", "count": 1, "at_s": 2.0})
    run.run()
    assert said == [(2, 2.0, True)]
    left = [time / 1e6 for time, kind, id, *_ in run.events if kind == "offline" and id == 2]
    assert left == [2.25]


def test_founders_and_bandwidths(make):
    seen = {}

    def life(node):
        seen[node.id] = node.founders, node.mbps(1)
        node.conclude(3, node.initial_model, 0)
        yield from ()

    churn = {"name": "arrive", "count": 1, "at_s": 2.0}
    make(life, churn=churn, network={"up_mbps": 3, "down_mbps": 8}).run()
    assert seen[0] == ([0, 1], 3.0)
    make(life).run()
    assert seen[0] == ([0, 1, 2], math.inf)


def test_a_node_whose_sleep_is_broken_off_does_not_sleep_on(make):
    """Otherwise a run in which nobody can go on would wait for it."""

    def life(node):
        nap = node.start(node.sleep(1e9))
        yield from node.sleep(5.0)
        nap.interrupt()
        yield from node.receive()

    run = make(life)
    with pytest.raises(StalledError):
        run.run()
    assert run.world.clock.now_s < 2000
    assert all(peer.sleeping == 0 for peer in run.peers.values())
