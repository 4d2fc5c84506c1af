"""Selectors: whom they choose, what they ask, and how Flower's own strategies take them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg, FedYogi
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import api
from fedsim.errors import BadValue, ConfigError
from fedsim.flower.with_selector import Chosen
from fedsim.learn.deferred import Deferred
from fedsim.methods.select import (
    EVALUATE,
    QUERY_SIZE,
    Available,
    BySize,
    PowerOfChoice,
    RoundRobin,
    Selector,
    Sizes,
    Uniform,
    draw,
    proportional,
    weighted,
)
from fedsim.methods.server import Reply, Server
from fedsim.rng import stream
from fedsim.running.build import prepare

MODEL = Deferred.phantom()
ARRAYS = ArrayRecord([np.zeros(2)])


class Town(Server):
    """Clients with sizes and losses, who is online, and what was asked."""

    def __init__(self, sizes, losses=None, silent=()):
        self.sizes, self.losses, self.silent = sizes, losses or {}, set(silent)
        self.here = list(sizes)
        self.asked = []

    def online(self, at_least=1):
        return list(self.here)

    def get_node_ids(self):
        return list(self.here)

    def exchange(self, round, asks, timeout_s=None, share=None):
        replies = []
        for ask in asks:
            self.asked.append((ask.action, ask.node))
            metrics = {"loss": self.losses[ask.node]} if ask.action == EVALUATE else {}
            if ask.node not in self.silent:
                replies.append(Reply(ask.node, ask.action, {}, metrics, self.sizes[ask.node]))
        return sorted(replies, key=lambda reply: reply.node)

    def send(self, round, asks, timeout_s=None):
        raise NotImplementedError

    receive = send


@pytest.fixture(autouse=True)
def _identity():
    from fedsim.flower import compat

    with compat.session(0, 99, lambda seconds: None):
        yield


def test_uniform_is_the_seeded_draw():
    town = Town(dict.fromkeys(range(10), 1))
    assert Uniform(seed=4).choose(3, MODEL, town, 4) == draw(range(10), 4, stream(4, "cohort", round=3))
    assert Uniform(seed=4).choose(3, MODEL, town, None) == list(range(10))
    assert town.asked == []


def test_round_robin_takes_turns_and_passes_over_who_is_away():
    town, select = Town(dict.fromkeys(range(5), 1)), RoundRobin()
    assert select.choose(1, MODEL, town, 2) == [0, 1]
    assert select.choose(2, MODEL, town, 2) == [2, 3]
    assert select.choose(3, MODEL, town, 2) == [0, 4]
    town.here = [0, 2, 4]
    assert select.choose(4, MODEL, town, 2) == [2, 4]
    assert select.choose(5, MODEL, town, 9) == [0, 2, 4]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_round_robin_is_fair(clients, size):
    town, select = Town(dict.fromkeys(range(clients), 1)), RoundRobin()
    counts = Counter(
        node for round in range(1, clients + 1) for node in select.choose(round, MODEL, town, size)
    )
    assert set(counts.values()) == {min(size, clients)}


def test_by_size_asks_each_client_once():
    town, select = Town({2: 10, 5: 30, 9: 60}), BySize(seed=1)
    town.here = [2, 5]
    select.choose(1, MODEL, town, 1)
    town.here = [2, 5, 9]
    select.choose(2, MODEL, town, 1)
    select.choose(3, MODEL, town, 1)
    assert town.asked == [(QUERY_SIZE, 2), (QUERY_SIZE, 5), (QUERY_SIZE, 9)]


def test_by_size_draws_in_proportion():
    town, select = Town({0: 10, 1: 30, 2: 60}), BySize(seed=1)
    counts = Counter(select.choose(round, MODEL, town, 1)[0] for round in range(1, 2001))
    shares = [counts[node] / 2000 for node in range(3)]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=4 * np.sqrt(0.25 / 2000))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (1, [0.05, 0.05, 0.15, 0.25, 0.5]),
        (2, [0.1, 0.1, 0.3, 0.5, 1.0]),
        (
            3,
            [0.2, 0.2, 0.6, 1.0, 1.0],
        ),  # of 2 / 5 for each sample among the four, 5 samples ask for 2: capped
        (5, [1.0] * 5),
    ],
)
def test_sizes_say_how_probable_it_is_to_take_part(size, wanted):
    """Sizes 1, 1, 3, 5, 10: of c for each sample, c = size / 20 as long as nobody asks for more than 1.

    Three with c = 3 / 20 would give the largest 1.5: it has 1, and c = 2 / 10 for the others, so 5 samples have 1, too.
    """
    sizes, rounds = {0: 1, 1: 1, 2: 3, 3: 5, 4: 10}, 3000
    counts = Counter()
    for round in range(rounds):
        drawn = proportional(sizes, size, stream(7, "cohort", round=round))
        assert len(drawn) == size
        counts.update(list(drawn))
    shares = [counts[node] / rounds for node in range(5)]
    assert shares == pytest.approx(wanted, abs=4 * np.sqrt(0.25 / rounds))
    assert [share == 1 for share in shares] == [chance == 1 for chance in wanted]


@given(
    st.dictionaries(st.integers(0, 50), st.integers(0, 10**6), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_those_drawn_by_size_stand_for_all_samples(sizes, size, seed):
    """Whoever is drawn for certain counts c for each of its samples, and the others 1: together, c for all samples."""
    drawn = proportional(sizes, size, stream(seed, "cohort"))
    there = {node: count for node, count in sizes.items() if count} or dict.fromkeys(sizes, 1)
    assert set(drawn) <= set(there)
    assert len(drawn) == min(size, len(there))
    certain = [share / there[node] for node, share in drawn.items() if share > 1 + 1e-6]
    per_sample = certain[0] if certain else len(drawn) / sum(there.values())
    assert certain == pytest.approx([per_sample] * len(certain), rel=1e-6)
    assert sum(drawn.values()) == pytest.approx(per_sample * sum(there.values()), rel=1e-5)


def test_who_does_not_say_its_size_is_asked_again_and_left_out():
    town, sizes = Town({0: 5, 1: 7}, silent=[1]), Sizes(None)
    assert sizes.of([0, 1], 1, town) == {0: 5}
    town.silent = set()
    assert sizes.of([0, 1], 2, town) == {0: 5, 1: 7}
    assert town.asked == [(QUERY_SIZE, 0), (QUERY_SIZE, 1), (QUERY_SIZE, 1)]


def test_power_of_choice_takes_the_highest_losses():
    losses = {0: 0.5, 1: 2.0, 2: 1.0, 3: 2.0}
    town = Town(dict.fromkeys(range(4), 3), losses)
    assert PowerOfChoice(candidates=4).choose(1, MODEL, town, 2) == [1, 3]
    assert PowerOfChoice(candidates=4).choose(1, MODEL, town, 1) == [1]
    assert town.asked.count((EVALUATE, 0)) == 2


def test_power_of_choice_asks_no_more_than_the_candidates():
    town = Town(dict.fromkeys(range(20), 3), dict.fromkeys(range(20), 1.0))
    chosen = PowerOfChoice(candidates=6, seed=3).choose(1, MODEL, town, 2)
    candidates = [node for kind, node in town.asked if kind == EVALUATE]
    assert len(candidates) == 6
    assert chosen == candidates[:2]  # equal losses: the smaller id
    assert candidates == weighted(town.sizes, 6, stream(3, "candidates", round=1))


def test_power_of_choice_leaves_out_who_does_not_answer():
    town = Town(dict.fromkeys(range(3), 3), {0: 9.0, 1: 1.0, 2: 2.0})
    select = PowerOfChoice(candidates=3)
    select.sizes.of(range(3), 1, town)
    town.silent = {0}
    assert select.choose(1, MODEL, town, 1) == [2]


def test_available_prefers_who_answers_and_stays():
    town, select = Town(dict.fromkeys(range(3), 1)), Available()
    select.choose(1, MODEL, town, 3)
    select.heard(1, [0, 1, 2], [0, 1])
    town.here = [0, 2]
    select.choose(2, MODEL, town, 3)
    town.here = [0, 1, 2]
    select.choose(3, MODEL, town, 3)
    # asked once each: (answers + 1) / 3; online in 3, 1 and 3 looks in a row: s / (s + 1)
    assert [select.weight(node) for node in range(3)] == pytest.approx(
        [2 / 3 * 3 / 4, 2 / 3 / 2, 1 / 3 * 3 / 4]
    )


def test_available_draws_by_its_weights():
    town, select = Town(dict.fromkeys(range(2), 1)), Available(seed=2)
    for round in range(1, 30):
        select.heard(round, [0, 1], [0])
    counts = Counter(select.choose(round, MODEL, town, 1)[0] for round in range(1, 400))
    assert 0.9 < counts[0] / 399 < 1.0


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.floats(0.01, 100), min_size=1), st.integers(1, 12))
def test_weighted_draws_are_distinct_and_as_many_as_there_are(weights, size):
    drawn = weighted(weights, size, stream(0, "x"))
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= weights.keys()
    assert len(drawn) == min(size, len(weights))


# around Flower's own


class Fixed(Selector):
    """Chooses whom it was told, and notes what it hears."""

    def __init__(self, nodes):
        self.nodes, self.sizes, self.notes = nodes, [], []

    def choose(self, round, model, server, size):
        self.sizes.append(size)
        return self.nodes

    def heard(self, round, asked, answered):
        self.notes.append((round, list(asked), list(answered)))


def test_a_strategy_of_flowers_takes_all_that_it_is_shown():
    inner, select = FedAvg(fraction_train=0.3, min_train_nodes=2, min_available_nodes=5), Fixed([3, 4])
    strategy, town = Chosen(inner, select), Town(dict.fromkeys(range(10), 1))
    messages = list(strategy.configure_train(1, ARRAYS, ConfigRecord(), town))
    assert sorted(message.metadata.dst_node_id for message in messages) == [3, 4]
    assert select.sizes == [3]
    assert (inner.fraction_train, inner.min_train_nodes, inner.min_available_nodes) == (0.3, 2, 5)
    assert len(list(strategy.configure_evaluate(1, ARRAYS, ConfigRecord(), town))) == 10


def test_one_client_will_do_for_a_strategy_that_wants_two():
    strategy = Chosen(FedAvg(), Fixed([7]))
    messages = list(strategy.configure_train(1, ARRAYS, ConfigRecord(), Town(dict.fromkeys(range(10), 1))))
    assert [message.metadata.dst_node_id for message in messages] == [7]


def test_the_selector_hears_who_was_asked_and_who_answered():
    select = Fixed([1, 2])
    strategy = Chosen(FedAvg(), select)
    strategy.configure_train(1, ARRAYS, ConfigRecord(), Town(dict.fromkeys(range(4), 1)))
    strategy.aggregate_train(1, [])
    assert [(round, sorted(asked), answered) for round, asked, answered in select.notes] == [(1, [1, 2], [])]


def test_everything_else_is_the_strategys_own():
    inner = FedYogi(beta_1=0.7)
    strategy = Chosen(inner, Uniform())
    assert strategy.beta_1 == 0.7
    assert not hasattr(strategy, "timing_depends_on_values")
    assert Chosen(inner, PowerOfChoice(candidates=1)).timing_depends_on_values
    with pytest.raises(AttributeError):
        strategy.nothing_of_the_kind  # noqa: B018


def experiment(select, strategy=None, **more):
    block = strategy or {"name": "fedavg", "fraction_train": 0.5, "fraction_evaluate": 0.0}
    return {
        "seed": 2,
        "data": {"clients": 6, "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 3}},
        "model": "softmax",
        "strategy": {**block, "select": select},
        "stop": {"rounds": 3},
        "record": {"report": False},
        **more,
    }


NAMES = ["uniform", "round_robin", "by_size", "available", {"name": "power_of_choice", "candidates": 4}]
LAYOUT = {"1.weight": 640, "1.bias": 10}
OURS = {"name": "fedprox", "participants": 3, "mu": 0.1}


@pytest.mark.parametrize("select", NAMES, ids=str)
@pytest.mark.parametrize("strategy", [None, OURS], ids=["flower", "ours"])
def test_every_selector_around_both_kinds(select, strategy, tmp_path):
    one, two = (api.run(experiment(select, strategy), out=tmp_path).summary for _ in range(2))
    assert one["rounds"] == 3
    assert (one["event_hash"], one["weights_hash"]) == (two["event_hash"], two["weights_hash"])


def test_losses_cost_forward_passes_and_bytes(tmp_path):
    everybody = {**OURS, "participants": 6}
    asked, plain = (
        api.run(experiment(select, everybody), out=tmp_path).summary
        for select in ({"name": "power_of_choice", "candidates": 6}, "by_size")
    )
    sizes = [len(own) for own in prepare(api.load(experiment("uniform"))).owned]
    assert asked["work_samples"] - plain["work_samples"] == 3 * sum(-(-size // 3) for size in sizes)
    model = len("arrays") + sum(len(name) + 128 + 4 * size for name, size in LAYOUT.items())
    config = len("config") + len("server-round") + 8
    metrics = len("metrics") + sum(len(name) + 8 for name in ("num-examples", "loss", "accuracy"))
    assert asked["bytes_up"] - plain["bytes_up"] == 3 * 6 * (model + config + metrics + 2 * 64)


def test_a_choice_by_losses_cannot_be_timed_alone(tmp_path):
    with pytest.raises(ConfigError, match="its choices depend on values"):
        api.run(
            experiment({"name": "power_of_choice", "candidates": 4}, OURS), out=tmp_path, timing_only=True
        )


@pytest.mark.parametrize(
    ("select", "line"),
    [
        ("unifrom", "strategy.select: unifrom: no such selector; did you mean uniform?"),
        ({"name": "power_of_choice"}, "strategy.select.candidates: is required"),
        (
            {"name": "power_of_choice", "candidates": 9},
            "strategy.select.candidates: 9: at most 6, the number",
        ),
        ({"name": "power_of_choice", "candidate": 3}, "strategy.select.candidate: unknown key; did you mean"),
        ("fedsim.learn.codec:Quantised", "strategy.select: fedsim.learn.codec:Quantised: is not a selector"),
    ],
)
def test_bad_selectors(select, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(select))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(("key", "value"), [("select", "uniform"), ("around", ["quantise"])])
def test_peers_have_no_server_that_could_choose(key, value):
    given = {"data": {"clients": 4}, "strategy": {"name": "dpsgd", key: value}, "stop": {"rounds": 1}}
    with pytest.raises(ConfigError, match=f"strategy.{key}: belongs to a server, and dpsgd has only peers"):
        api.check(given)


def test_candidates_are_checked_in_code_too():
    with pytest.raises(BadValue, match="at most 3"):
        PowerOfChoice(candidates=4).check(3)
