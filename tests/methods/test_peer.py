"""Peers: what a node may do, when a round ends, and that nobody waits for ever without a word.

In the little world of these tests a round of training is one batch of 10 samples at 0.1 s each: one second.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.errors import NotFiniteError, RunError, StalledError
from fedsim.learn.learner import Place
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import PeerStrategy
from fedsim.record.store import Record, read
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.running.threads import limited
from fedsim.spec.experiment import Local, load
from strategies.peer.dpsgd import DPSGD

LOCAL = Local(steps=1, batch_size=10, lr=0.1)
MODEL_BYTES = 4 * 650  # 64 x 10 weights and 10 biases as float32


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


class Solo(PeerStrategy):
    """Every node trains for itself."""

    def __init__(self):
        self.update = LocalSGD(LOCAL)

    def run(self, node):
        model = node.initial_model
        for round in node.rounds():
            model = yield from node.train(self.update, model, round)
            node.finish(round, model)


class Noting(Observer):
    """An observer that keeps what it is told."""

    def on_round(self, round, models, updates):
        self.rounds = [*getattr(self, "rounds", []), (round, self.world.clock.now_s, updates, dict(models))]
        return super().on_round(round, models, updates)


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a run of peers."""
    records = []

    def make(strategy, nodes=3, topology="complete", rounds=2, stop=None, **blocks):
        file = {
            "data": {"clients": nodes},
            "model": "softmax",
            "strategy": "dpsgd",
            "topology": topology,
            "stop": stop or {"rounds": rounds},
            "devices": {"seconds_per_sample": 0.1},
            "compute": {"engine": "sequential"},
            **blocks,
        }
        setup = prepare(load(file))
        folder = tmp_path / str(len(records))
        folder.mkdir()
        records.append(Record(folder).__enter__())
        run = PeerRun(
            setup.world,
            setup.learner,
            strategy,
            Noting(setup.experiment, setup.learner, setup.world, records[-1]),
        )
        run.events = []
        setup.world.log.listen(lambda *event: run.events.append(event))
        return run

    yield make
    for record in records:
        record.__exit__(None, None, None)


def at(run, seconds, call, *args):
    run.world.clock.after(round(seconds * 1e6), call, *args)


def switch(run, id, *times):
    """Let a node go offline and come back alternately at these times."""
    for index, seconds in enumerate(times):
        at(run, seconds, run.world.nodes[id].set_online, index % 2 == 1)


def ends(run):
    """The rounds and the seconds at which they ended."""
    return [(round, now_s) for round, now_s, _, _ in run.observer.rounds]


# rounds


def test_a_round_ends_when_the_slowest_has_finished_it(make):
    run = make(Solo(), rounds=3)
    run.world.nodes[1].ps_per_sample = 250_000_000_000
    run.run()
    assert ends(run) == [(0, 0.0), (1, 2.5), (2, 5.0), (3, 7.5)]
    assert [updates for _, _, updates, _ in run.observer.rounds] == [0, 1 + 2 * 2, 2 + 2 * 3, 3 + 2 * 3]


def test_a_rounds_models_are_those_of_that_round(make):
    """The fast nodes have finished round 3 when round 1 ends."""
    slow, even = make(Solo(), rounds=3), make(Solo(), rounds=3)
    slow.world.nodes[1].ps_per_sample *= 3
    slow.run()
    even.run()
    for one, other in zip(slow.observer.rounds, even.observer.rounds):
        for node in range(3):
            assert np.array_equal(one[3][node].value(), other[3][node].value())


def test_a_node_that_skips_rounds_never_falls_back_behind_a_model(make):
    """It goes from round 1 to round 4 and on, while a slow one holds the rounds up: it counts with round 4's in 2."""

    class Jumps(Solo):
        def run(self, node):
            model, rounds = node.initial_model, {0: range(1, 7), 1: (1, 4, 5, 6)}
            for round in rounds[node.id]:
                yield from node.sleep(10.0 if node.id == 0 else 1.0)
                model = yield from node.train(self.update, model, round)
                made[node.id, round] = model
                node.finish(round, model)

    made = {}
    run = make(Jumps(), nodes=2, rounds=6)
    run.run()
    told = run.observer.rounds[1:]
    assert [one[3][0] is made[0, round] for round, one in enumerate(told, 1)] == [True] * 6
    # all of its rounds are over after 8 seconds, before the slow one has finished its first
    assert [one[3][1] is made[1, round] for round, one in zip((1, 4, 4, 4, 5, 6), told)] == [True] * 6


