"""When something was going on: intervals from the events and the presence of a run.

Spans are arrays of shape [count, 2]: beginning and end, in microseconds of simulated time.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

import numpy as np

from fedsim.record.store import Table
from fedsim.record.style import Array

LANES = ("receiving", "computing", "sending")


class Activity(NamedTuple):
    """What every node did, and when.

    Args:
        lanes: for each of :data:`LANES`, node, and spans in the order of their beginnings; they may overlap.
        broken: for each node that sent or computed, when that ended before it was complete, in microseconds.
    """

    lanes: dict[str, dict[int, Array]]
    broken: dict[int, Array]

    @property
    def nodes(self) -> list[int]:
        """The ids of all nodes that did anything."""
        return sorted({node for lane in self.lanes.values() for node in lane})


def activity(events: Table, end_us: int) -> Activity:
    """Pair the beginnings and the ends of transfers and computations.

    Args:
        events: the table ``events``.
        end_us: when whatever has not ended is taken to end, in microseconds of simulated time.

    A transfer lasts from the beginning of its sending until it arrives or is lost, latency included. Of
    several alike (of one round, between the same two nodes) the first to begin is taken as the first to end.

    >>> events = {
    ...     "time_us": np.array([0, 5, 5, 9]),
    ...     "kind": np.array(["send", "deliver", "compute", "aborted"]),
    ...     "node": np.array([0, 1, 1, 1]), "peer": np.array([1, 0, -1, -1]), "round": np.array([1, 1, 1, 1]),
    ... }
    >>> found = activity(events, end_us=10)
    >>> [found.lanes[lane][1].tolist() for lane in ("receiving", "computing")], found.broken[1].tolist()
    ([[[0, 5]], [[5, 9]]], [9])
    """
    waiting: defaultdict[tuple[int, ...], deque[list[int]]] = defaultdict(deque)
    lanes: dict[str, defaultdict[int, list[list[int]]]] = {lane: defaultdict(list) for lane in LANES}
    broken: defaultdict[int, list[int]] = defaultdict(list)
    columns = (events[name].tolist() for name in ("time_us", "kind", "node", "peer", "round"))
    for time_us, kind, node, peer, round in zip(*columns):
        key = (peer, node, round) if kind == "deliver" else (node, peer, round)
        if kind in ("send", "compute"):
            span = [time_us, end_us]
            waiting[key].append(span)
            lanes["sending" if kind == "send" else "computing"][node].append(span)
            if kind == "send":
                lanes["receiving"][peer].append(span)
        elif kind in ("deliver", "lost", "done", "aborted") and waiting[key]:
            waiting[key].popleft()[1] = time_us
            if kind in ("lost", "aborted"):
                broken[node].append(time_us)
    found = {name: {node: np.array(spans) for node, spans in lane.items()} for name, lane in lanes.items()}
    return Activity(found, {node: np.array(times) for node, times in broken.items()})


def merged(spans: Array) -> Array:
    """Return the union of intervals, as intervals that neither overlap nor touch.

    >>> merged(np.array([[4, 6], [0, 2], [1, 3], [3, 3]])).tolist()
    [[0, 3], [4, 6]]
    """
    if not len(spans):
        return np.zeros((0, 2), dtype=np.int64)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.append(True, spans[1:, 0] > reach[:-1]))
    return np.stack([spans[first, 0], reach[np.append(first[1:] - 1, -1)]], axis=1)


def clipped(spans: Array, start_us: float, end_us: float) -> Array:
    """Return the parts of intervals that lie between two moments, touching ones left out.

    >>> clipped(np.array([[0, 3], [5, 9], [20, 30]]), 2, 7).tolist()
    [[2, 3], [5, 7]]
    """
    inside = spans.reshape(-1, 2).clip(start_us, end_us)
    kept: Array = inside[inside[:, 1] > inside[:, 0]]
    return kept


def gaps(spans: Array, end_us: float) -> Array:
    """Return the intervals from zero to the end that intervals leave free.

    >>> gaps(np.array([[1, 3], [5, 9]]), 10).tolist()
    [[0.0, 1.0], [3.0, 5.0], [9.0, 10.0]]
    """
    bounds = np.concatenate([[0.0], merged(spans).ravel(), [end_us]]).reshape(-1, 2)
    return clipped(bounds, 0, end_us)


def length(spans: Array) -> float:
    """Return how long at least one of the intervals lasted.

    >>> length(np.array([[0, 3], [2, 4], [8, 9]]))
    5.0
    """
    return float(np.diff(merged(spans)).sum())


def sessions(presence: Table, node: int, end_us: int) -> Array:
    """Return a node's online intervals, [sessions, 2]; a node that is not in the table has none.

    >>> presence = {"time_us": np.array([0, 4, 6]), "node": np.array([1, 1, 1]), "online": np.array([1, 0, 1])}
    >>> sessions(presence, 1, 9).tolist()
    [[0.0, 4.0], [6.0, 9.0]]
    """
    mine = np.flatnonzero(presence["node"] == node)
    mine = mine[np.argsort(presence["time_us"][mine], kind="stable")]
    change = np.diff(presence["online"][mine], prepend=0, append=0)
    times = np.append(presence["time_us"][mine], end_us).clip(max=end_us)
    return np.stack([times[change > 0], times[change < 0]], axis=1).astype(np.float64)


def count_open(spans: Array, end: float) -> tuple[Array, Array]:
    """Return the moments at which the number of open intervals changes, and the numbers, up to the end.

    >>> at, count = count_open(np.array([[0.0, 6.0], [4.0, 8.0]]), 9.0)
    >>> at.tolist(), count.tolist()
    ([0.0, 4.0, 6.0, 8.0, 9.0], [1.0, 2.0, 1.0, 0.0, 0.0])
    """
    ends = spans[spans[:, 1] < end, 1]
    moments = np.concatenate(([0.0], spans[:, 0], ends))
    steps = np.concatenate(([0.0], np.ones(len(spans)), -np.ones(len(ends))))
    at, where = np.unique(moments, return_inverse=True)
    count = np.cumsum(np.bincount(where, weights=steps))
    return np.append(at, end), np.append(count, count[-1])
