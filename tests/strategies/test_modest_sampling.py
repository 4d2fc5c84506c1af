"""The order of hashes, and the first who answer."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.modest import sampling
from strategies.modest.sampling import LiveSample, digest, fastest_first, least_window, order, quorum

DIGITS = list("0123456789")
NAMED = [f"node{index:03d}" for index in range(100)]

names = st.lists(st.text(st.characters(codec="ascii"), max_size=6), unique=True, max_size=20)


def named(ids, round):
    return [ids[index] for index in order(ids, round)]


@settings(max_examples=50, deadline=None)
@given(ids=names, round=st.integers(0, 10**6), data=st.data())
def test_modest_property_01_the_order_depends_on_ids_and_round_alone(ids, round, data):
    shuffled = data.draw(st.permutations(ids))
    assert named(shuffled, round) == named(ids, round)
    assert sorted(named(ids, round)) == sorted(ids)


@settings(max_examples=50, deadline=None)
@given(ids=names.filter(len), round=st.integers(0, 10**6), data=st.data())
def test_modest_property_03_one_node_more_or_less_moves_no_other(ids, round, data):
    gone = data.draw(st.sampled_from(ids))
    rest = [id for id in ids if id != gone]
    assert named(rest, round) == [id for id in named(ids, round) if id != gone]


@pytest.mark.parametrize(
    ("round", "wanted"), [(1, "6542879031"), (2, "6842971350"), (3, "5140392786"), (10, "0768549312")]
)
def test_modest_property_04_golden_order_of_digits(round, wanted):
    assert "".join(named(DIGITS, round)) == wanted


@pytest.mark.parametrize(
    ("round", "wanted"),
    [
        (1, "071 024 034 091 080 019 012 000 070 093"),
        (2, "026 003 072 032 056 020 066 092 030 016"),
        (3, "062 066 035 007 056 013 053 001 069 094"),
    ],
)
def test_modest_property_04_golden_order_of_a_hundred(round, wanted):
    assert [id.removeprefix("node") for id in named(NAMED, round)[:10]] == wanted.split()


def test_modest_property_04_golden_digests():
    assert digest("0", 1).hex() == "c2eb282156233b5d827219971c8b04c2"
    assert digest("7", 12).hex() == "b69c609364b1a7cba3e3568d8f357368"


def test_modest_property_05_every_node_is_sampled_as_often_as_chance_has_it():
    rounds = [order(NAMED, round) for round in range(1, 1001)]
    sampled = Counter(index for found in rounds for index in found[:10])
    heads = Counter(found[0] for found in rounds)
    assert (min(sampled.values()), max(sampled.values())) == (76, 131)
    deviation = math.sqrt(1000 * 0.1 * 0.9)
    assert all(abs(sampled[index] - 100) < 4 * deviation for index in range(100))
    assert min(heads[index] for index in range(100)) >= 4


# who answers


class Asked:
    """Nodes of which some are dead: the others answer after a second, the dead have ten."""

    def __init__(self, dead=(), slow=()):
        self.env, self.dead, self.slow, self.asked = simpy.Environment(), set(dead), set(slow), []

    def __call__(self, node):
        self.asked.append(node)
        delay = 10 if node in self.dead else 3 if node in self.slow else 1
        return self.env.timeout(delay, value=node not in self.dead)

    def sample(self, candidates, size):
        return self.env.run(LiveSample(self.env, iter(candidates), size, self))


def test_modest_property_06_each_dead_node_is_replaced_by_the_next_live_one():
    nodes = Asked(dead=[1, 3, 5])
    assert sorted(nodes.sample(range(20), 5)) == [0, 2, 4, 6, 7]
    # 1 and 3 fail at 10 s and are replaced by 5 and 6; 5 fails at 20 s, and 7 answers a second later.
    assert nodes.env.now == 21
    assert nodes.asked == [0, 1, 2, 3, 4, 5, 6, 7]


@settings(max_examples=50, deadline=None)
@given(dead=st.sets(st.integers(0, 14)), size=st.integers(1, 18))
def test_modest_property_06_the_result_is_the_first_live_ones(dead, size):
    nodes = Asked(dead)
    found, live = nodes.sample(range(15), size), [node for node in range(15) if node not in dead]
    assert len(found) == min(size, len(live))
    assert set(found) <= set(live)
    if size >= len(live):
        assert sorted(found) == live
    longest = math.ceil(nodes.env.now / 10)
    assert nodes.env.now in {10 * longest, 10 * (longest - 1) + 1, 0}


def test_answers_come_in_their_own_order():
    assert Asked(slow=[0, 2]).sample(range(9), 4) == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("dead", "wanted", "now"), [((), [0, 1, 2], 1), ([1], [0, 2], 10), ([0, 1, 2], [], 10)]
)
def test_modest_property_07_it_ends_with_fewer_candidates_than_wanted(dead, wanted, now):
    nodes = Asked(dead)
    assert nodes.sample(range(3), 5) == wanted
    assert nodes.env.now == now


def test_modest_property_07_it_ends_with_one_candidate_or_none():
    assert Asked().sample([4], 5) == [4]
    assert Asked().sample([], 5) == []


def test_modest_property_07_it_waits_for_all_who_may_still_answer():
    """The first failure after the last candidate does not end it: another answer is still to come."""
    env = simpy.Environment()
    slow = LiveSample(env, iter([0, 1]), 3, lambda node: env.timeout(12 if node else 10, bool(node)))
    assert env.run(slow) == [1]
    assert env.now == 12


def test_a_sample_that_is_given_up_has_no_result():
    nodes = Asked()
    sample = LiveSample(nodes.env, iter(range(5)), 3, nodes)
    sample.stop()
    assert nodes.env.run(sample) is None
    nodes.env.run()
    assert sample.found == []
    assert nodes.asked == [0, 1, 2]


# numbers


@pytest.mark.parametrize(
    ("fraction", "size", "wanted"),
    [(0.8, 13, 11), (0.7, 10, 7), (0.29, 100, 29), (1.0, 10, 10), (0.6, 10, 6)],
)
def test_modest_property_19_the_quorum_is_rounded_up_without_the_error_of_floats(fraction, size, wanted):
    assert quorum(fraction, size, size) == wanted


@given(fraction=st.floats(0.01, 1.0), size=st.integers(1, 200), invited=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_a_quorum_can_be_reached(fraction, size, invited):
    assert 0 <= quorum(fraction, size, invited) <= min(size, invited)


@pytest.mark.parametrize(
    ("nodes", "size", "wanted"),
    [
        (100, 10, 88),
        (355, 10, 367),
        (500, 10, 536),
        (610, 10, 667),
        (1000, 13, 880),
        (100, 99, 3),
        (7, 7, 3),
        (1, 1, 3),
    ],
)
def test_the_least_window(nodes, size, wanted):
    assert least_window(nodes, size) == wanted


def test_the_fastest_of_the_sample_come_first_and_then_the_others():
    speed = {5: 1.0, 3: 9.0, 8: 4.0, 1: 9.0, 2: 99.0}
    assert list(fastest_first([5, 3, 8, 1, 2], 4, speed.__getitem__)) == [3, 1, 8, 5, 2]
    assert list(fastest_first([], 4, speed.__getitem__)) == []


def test_equal_first_halves_of_digests_are_told_apart_by_the_second_and_then_by_name(monkeypatch):
    class Hash:
        def __init__(self, text: bytes) -> None:
            second = {b"0": 9, b"1": 3, b"10": 3, b"2": 7}[text.partition(b"-")[0]]
            self.whole = bytes([0] * 7 + [5]) + bytes([0] * 7 + [second])

        def digest(self) -> bytes:
            return self.whole

    monkeypatch.setattr(sampling, "_md5", Hash)
    assert order(["0", "1", "2", "10"], 1) == [1, 3, 2, 0]


def test_pythons_own_hash_and_openssls_are_the_same():
    for round in (1, 10, 12345):
        text = f"node-{round}".encode()
        assert digest("node", round) == hashlib.md5(text, usedforsecurity=False).digest()
