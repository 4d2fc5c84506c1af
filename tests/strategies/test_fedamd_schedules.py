"""FedAMD's schedules: printed digits, optima found by other means, and contradictions."""

from __future__ import annotations

import logging
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import api, parts
from fedsim.errors import BadValue
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import FedAMD
from strategies.fedamd.schedules import bound, choose, decaying, opt_a, opt_b, opt_c, sequential


def make(**given):
    strategy = FedAMD(**{"participants": 4, "local": Local(steps=2), **given})
    strategy.check(8)
    return strategy


# the printed digits


@pytest.mark.parametrize(
    ("clients", "participants", "a", "b", "c"),
    [
        (100, 20, 0.8802, 0.4881, 0.8870),
        (100, 10, 0.8299, 0.4939, 0.8360),
        (20, 10, 0.8106, 0.4721, 0.8360),
        (100, 50, 0.9299, 0.4721, 0.9369),
    ],
)
def test_fedamd_property_18_optimal_p(clients, participants, a, b, c):
    found = [rule(clients, participants) for rule in (opt_a, opt_b, opt_c)]
    assert [round(p, 4) for p in found] == [a, b, c]


def test_fedamd_property_18_the_bound_at_the_optima():
    values = [bound(rule(100, 20), 100, 20) for rule in (opt_a, opt_b, opt_c)]
    assert [round(value, 3) for value in values] == [12.916, 21.488, 12.924]


def test_fedamd_property_18_decaying_p():
    # the paper's rounds 0, 10, 100 and 199 are ours 1, 11, 101 and 200
    assert [round(decaying(t), 4) for t in (1, 11, 101, 200)] == [0.9712, 0.6375, 0.3198, 0.2665]
    shares = [decaying(t) for t in range(1, 2000)]
    assert all(a >= b for a, b in pairwise(shares))
    assert max(shares) < 1
    assert min(shares) > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200))
def test_fedamd_property_18_no_p_is_better_than_opt_a(participants, more):
    clients = participants + more
    best = opt_a(clients, participants)
    assert 0 < best < 1
    others = np.linspace(0.001, 0.999, 999)
    assert bound(best, clients, participants) <= min(bound(p, clients, participants) for p in others)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200))
def test_fedamd_property_18_opt_b_and_opt_c_are_where_the_slope_is_zero(participants, more):
    clients = participants + more
    r = clients / participants
    p = opt_b(clients, participants)
    # the slope of 1/(1-p) + 2r/(p(1-p)), times p^2 (1-p)^2
    assert abs(p * p + 2 * r * (2 * p - 1)) < 1e-9 * (1 + r)
    p = opt_c(clients, participants)
    # the slope of ln(p sqrt(1 - p^A)), times p (1 - p^A)
    assert abs(1 - p**participants * (1 + participants / 2)) < 1e-9


@pytest.mark.parametrize("rule", [opt_a, opt_b, opt_c])
@pytest.mark.parametrize(("clients", "participants"), [(3, 4), (3, 0)])
def test_impossible_numbers_of_participants_are_refused(rule, clients, participants):
    with pytest.raises(BadValue, match=f"participants: {participants}: at least 1 and at most 3"):
        rule(clients, participants)


# what the strategy makes of them


@pytest.mark.parametrize("name", ["opt-a", "opt-b", "opt-c"])
def test_the_optimal_rules_take_all_clients_and_the_participants(name):
    rule = {"opt-a": opt_a, "opt-b": opt_b, "opt-c": opt_c}[name]
    assert make(schedule=name).share(1) == make(schedule=name).share(99) == rule(8, 4)


def test_shares_by_schedule():
    assert [make().share(t) for t in (1, 2)] == [0.5, 0.5]
    assert [make(schedule="constant", p=0.0).share(t) for t in (1, 2)] == [0.0, 0.0]
    assert [make(period=2).share(t) for t in (1, 2, 3)] == [1.0, 0.0, 1.0]
    assert [make(schedule="sequential", period=2, first="miners").share(t) for t in (1, 2, 3)] == [0, 1, 0]
    assert make(schedule="decaying").share(7) == decaying(7)


