"""Spans: beginnings and ends are paired, and arithmetic on intervals agrees with counting by the second."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.record.spans import activity, clipped, gaps, length, merged, paired, sessions

END = 20
intervals = st.lists(
    st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: tuple(sorted(pair))), max_size=12
)


def events(*rows: tuple) -> dict[str, np.ndarray]:
    """Rows are time, kind, node, peer, round."""
    columns = list(zip(*rows)) or [()] * 5
    return {
        name: np.array(column) for name, column in zip(("time_us", "kind", "node", "peer", "round"), columns)
    }


def plain(lane: dict[int, np.ndarray]) -> dict[int, list]:
    return {node: spans.tolist() for node, spans in lane.items()}


def array(spans: list) -> np.ndarray:
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def seconds(spans: np.ndarray) -> set[int]:
    return {second for start, end in spans.tolist() for second in range(int(start), int(end))}


def test_a_transfer_is_sent_by_one_node_and_received_by_another():
    did = activity(events((1, "send", 0, 5, 2), (9, "deliver", 5, 0, 2)), 100)
    assert plain(did.lanes["sending"]) == {0: [[1, 9]]}
    assert plain(did.lanes["receiving"]) == {5: [[1, 9]]}
    assert did.lanes["computing"] == did.broken == {}
    assert did.nodes == [0, 5]


def test_a_lost_transfer_ends_where_it_was_lost_and_breaks_its_sender():
    did = activity(events((1, "send", 0, 5, 2), (4, "lost", 0, 5, 2)), 100)
    assert plain(did.lanes["receiving"]) == {5: [[1, 4]]}
    assert plain(did.broken) == {0: [4]}


def test_computations_are_done_or_aborted():
    rows = [
        (0, "compute", 3, -1, 1),
        (4, "done", 3, -1, 1),
        (5, "compute", 3, -1, 2),
        (7, "aborted", 3, -1, 2),
    ]
    did = activity(events(*rows), 100)
    assert plain(did.lanes["computing"]) == {3: [[0, 4], [5, 7]]}
    assert plain(did.broken) == {3: [7]}


def test_what_has_not_ended_lasts_until_the_end():
    did = activity(events((5, "send", 0, 1, 1), (6, "compute", 2, -1, 1)), 50)
    assert plain(did.lanes["sending"]) == {0: [[5, 50]]}
    assert plain(did.lanes["computing"]) == {2: [[6, 50]]}


def test_transfers_in_both_directions_and_of_several_rounds_are_told_apart():
    rows = [
        (0, "send", 0, 1, 1),
        (1, "send", 1, 0, 1),
        (2, "send", 0, 1, 2),
        (3, "deliver", 1, 0, 2),
        (4, "deliver", 0, 1, 1),
        (5, "deliver", 1, 0, 1),
    ]
    did = activity(events(*rows), 100)
    assert plain(did.lanes["sending"]) == {0: [[0, 5], [2, 3]], 1: [[1, 4]]}


def test_of_transfers_that_are_alike_the_first_to_begin_ends_first():
    rows = [(0, "send", 0, 1, 1), (2, "send", 0, 1, 1), (5, "deliver", 1, 0, 1), (6, "lost", 0, 1, 1)]
    assert plain(activity(events(*rows), 100).lanes["sending"]) == {0: [[0, 5], [2, 6]]}


def test_an_end_without_a_beginning_and_other_events_are_passed_over():
    rows = [(1, "deliver", 1, 0, 1), (2, "crash", 1, -1, -1), (3, "late", 1, 0, 1), (4, "round", -1, -1, 1)]
    did = activity(events(*rows), 100)
    assert did.nodes == []
    assert activity(events(), 100).nodes == []


@given(st.permutations(range(6)), st.data())
@settings(max_examples=30)
def test_every_span_has_the_two_ends_that_were_written_down(order, data):
    ends = {node: data.draw(st.integers(10, 30)) for node in order}
    begun = [(number, "send", 9, node, 0) for number, node in enumerate(order)]
    ended = [(time, "deliver", node, 9, 0) for node, time in ends.items()]
    did = activity(events(*begun, *sorted(ended)), 100)
    assert plain(did.lanes["receiving"]) == {node: [[i, ends[node]]] for i, node in enumerate(order)}


@given(intervals)
@settings(max_examples=50)
def test_a_union_covers_the_same_seconds_without_overlap(spans):
    union = merged(array(spans))
    assert seconds(union) == seconds(array(spans))
    assert (union[1:, 0] > union[:-1, 1]).all()
    assert length(array(spans)) == len(seconds(array(spans)))


@given(intervals)
@settings(max_examples=50)
def test_gaps_are_the_other_seconds(spans):
    free = gaps(array(spans), END)
    assert seconds(free) == set(range(END)) - seconds(array(spans))
    assert (free[:, 1] > free[:, 0]).all()


@given(intervals, st.integers(0, END), st.integers(0, END))
@settings(max_examples=50)
def test_what_is_clipped_lies_within(spans, start, end):
    start, end = sorted((start, end))
    inside = clipped(array(spans), start, end)
    assert seconds(inside) == seconds(array(spans)) & set(range(start, end))
    assert (inside[:, 1] > inside[:, 0]).all()


def test_of_no_spans_nothing_is_left_and_everything_is_free():
    none = array([])
    assert merged(none).shape == clipped(none, 0, 5).shape == (0, 2)
    assert length(none) == 0
    assert gaps(none, 7).tolist() == [[0, 7]]


def test_a_node_that_is_not_in_the_table_has_no_sessions():
    presence = {"time_us": np.array([0]), "node": np.array([1]), "online": np.array([1])}
    assert sessions(presence, 2, 10).shape == (0, 2)
    assert sessions(presence, 1, 10).tolist() == [[0, 10]]


KINDS = ("send", "deliver", "lost", "compute", "done", "aborted")


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 2), st.integers(0, 2), st.integers(1, 2)),
        max_size=30,
    )
)
def test_pairs_are_those_of_queues(given_events):
    """Also where ends come before beginnings, as in a record that lacks some."""
    rows = [
        (time, kind, node, -1 if kind in ("compute", "done", "aborted") else peer, round)
        for time, (kind, node, peer, round) in enumerate(given_events)
    ]
    queues, wanted = {}, []
    for time, kind, node, peer, round in rows:
        key = (peer, node, round) if kind == "deliver" else (node, peer, round)
        if kind in ("send", "compute"):
            wanted.append([time, 99, node, peer, False, True])
            queues.setdefault(key, []).append(wanted[-1])
        elif queues.get(key):
            one = queues[key].pop(0)
            one[1], one[4], one[5] = time, True, kind in ("deliver", "done")
    found = paired(events(*rows), 99)
    assert [list(one) for one in zip(*(column.tolist() for column in found))] == wanted