def test_nobody_waits_for_a_node_that_is_offline(make):
    run = make(Solo(), rounds=2)
    switch(run, 2, 0.5)
    run.run()
    assert ends(run) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    models = run.observer.rounds[-1][3]
    assert sorted(models) == [0, 1, 2]  # it still has a model, the first one
    assert np.array_equal(models[2].value(), run.learner.initial.value())


def test_a_node_that_goes_offline_last_ends_the_round(make):
    run = make(Solo(), rounds=1)
    run.world.nodes[2].ps_per_sample *= 5
    switch(run, 2, 3.25)
    run.run()
    assert ends(run)[1:] == [(1, 3.25)]


def test_a_node_that_comes_back_is_waited_for_again(make):
    run = make(Solo(), rounds=2)
    run.world.nodes[0].ps_per_sample *= 4
    switch(run, 2, 0.5, 3.5)
    run.run()
    # round 1: node 0 at 4.0, node 2 (again from 3.5) at 4.5; round 2: node 0 at 8.0
    assert ends(run)[1:] == [(1, 4.5), (2, 8.0)]


def test_a_node_that_has_crashed_has_no_model_any_more(make):
    run = make(Solo(), rounds=2)
    at(run, 1.5, run.world.nodes[0].crash)
    run.run()
    assert [sorted(models) for _, _, _, models in run.observer.rounds] == [[0, 1, 2], [0, 1, 2], [1, 2]]


def test_no_round_ends_while_everybody_is_offline(make):
    run = make(Solo(), rounds=1)
    for node in range(3):
        switch(run, node, 0.5, 10.0 + 1.5 * node)
    run.run()
    assert ends(run)[1:] == [(1, 11.0)]  # node 0, the only one that is online by then, did it again


def test_rounds_that_are_not_measured_end_all_the_same(make):
    run = make(Solo(), rounds=5, evaluate={"every": 2})
    run.world.nodes[1].ps_per_sample *= 2
    run.run()
    assert [round for round, _ in ends(run)] == [0, 1, 2, 3, 4, 5]
    assert not any(run._ahead.values())


# training


def test_interrupted_work_is_done_again(make):
    calm, hit = make(Solo(), rounds=1), make(Solo(), rounds=1)
    calm.run()
    for node in (0, 1):
        hit.world.nodes[node].ps_per_sample *= 10
    switch(hit, 2, 0.4, 2.0)
    hit.run()
    done = [(time / 1e6, kind, size) for time, kind, node, _, size, _ in hit.events if node == 2 and size]
    assert done == [(0.0, "compute", 10), (0.4, "aborted", 4), (2.0, "compute", 10), (3.0, "done", 10)]
    node = hit.world.nodes[2]
    assert (node.work, node.wasted) == (14, 4)
    found, wanted = (run.observer.rounds[-1][3][2].value() for run in (hit, calm))
    assert np.array_equal(found, wanted)


def test_training_starts_when_the_node_is_there(make):
    run = make(Solo(), nodes=1, rounds=1)
    run.world.nodes[0].set_online(False)
    switch(run, 0, 0.1, 5.0)
    run.run()
    assert ends(run)[1:] == [(1, 6.0)]


def test_nodes_train_on_their_own_data_from_their_own_model(make):
    run = make(Solo(), rounds=2)
    run.run()
    update, learner = LocalSGD(LOCAL), run.learner
    for node in range(3):
        model = learner.initial
        for round in (1, 2):
            place = Place(node, round, 0.0)
            model = learner.train(update, node, {"arrays": model}, place).pick("arrays")
        assert np.array_equal(model.value(), run.observer.models[node].value())


