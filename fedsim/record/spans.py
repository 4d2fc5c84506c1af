"""When something was going on: intervals from the events and the presence of a run.

Spans are arrays of shape [count, 2]: beginning and end, in microseconds of simulated time.
"""

from __future__ import annotations

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


class Pairs(NamedTuple):
    """Transfers and computations, in the order of their beginnings; each an array [count].

    Args:
        begin: when, in microseconds.
        end: when, whatever ended it.
        node: who sends or computes.
        peer: who receives; -1 for a computation.
        ended: whether it ended in the time that was looked at.
        well: whether it was complete then.
    """

    begin: Array
    end: Array
    node: Array
    peer: Array
    ended: Array
    well: Array


def paired(events: Table, end_us: int) -> Pairs:
    """Pair the beginnings and the ends of transfers and computations.

    Args:
        events: the table ``events``; a computation has the peer -1.
        end_us: when whatever has not ended is taken to end, in microseconds of simulated time.

    A transfer lasts from the beginning of its sending until it arrives or is lost, latency included. Of
    several alike (of one round, between the same two nodes) the first to begin is taken as the first to end. An end
    of what has never begun is passed over.
    """
    kind, time, a, b = (events[name] for name in ("kind", "time_us", "node", "peer"))
    arrived = kind == "deliver"
    well = arrived | (kind == "done")
    opens = (kind == "send") | (kind == "compute")
    some = np.flatnonzero(opens | well | (kind == "lost") | (kind == "aborted"))
    first, second = np.where(arrived, b, a)[some], np.where(arrived, a, b)[some]
    order = np.lexsort((events["round"][some], second, first))
    some, first, second = some[order], first[order], second[order]
    alike = np.stack([first, second, events["round"][some]])
    group = np.cumsum(np.append(True, (alike[:, 1:] != alike[:, :-1]).any(0))[: len(some)])
    some, group = _sane(some, group, opens[some])
    starts, ends = opens[some], ~opens[some]
    mine = np.searchsorted(group[starts], group[ends]) + _ranks(group[ends])
    begun = some[starts]
    until, done, complete = np.full(len(begun), end_us), np.zeros(len(begun), bool), np.ones(len(begun), bool)
    until[mine], done[mine], complete[mine] = time[some[ends]], True, well[some[ends]]
    row = np.argsort(begun)
    begun = begun[row]
    return Pairs(time[begun], until[row], a[begun], b[begun], done[row], complete[row])


def _ranks(group: Array) -> Array:
    """Return how many of its own group stand before each entry of sorted groups."""
    ranks: Array = np.arange(len(group)) - np.searchsorted(group, group)
    return ranks


def _sane(some: Array, group: Array, opens: Array) -> tuple[Array, Array]:
    """Leave out the ends of what has never begun."""
    while True:
        steps = np.cumsum(np.where(opens, 1, -1))
        under = np.flatnonzero(steps - np.append(0, steps)[np.searchsorted(group, group)] < 0)
        if not len(under):
            return some, group
        first = under[np.unique(group[under], return_index=True)[1]]
        kept = np.delete(np.arange(len(some)), first)
        some, group, opens = some[kept], group[kept], opens[kept]


def activity(events: Table, end_us: int) -> Activity:
    """Return what every node did: see :func:`paired`.

    >>> events = {
    ...     "time_us": np.array([0, 5, 5, 9]),
    ...     "kind": np.array(["send", "deliver", "compute", "aborted"]),
    ...     "node": np.array([0, 1, 1, 1]), "peer": np.array([1, 0, -1, -1]), "round": np.array([1, 1, 1, 1]),
    ... }
    >>> found = activity(events, end_us=10)
    >>> [found.lanes[lane][1].tolist() for lane in ("receiving", "computing")], found.broken[1].tolist()
    ([[[0, 5]], [[5, 9]]], [9])
    """
    found = paired(events, end_us)
    spans, sent = np.stack([found.begin, found.end], axis=1), found.peer >= 0
    lanes = {
        "receiving": _by_node(found.peer[sent], spans[sent]),
        "computing": _by_node(found.node[~sent], spans[~sent]),
        "sending": _by_node(found.node[sent], spans[sent]),
    }
    broken = np.flatnonzero(found.ended & ~found.well)
    broken = broken[np.argsort(found.end[broken], kind="stable")]
    return Activity(lanes, _by_node(found.node[broken], found.end[broken]))


def _by_node(nodes: Array, values: Array) -> dict[int, Array]:
    """Return the values of each node, in their order."""
    order = np.argsort(nodes, kind="stable")
    ids, starts = np.unique(nodes[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(values[order], starts[1:]), strict=False))


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
