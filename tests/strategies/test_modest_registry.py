"""Views: what merges to what, who is a candidate, and what memory is shared."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.modest.registry import FOLD, Entry, View

SIZE = 6

news = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), st.integers(0, SIZE - 1), st.integers(0, 30)),
        # a counter has one meaning, as only the node itself counts: odd ones are joins here
        st.tuples(st.just("change"), st.integers(0, SIZE - 1), st.integers(1, 9)),
        st.tuples(st.just("fold"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


def view(told=(), members=(0, 1, 2)):
    made = View(SIZE, list(members))
    for kind, node, number in told:
        if kind == "touch":
            made.touch(node, number)
        elif kind == "change":
            made.change(node, number, joined=number % 2 == 1)
        else:
            made._table, made._own = made._whole(), {}
    return made


def merged(*views):
    result = views[0].copy()
    for other in views[1:]:
        result.merge(other)
    return result


views = news.map(view)


@settings(max_examples=50, deadline=None)
@given(a=views, b=views, c=views)
def test_modest_property_09_merging_is_idempotent_commutative_and_associative(a, b, c):
    assert merged(a, a) == a
    assert merged(a, b) == merged(b, a)
    assert merged(merged(a, b), c) == merged(a, merged(b, c))


@settings(max_examples=50, deadline=None)
@given(a=views, b=views)
def test_modest_property_09_nothing_is_ever_forgotten(a, b):
    both = merged(a, b)
    for node in range(SIZE):
        for one in (a, b):
            if node in one:
                assert both[node].active >= one[node].active
                assert both[node].counter >= one[node].counter
    assert both.latest == max(a.latest, b.latest)
    assert both.known == sum(node in both for node in range(SIZE))


@settings(max_examples=50, deadline=None)
@given(a=views, b=views)
def test_merging_changes_only_the_one_that_is_told(a, b):
    before = b.copy()
    a.merge(b)
    a.touch(0, 99)
    assert b == before


@pytest.mark.parametrize("events", list(itertools.permutations([(1, True), (2, False), (3, True)])))
def test_modest_property_10_the_latest_event_wins_in_whatever_order_news_comes(events):
    by_news, by_views = view(), view()
    for counter, joined in events:
        by_news.change(4, counter, joined)
        other = view()
        other.change(4, counter, joined)
        by_views.merge(other)
    assert by_news[4] == by_views[4] == Entry(-1, 3, True)


@pytest.mark.parametrize("events", list(itertools.permutations([(1, True), (2, False), (3, True)])))
def test_modest_property_10_announced_joins_count_like_others(events):
    told = view()
    for counter, joined in events:
        if joined:
            told.expect(4, 5, counter)
        else:
            told.change(4, counter, joined)
    told.admit()
    assert told[4] == Entry(5, 3, True)


def test_modest_property_11_a_membership_event_says_nothing_about_activity():
    told = view([("touch", 1, 7)])
    told.change(1, 12, joined=False)
    assert told[1] == Entry(7, 12, False)
    other = view()
    other.change(1, 13, joined=True)
    told.merge(other)
    assert told[1] == Entry(7, 13, True)


def test_modest_property_12_the_edge_of_the_window():
    told = view([("touch", 1, 10)])
    round, window = 15, 5
    assert told.is_candidate(1, round - window)
    assert not told.is_candidate(1, round + 1 - window)
    assert told.candidates(round - window).tolist() == [1]
    # members of the start, of whom nothing has been heard, are candidates up to round window - 1
    assert told.is_candidate(0, (window - 1) - window)
    assert not told.is_candidate(0, window - window)


def test_modest_property_13_a_join_counts_when_it_is_admitted():
    told = view()
    told.expect(5, 3, 1)
    assert 5 not in told
    assert told.candidates(-1).tolist() == [0, 1, 2]
    assert 5 not in told.copy()
    told.admit()
    assert told[5] == Entry(3, 1, True)
    assert told.candidates(-1).tolist() == [0, 1, 2, 5]


def test_a_late_leave_does_not_undo_a_newer_join():
    told = view()
    told.change(4, 3, joined=True)
    told.change(4, 2, joined=False)
    assert told.is_candidate(4, -1)
    told.expect(4, 0, 2)
    told.admit()
    assert told[4] == Entry(0, 3, True)


def test_a_node_that_nobody_knows_is_known_when_it_is_heard():
    told = view()
    with pytest.raises(KeyError):
        told[4]
    told.touch(4, 2)
    assert told[4] == Entry(2, 0, True)
    assert told.known == 4


def test_those_who_know_the_same_share_their_memory():
    start = View(1000, list(range(1000)))
    one, other = start.copy(), start.copy()
    for node in range(FOLD):
        one.touch(node, 1)
    assert one._table is start._table
    one.fold()
    assert one._table is not start._table
    other.touch(3, 1)
    other.merge(one)
    assert other._table is one._table
    assert other._own == {}
    other.touch(5, 2)
    start.touch(7, 9)
    other.merge(start)
    assert other._table is one._table
    assert other == merged(one, start, other)


def test_a_view_with_few_entries_of_its_own_keeps_its_table():
    told = View(1000, list(range(1000)))
    table = told._table
    for node in range(FOLD - 1):
        told.touch(node, 1)
    told.fold()
    assert told._table is table