def test_no_two_trainings_of_a_node_draw_the_same_batches(make):
    """In whatever order its rounds are; the first of a round has the round's own batches."""

    class Restless(Solo):
        def run(self, node):
            models = []
            for round in (1, 1, 3, 1, 3, 1, 4):
                models.append((yield from node.train(self.update, node.initial_model, round)))
            self.models = models
            node.finish(1, models[0])

    restless = Restless()
    run = make(restless, nodes=1, rounds=1)
    run.run()
    found = [tuple(model.value().tolist()) for model in restless.models]
    assert len({*found}) == 7
    for visit, round in ((0, 1), (2, 3), (6, 4)):
        given = {"arrays": run.learner.initial}
        alone = run.learner.train(restless.update, 0, given, Place(0, round, 0.0)).pick("arrays")
        assert found[visit] == tuple(alone.value().tolist())


# messages


class Talk(Solo):
    """Trains once, sends its model, and notes what it receives."""

    def __init__(self, senders, timeout_s):
        super().__init__()
        self.senders, self.timeout_s, self.heard = senders, timeout_s, {}

    def run(self, node):
        model = yield from node.train(self.update, node.initial_model, 1)
        node.send_model(node.neighbours, model, 1)
        received = yield from node.receive_models(self.senders(node), 1, self.timeout_s)
        self.heard[node.id] = (node.node.clock.now_s, received)
        node.finish(1, model)


def test_models_travel_at_the_networks_pace(make):
    network = {"latency_ms": 20, "edge_mbps": 0.02664, "header_bytes": 64}  # 2,664 bytes: 0.8 s
    talk = Talk(lambda node: node.neighbours, None)
    run = make(talk, topology="ring", nodes=4, rounds=1, network=network)
    run.run()
    assert run.model_bytes == MODEL_BYTES
    for node in range(4):
        now_s, received = talk.heard[node]
        assert now_s == 1.82
        assert list(received) == sorted({(node - 1) % 4, (node + 1) % 4})
        for sender, model in received.items():
            assert model is run.latest[sender]
    assert run.world.totals()["bytes_up"] == run.world.totals()["bytes_down"] == 8 * (MODEL_BYTES + 64)


def test_a_model_that_is_late_is_left_out(make):
    talk = Talk(lambda node: node.neighbours, 2.5)
    run = make(talk, rounds=1)
    run.world.nodes[2].ps_per_sample *= 5
    run.run()
    assert {node: (now_s, sorted(got)) for node, (now_s, got) in talk.heard.items()} == {
        0: (3.5, [1]),
        1: (3.5, [0]),
        2: (5.0, [0, 1]),  # theirs have been waiting for it
    }
    late = [(time, node, peer) for time, kind, node, peer, _, _ in run.events if kind == "late"]
    assert late == [(5_000_000, 0, 2), (5_000_000, 1, 2)]


def test_an_offline_node_neither_hears_nor_is_heard(make):
    talk = Talk(lambda node: node.neighbours, 1.0)
    run = make(talk, rounds=1)
    switch(run, 2, 0.5)
    run.run()
    assert {node: sorted(got) for node, (_, got) in talk.heard.items()} == {0: [1], 1: [0]}
    assert run.world.totals()["bytes_lost"] == 2 * 64


def test_sending_computes_nothing(make):
    run = make(Talk(lambda node: node.neighbours, None), rounds=1, evaluate={"every": 9})
    run.run()
    assert not any(run.latest[node].done for node in range(3))
    run.observer.close()
    assert all(run.latest[node].done for node in range(3))


def test_neighbours_are_sorted_and_those_of_the_graph(make):
    run = make(Solo(), nodes=5, topology="ring")
    assert [run.peers[node].neighbours for node in range(5)] == [[1, 4], [0, 2], [1, 3], [2, 4], [0, 3]]


# catching up


def finished(run, strategy):
    """Let a strategy note which rounds each node finishes, and when."""
    notes = {}
    finish = run.finish

    def noting(peer, round, model, updates):
        notes.setdefault(peer.id, []).append((round, run.world.clock.now_s))
        finish(peer, round, model, updates)

    run.finish = noting
    return notes