@pytest.mark.parametrize("first", ["anchors", "miners"])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_one_round_in_a_period_is_for_anchors(first, period):
    shares = [sequential(t, period, first) for t in range(1, 4 * period + 1)]
    assert set(shares) <= {0.0, 1.0}
    for start in range(0, 4 * period, period):
        assert sum(shares[start : start + period]) == 1.0
    assert shares.index(1.0) == (0 if first == "anchors" else period - 1)


def test_fedamd_property_16_a_falling_share_is_what_the_coins_show():
    strategy = make(schedule="decaying", participants=8)
    rounds = range(1, 401)
    anchors = sum(strategy.is_anchor(t, node) for t in rounds for node in range(8))
    wanted = 8 * sum(decaying(t) for t in rounds)
    deviation = math.sqrt(8 * sum(decaying(t) * (1 - decaying(t)) for t in rounds))
    assert abs(anchors - wanted) < 4 * deviation


# contradictions


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"p": 0.5, "period": 2}, "period: 2: give p (constant schedule) or period (sequential), not both"),
        (
            {"schedule": "sequential"},
            "schedule: sequential: the sequential schedule needs a period; give period",
        ),
        (
            {"schedule": "sequential", "p": 0.1},
            "p: 0.1: belongs to the constant schedule, and schedule is seq",
        ),
        ({"schedule": "decaying", "p": 0.1}, "p: 0.1: belongs to the constant schedule, and schedule is dec"),
        ({"schedule": "opt-a", "p": 0.1}, "p: 0.1: belongs to the constant schedule, and schedule is opt-a"),
        (
            {"schedule": "constant", "period": 3},
            "period: 3: belongs to the sequential schedule, and schedule is",
        ),
        (
            {"schedule": "opt-c", "period": 3},
            "period: 3: belongs to the sequential schedule, and schedule is",
        ),
        ({"first": "miners"}, "first: miners: belongs to the sequential schedule, and schedule is constant"),
        ({"schedule": "opt_a"}, "schedule: opt_a: "),
    ],
)
def test_contradictions_are_refused(given, line):
    with pytest.raises(BadValue) as caught:
        parts.call(FedAMD, {"participants": 4, "local": Local(steps=2), **given})
    assert str(caught.value).startswith(line)


def test_a_schedule_may_be_named_or_follow_from_its_parameters():
    assert choose(None, None, None, "anchors") == "constant"
    assert choose(None, None, 3, "miners") == choose("sequential", None, 3, "miners") == "sequential"
    assert choose("constant", 0.2, None, "anchors") == "constant"
    assert choose("opt-b", None, None, "anchors") == "opt-b"


# a model that never moves


@pytest.mark.parametrize(
    ("given", "shown"), [({"p": 1.0}, "p = 1"), ({"period": 1, "first": "miners"}, "period = 1")]
)
def test_a_model_that_cannot_move_is_warned_of_once(given, shown, caplog):
    block = {"name": "fedamd", "participants": 4, "local": {"steps": 2}, **given}
    with caplog.at_level(logging.WARNING, "fedsim"):
        api.check({"data": {"clients": 8}, "model": "softmax", "strategy": block, "stop": {"rounds": 1}})
    (one,) = [record.getMessage() for record in caplog.records if "FedAMD" in record.getMessage()]
    assert one == f"FedAMD with {shown}: every participant is an anchor, so the model will never move"


@pytest.mark.parametrize(
    "given", [{"p": 0.99}, {"period": 2}, {"schedule": "decaying"}, {"schedule": "opt-c"}]
)
def test_a_model_that_can_move_is_not_warned_of(given, caplog):
    with caplog.at_level(logging.WARNING, "fedsim"):
        make(**given)
    assert caplog.records == []
