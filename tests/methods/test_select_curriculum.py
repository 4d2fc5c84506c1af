"""The client curriculum: pools, passes and scores, with answers that the test makes up, and in whole runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.errors import ConfigError
from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.learn.deferred import Deferred
from fedsim.methods.select_curriculum import QUERY_SCORE, ClientCurriculum
from fedsim.methods.server import Reply, Server
from fedsim.record.store import read
from fedsim.running.build import prepare
from fedsim.running.updates import updates_of
from fedsim.spec.experiment import load

MODEL = Deferred.phantom()
STARTS = (0, 20, 42, 66, 92, 121, 153, 188, 226, 268, 314, 365, 421, 483, 551, 626, 708, 798, 897, 997)
POOLS = (20, 22, 24, 26, 29, 32, 35, 38, 42, 46, 51, 56, 62, 68, 75, 82, 90, 99, 100, 100)
SMALL_GROUPS = {4: 2, 7: 4, 17: 2, 30: 2, 41: 1, 54: 2, 78: 2}


class School(Server):
    """Clients that have scores, some of them offline."""

    def __init__(self, scores):
        self.scores, self.away, self.asked = list(scores), set(), []

    def online(self, at_least=1):
        return [node for node in range(len(self.scores)) if node not in self.away]

    def exchange(self, round, asks, timeout_s=None, share=None):
        asks = list(asks)
        assert {ask.action for ask in asks} == {QUERY_SCORE}
        self.asked.append([ask.node for ask in asks])
        return [Reply(ask.node, QUERY_SCORE, {}, {"score": self.scores[ask.node]}, 7) for ask in asks]

    def send(self, round, asks, timeout_s=None):
        raise NotImplementedError

    receive = send


@pytest.fixture(autouse=True)
def _identity():
    with compat.session(0, 999, lambda seconds: None):
        yield


def play(select, school, size, budget=None, rounds=10**6):
    """Return the groups of each pass, and the pools, until the budget is spent."""
    select.check(len(school.scores))
    passes, pools, number = [], [], 0
    while (budget is None or select.done < budget or select._queue) and number < rounds:
        number += 1
        new = not select._queue
        group = select.choose(number, MODEL, school, size)
        if new:
            passes.append([])
            pools.append(list(select.pool))
        passes[-1].append(group)
        select.heard(number, group, group)
    return passes, pools


def test_curriculum_property_14_the_golden_schedule_of_100_clients():
    passes, pools = play(ClientCurriculum(rounds=100), School(range(100)), 10, 1000)
    assert tuple(map(len, pools)) == POOLS
    groups = [group for one in passes for group in one]
    assert len(groups) == 118
    assert sum(map(len, groups)) == 1097
    assert {i: len(group) for i, group in enumerate(groups) if len(group) < 5} == SMALL_GROUPS
    done = np.cumsum([0, *(sum(map(len, one)) for one in passes)])
    assert tuple(done[:-1]) == STARTS
    counts = np.bincount([node for group in groups for node in group])
    assert set(counts[:20]) == {20}
    assert [int(counts[rank]) for rank in (24, 40, 60, 80, 99)] == [17, 12, 8, 5, 2]


def test_curriculum_property_14_the_golden_schedule_of_20_clients():
    passes, pools = play(ClientCurriculum(rounds=30), School(range(20)), 5, 150)
    assert list(map(len, pools)) == [4, 4, 5, 5, 6, 7, 8, 9, 10, 11, 13, 14, 16, 18, 20]
    assert sum(map(len, passes)) == 35
    starts = np.cumsum([0, *(sum(map(len, one)) for one in passes)])
    assert starts.tolist() == [0, 4, 8, 13, 18, 24, 31, 39, 48, 58, 69, 82, 96, 112, 130, 150]


def test_curriculum_property_14_vanilla_takes_everybody_equally_often():
    school = School([0.0] * 20)
    passes, _ = play(ClientCurriculum(rounds=40, order="vanilla"), school, 5, 200)
    groups = [group for one in passes for group in one]
    assert len(groups) == 40
    assert set(np.bincount(np.concatenate(groups))) == {10}  # R m / K
    assert school.asked == []
    passes, _ = play(ClientCurriculum(rounds=30, order="vanilla"), School([0.0] * 20), 5, 150)
    assert sum(map(len, passes)) == 32  # the last pass goes beyond the budget


@given(
    st.integers(1, 25),
    st.integers(1, 8),
    st.integers(0, 99),
    st.sampled_from(["curriculum", "anti", "random"]),
)
@settings(max_examples=40, deadline=None)
def test_curriculum_property_15_in_a_pass_everybody_of_the_pool_trains_once(clients, size, seed, order):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, clients).astype(float).tolist()
    school = School(scores)
    passes, pools = play(ClientCurriculum(rounds=6, order=order, seed=seed), school, size, 6 * size)
    for groups, pool in zip(passes, pools):
        assert sorted(node for group in groups for node in group) == sorted(pool)
        assert all(len(group) == size for group in groups[:-1])
        assert all(group == sorted(group) for group in groups)
        easiest = sorted(range(clients), key=lambda node: (scores[node], node))
        if order != "random":
            ranked = easiest if order == "curriculum" else easiest[::-1]
            assert pool == ranked[: len(pool)]


def test_curriculum_property_16_scores_are_asked_for_once_in_a_pass():
    school = School(range(20))
    select = ClientCurriculum(rounds=30)
    select.check(20)
    pools, number = [], 0
    for _ in range(4):
        asked = len(school.asked)
        while True:
            number += 1
            group = select.choose(number, MODEL, school, 5)
            select.heard(number, group, group)
            if not select._queue:
                break
        assert school.asked[asked:] == [list(range(20))]
        pools.append(set(select.pool))
        school.scores = school.scores[::-1]  # the model has changed its mind
    assert pools[0] == {0, 1, 2, 3}
    assert pools[1] == {19, 18, 17, 16}


def test_curriculum_property_16_the_experts_pools_are_nested():
    school = School(np.random.default_rng(0).random(20))
    _, pools = play(ClientCurriculum(rounds=30, score="expert"), school, 5, 150)
    assert all(set(one) <= set(two) for one, two in itertools.pairwise(pools))
    assert school.asked == [list(range(20))]


def test_random_draws_another_pool_in_every_pass():
    _, pools = play(ClientCurriculum(rounds=30, order="random"), School([0.0] * 20), 5, 60)
    assert len({frozenset(pool) for pool in pools}) > len(pools) // 2
    assert not ClientCurriculum(rounds=30, order="random").timing_depends_on_values
    assert ClientCurriculum(rounds=30).timing_depends_on_values


def test_one_random_order_has_nested_pools_of_the_same_sizes():
    """So it is told apart who is in a pool, how many are, and how often they are others."""
    given_ = {"rounds": 30, "order": "random", "seed": 4}
    _, fixed = play(ClientCurriculum(**given_, redrawn=False), School([0.0] * 20), 5, 150)
    _, drawn = play(ClientCurriculum(**given_), School([0.0] * 20), 5, 150)
    _, easy = play(ClientCurriculum(rounds=30), School(range(20)), 5, 150)
    assert list(map(len, fixed)) == list(map(len, drawn)) == list(map(len, easy))
    assert all(one == two[: len(one)] for one, two in itertools.pairwise(fixed))
    assert not all(set(one) <= set(two) for one, two in itertools.pairwise(drawn))
    assert fixed[0] != easy[0]
    _, other = play(ClientCurriculum(**{**given_, "seed": 5}, redrawn=False), School([0.0] * 20), 5, 150)
    assert other[-1] != fixed[-1]


def test_a_partial_group_is_kept_or_dropped():
    for partial, sizes in (("keep", [5, 1]), ("drop", [5])):
        select = ClientCurriculum(rounds=30, b=0.3, a=9.0, pacing="step", partial=partial)
        passes, _ = play(select, School(range(20)), 5, 30)
        assert all([len(group) for group in groups] == sizes for groups in passes[:-1])
    alone = ClientCurriculum(
        rounds=30, b=0.1, partial="drop"
    )  # two clients: less than one group, but not nothing
    alone.check(20)
    assert alone.choose(1, MODEL, School(range(20)), 5) == [0, 1]


def test_who_is_offline_keeps_its_last_score():
    school = School([0.0, 1.0, 2.0, 3.0, 4.0])
    select = ClientCurriculum(rounds=100, b=0.4)
    select.check(5)
    assert select.choose(1, MODEL, school, 2) == [0, 1]
    select.heard(1, [0, 1], [0, 1])
    school.scores, school.away = [9.0, 9.0, 2.0, 3.0, 0.5], {0}
    assert select.choose(4, MODEL, school, 2) == [4]  # 0 is still easiest, and away at its turn
    assert select.pool == [0, 4]
    facts = {(name, node): value for name, value, node in select.metrics(4)}
    assert facts["score", 0] == 0.0
    assert facts["score", 4] == 0.5
    assert facts["score_age", -1] == 3 / 5  # one of five is three rounds old
    assert facts["pool_updates", -1] == 2
    assert (facts["visits", 0], facts["visits", 1]) == (1, 1)


def test_who_was_never_scored_comes_last_and_a_pool_that_is_away_does_not_stop_the_run():
    school = School([0.0, 1.0, 2.0])
    school.away = {0}
    select = ClientCurriculum(rounds=100, b=0.4)
    select.check(3)
    assert select.choose(1, MODEL, school, 1) == [1]
    select.heard(1, [1], [1])
    school.away = {1}
    school.scores = [5.0, 0.0, 6.0]
    assert select.choose(2, MODEL, school, 1) == [0]  # 1 is the easiest that is known, and away
    assert select.pool == [0]


def test_the_clock_counts_updates_that_came():
    select = ClientCurriculum(rounds=10)
    select.check(20)
    group = select.choose(1, MODEL, School(range(20)), 4)
    select.heard(1, group, group[:1])
    assert select.done == 1


BASE = {
    "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 12}},
    "model": "softmax",
    "devices": {"seconds_per_sample": 0.01},
    "stop": {"rounds": 6},
    "compute": {"dtype": "float64"},
    "record": {"report": False},
}
STRATEGIES = {
    "fedprox": {"mu": 0.1, "participants": 3},
    "fedavg": {"fraction_train": 0.375, "fraction_evaluate": 0.0, "min_available_nodes": 1},
    "scaffold": {"participants": 3},
}


def run(out, name, select, curriculum=None, timing_only=False, **blocks):
    local = {"epochs": 1, "batch_size": 8, "lr": 0.1, "curriculum": curriculum}
    strategy = {"name": name, "local": local, "select": select, **STRATEGIES[name]}
    return fedsim.run({**BASE, **blocks, "strategy": strategy}, out=out, timing_only=timing_only)


@pytest.mark.parametrize("name", STRATEGIES)
def test_any_strategy_takes_it_under_churn(name, tmp_path):
    select = {"name": "curriculum", "rounds": 5, "score": "both"}
    churn = {"name": "exponential", "online_s": 6, "offline_s": 4}
    one, two = (run(tmp_path, name, select, {"score": "local"}, churn=churn) for _ in range(2))
    assert one.summary["run_hash"] == two.summary["run_hash"]
    table = read(one.path, "metrics")
    named = {str(n): table["value"][table["name"] == n] for n in set(table["name"])}
    assert {"pool", "pool_updates", "score_age", "score", "visits"} <= set(named)
    assert named["score_age"].max() > 0
    assert named["pool"].max() >= 2


def test_scoring_costs_time_and_bytes(tmp_path):
    free, paid = (run(tmp_path, "fedprox", {"name": "curriculum", "rounds": 1, "order": one, "b": 1.0})
                  for one in ("vanilla", "curriculum"))  # fmt: skip
    samples = 1438  # of digits' training part
    assert free.summary["rounds"] == paid.summary["rounds"] == 6
    difference = paid.summary["work_samples"] - free.summary["work_samples"]
    assert abs(difference - 2 * samples / 3) <= 2 * 8  # two passes of 3 + 3 + 2; each client rounds up
    assert paid.summary["sim_time_s"] > free.summary["sim_time_s"]
    assert paid.summary["bytes_up"] > free.summary["bytes_up"]


def test_curriculum_property_18_whole_sizes_weigh_the_replies(tmp_path):
    local = {"steps": 2, "batch_size": 4, "curriculum": {"floor": 1, "b": 0.1}}
    strategy = {"name": "fedprox", "mu": 0.1, "participants": 3, "local": local}
    setup = prepare(load({**BASE, "strategy": strategy}))
    updates = updates_of(setup.strategy, setup.experiment)
    clients, arrays = (
        BuiltinClients(setup.learner, updates),
        pack(setup.learner.initial, setup.learner.engine.task.layout),
    )
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    contents = [clients.answer(node, Message(content, node, "train"), 0.0) for node in range(3)]
    sizes = setup.learner.sizes[:3]
    assert [int(one["metrics"]["num-examples"]) for one in contents] == sizes
    assert all(updates["train"].update.work(size) == 8 < size for size in sizes)  # two batches of four
    replies = [
        Reply(node, "train", {"arrays": unpack(one["arrays"])}, one["metrics"], sizes[node])
        for node, one in enumerate(contents)
    ]
    vectors = [reply.vectors["arrays"].value() for reply in replies]
    merged = setup.strategy.merge(1, setup.learner.initial, replies).value()
    wanted = sum(size / sum(sizes) * vector for size, vector in zip(sizes, vectors))
    assert float((merged - wanted).abs().max()) < 1e-12
    alone = setup.strategy.merge(1, setup.learner.initial, replies[1:2]).value()
    assert float((alone - vectors[1]).abs().max()) < 1e-12


def test_timing_only_needs_no_scores_for_a_random_order(tmp_path):
    select = {"name": "curriculum", "rounds": 5, "order": "random"}
    full, dry = (run(tmp_path, "fedprox", select, {}, timing_only=one) for one in (False, True))
    assert full.summary["event_hash"] == dry.summary["event_hash"]
    with pytest.raises(ConfigError, match="its choices depend on values"):
        run(tmp_path, "fedprox", {"name": "curriculum", "rounds": 5}, timing_only=True)