def test_a_node_that_was_away_goes_on_with_the_latest_round(make):
    """The others need 1.5 s a round: they train for one, and wait half a second for the one who is not there."""
    run = make(DPSGD(local=LOCAL, timeout_s=0.5), rounds=12)
    notes = finished(run, run.strategy)
    switch(run, 2, 0.5, 10.2)
    run.run()
    # back at 10.2 it trains round 1 once more, waits in vain for its models until 11.7, and has heard round 8 by then
    assert notes[2][:2] == [(1, 11.7), (8, 12.7)]
    assert [round for round, _ in notes[0]] == list(range(1, 13))
    assert notes[0][6] == (7, 10.5)
    assert run.observer.round == 12


def test_a_slow_node_that_skips_rounds_does_not_stop_the_count(make):
    run = make(DPSGD(local=LOCAL, timeout_s=0.5), rounds=20)
    run.world.nodes[2].ps_per_sample *= 100
    notes = finished(run, run.strategy)
    run.run()
    assert notes[2] == [
        (1, 100.0),
        (20, 200.0),
    ]  # what the others sent in these rounds has been waiting for it
    assert notes[0][-1] == (20, 30.0)
    assert ends(run)[1] == (1, 100.0)
    assert ends(run)[2:] == [(round, 200.0) for round in range(2, 21)]
    assert not any(run._ahead.values())


def test_models_of_rounds_that_are_over_are_not_kept(make):
    run = make(DPSGD(local=LOCAL, timeout_s=0.5), stop={"sim_time_s": 30})
    switch(run, 2, 0.5, 10.2)
    run.run()
    assert all(round > run.observer.round for ahead in run._ahead.values() for round in ahead)


@pytest.mark.parametrize("seed", range(6))
def test_runs_under_churn_come_to_their_end(make, seed):
    speeds = {"seconds_per_sample": {"distribution": "uniform", "low": 0.01, "high": 0.4}}
    churn = {"name": "exponential", "online_s": 6, "offline_s": 3}
    run = make(
        DPSGD(local=LOCAL, timeout_s=0.7),
        nodes=5,
        topology="ring",
        rounds=15,
        seed=seed,
        devices=speeds,
        churn=churn,
        evaluate={"every": 15},
    )
    run.run()
    assert [round for round, _ in ends(run)] == list(range(16))
    online = [peer for peer in run.peers.values() if peer.node.online]
    assert online
    assert all(peer.finished >= 15 for peer in online)
    totals = run.world.totals()
    on_the_way = totals["bytes_up"] - totals["bytes_down"] - totals["bytes_lost"]
    assert on_the_way == 0


# ends


def test_the_time_limit_ends_a_run(make):
    run = make(Solo(), stop={"sim_time_s": 3.5})
    run.run()
    assert run.world.clock.now_s == 3.5
    assert ends(run) == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_target_ends_a_run(make):
    run = make(Solo(), stop={"rounds": 500, "target": {"accuracy": 0.3}})
    run.run()
    assert run.observer.scores["accuracy"] >= 0.3
    assert 1 < run.observer.round < 500
    assert run.world.clock.now_s == run.observer.round == run.observer.time_to_target_s


class Waits(Solo):
    """Node 0 waits for a message that nobody sends; the others stop after their first round."""

    def run(self, node):
        if node.id == 0:
            yield from node.receive_models([1], 1)
        model = yield from node.train(self.update, node.initial_model, 1)
        node.finish(1, model)


def test_waiting_for_nobody_stalls_even_when_the_others_are_done(make):
    run = make(Waits(), rounds=1)
    with pytest.raises(StalledError) as caught:
        run.run()
    assert str(caught.value).endswith("node 0 (round 0 done) waits for model of round 1 from [1]")
    assert caught.value.round == 1
    assert caught.value.sim_time_s <= 1800


def test_a_strategy_that_just_ends_stalls(make):
    class Ends(Solo):
        def run(self, node):
            yield from ()

    with pytest.raises(StalledError, match="every node has crashed or come to its end"):
        make(Ends(), rounds=1).run()


def test_a_world_of_crashed_nodes_stalls(make):
    run = make(Solo(), rounds=9)
    for node in run.world.nodes:
        at(run, 2.5, node.crash)
    with pytest.raises(StalledError, match="every node has crashed or come to its end"):
        run.run()
    assert run.observer.round == 2


def test_sessions_that_are_too_short_for_a_training_stall_and_say_so(make):
    """A training takes 20 s, and nobody is online for longer than half a second: e^-40 of the sessions would do."""
    churn = {"name": "exponential", "online_s": 0.5, "offline_s": 0.5}
    run = make(Solo(), churn=churn, devices={"seconds_per_sample": 2.0})
    with pytest.raises(StalledError) as caught:
        run.run()
    said = str(caught.value)
    assert "no training was finished and no message delivered while nodes came back 1" in said
    assert "a training takes 20 to 20 s" in said
    assert caught.value.round == 1
    # 3 nodes, each back once in a second on average: 100,000 times in 33,333 s, and it looks every 600 s
    assert 33_000 < caught.value.sim_time_s < 35_000


def test_one_long_wait_in_vain_is_told(make, caplog):
    """Node 2 is gone: the others wait an hour for its first model, again in the second round, and it is said once."""
    run = make(DPSGD(local=LOCAL), rounds=2)
    at(run, 0.5, run.world.nodes[2].crash)
    run.run()
    assert ends(run) == [(0, 0.0), (1, 3601.0), (2, 7202.0)]
    [told] = [record.getMessage() for record in caplog.records if "in vain" in record.getMessage()]
    assert told.startswith(
        "node 0 has waited 3600 s in vain for model of round 1 from [2], because strategy.timeout_s"
    )


def test_long_work_is_not_a_stall(make):
    run = make(Solo(), rounds=1)
    run.world.nodes[0].ps_per_sample *= 100_000
    run.run()
    assert ends(run)[1:] == [(1, 100_000.0)]


def test_a_long_absence_is_not_a_stall(make):
    run = make(Solo(), rounds=1)
    for node in range(3):
        switch(run, node, 0.5, 50_000.0)
    run.run()
    assert ends(run)[1:] == [(1, 50_001.0)]


def test_a_model_that_was_lost_stalls_those_who_insist_on_it(make):
    """Node 2 comes back, but what the others sent in its absence does not."""
    run = make(DPSGD(local=LOCAL, timeout_s=None), rounds=3)
    switch(run, 2, 0.5, 30.0)
    with pytest.raises(StalledError) as caught:
        run.run()
    lost = "node 2 (round 0 done) waits for model of round 1 from [0, 1]"
    assert lost in str(caught.value)
    assert "node 0 (round 1 done) waits for model of round 2 from [2]" in str(caught.value)


class Breaks(Solo):
    """Node 1 raises in its second round."""

    def run(self, node):
        for round in node.rounds():
            model = yield from node.train(self.update, node.initial_model, round)
            if (node.id, round) == (1, 2):
                raise KeyError("weights")
            node.finish(round, model)


def test_a_strategy_that_raises_says_where(make):
    with pytest.raises(RunError) as caught:
        make(Breaks(), rounds=5).run()
    error = caught.value
    assert (error.node, error.round, error.sim_time_s, error.phase) == (1, 2, 2.0, "Breaks")
    assert "KeyError: 'weights'" in str(error)
    causes = []
    while error is not None:
        causes.append(type(error))
        error = error.__cause__
    assert causes[-1] is KeyError


def test_weights_that_explode_say_where(make):
    solo = Solo()
    solo.update = LocalSGD(Local(steps=1, batch_size=10, lr=1e38))
    with pytest.raises(NotFiniteError, match="round"):
        make(solo, rounds=3).run()


def test_the_same_world_twice(make):
    churn = {"name": "exponential", "online_s": 6, "offline_s": 3}
    hashes = []
    for seed in (1, 1, 2):
        run = make(DPSGD(local=LOCAL, timeout_s=0.5), nodes=4, rounds=5, churn=churn, seed=seed)
        run.run()
        hashes.append(run.world.log.hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


class Squares(Solo):
    """Measures rounds."""

    def measure(self, round):
        return {"square": round**2}


def test_what_a_strategy_measures_is_recorded_for_the_rounds_that_are_evaluated(make, tmp_path):
    run = make(Squares(), rounds=5, evaluate={"every": 2})
    run.run()
    table = read(tmp_path / "0", "metrics", name="square")
    assert table["round"].tolist() == [2, 4]
    assert table["value"].tolist() == [4, 16]
    assert table["time_us"].tolist() == [2_000_000, 4_000_000]
