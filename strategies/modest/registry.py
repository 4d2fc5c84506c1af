"""What a node of MoDeST knows about the others: who they are, who has left, and when each was last active.

A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma, M. de Vos: Practical Federated Learning without a
Server. EuroMLSys 2025; its first version is MoDeST, arXiv 2302.13837, 2023.

A view is a join-semilattice: merging takes the later activity and the later membership event of every node, so the
order in which news arrives does not matter. Thousands of nodes know almost the same. So a view is a large table that
is never written to and shared by all who have it, and a few later entries of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FOLD = 128
"""How many entries of its own a view has before :meth:`View.fold` makes a new table."""

NEVER = -1
"""The last active round of a node that nothing has been heard of yet."""

UNKNOWN = -1
"""The event of a node that is not known at all."""

VIEWS = 100
"""At most so many nodes are drawn whose views are measured at the end of a round."""


class Entry(NamedTuple):
    """What is known about one node.

    Args:
        active: the last round in which it is known to have been active, or -1.
        counter: the number of its latest membership event; 0 is its having been there from the start.
        joined: whether that event was a join, and not a leave.
    """

    active: int
    counter: int
    joined: bool


class View:
    """What one node knows about all nodes.

    An entry is two integers that only ever grow: the last active round, and the latest membership event, twice its
    counter plus one for a leave.

    Args:
        size: nodes have ids from 0 to size - 1.
        members: the nodes that are there from the start.

    >>> view = View(4, members=[0, 1, 2])
    >>> view.touch(1, 7)
    >>> view.change(2, counter=2, joined=False)
    >>> view[1], view[2], 3 in view
    (Entry(active=7, counter=0, joined=True), Entry(active=-1, counter=2, joined=False), False)
    >>> view.is_candidate(1, 5), view.is_candidate(0, 5), view.is_candidate(2, -1)
    (True, False, False)
    """

    __slots__ = ("_joins", "_own", "_table", "latest")

    def __init__(self, size: int, members: list[int]) -> None:
        self._table = np.full((2, size), UNKNOWN, dtype=np.int32)
        self._table[1, members] = 0
        self._own: dict[int, tuple[int, int]] = {}
        self._joins: dict[int, tuple[int, int]] = {}
        self.latest = NEVER

    def copy(self) -> View:
        """Return a copy, which shares the table, and knows nothing of the joins that do not count yet."""
        copy = View.__new__(View)
        copy._table, copy._own, copy._joins, copy.latest = self._table, self._own.copy(), {}, self.latest
        return copy

    def __contains__(self, node: int) -> bool:
        return self._look(node)[1] != UNKNOWN

    def __getitem__(self, node: int) -> Entry:
        active, event = self._look(node)
        if event == UNKNOWN:
            raise KeyError(node)
        return Entry(active, event // 2, event % 2 == 0)

    def __eq__(self, other: object) -> bool:
        """Tell whether two views say the same."""
        return isinstance(other, View) and np.array_equal(self._whole(), other._whole())

    __hash__ = None  # type: ignore[assignment]  # a view changes

    @property
    def known(self) -> int:
        """The number of nodes that it knows, also those that have left."""
        table = self._table[1]
        new: int = sum(table.item(node) == UNKNOWN for node in self._own)
        return int(np.count_nonzero(table != UNKNOWN)) + new

    def is_candidate(self, node: int, least: int) -> bool:
        """Tell whether a node is a member that was active in round ``least`` or later."""
        active, event = self._look(node)
        return event != UNKNOWN and event % 2 == 0 and active >= least

    def candidates(self, least: int) -> np.ndarray:
        """Return all candidates [n], in the order of ids."""
        return np.flatnonzero(self._candidates(least))

    def count(self, least: int) -> int:
        """Return how many candidates there are."""
        return int(np.count_nonzero(self._candidates(least)))

    def touch(self, node: int, round: int) -> None:
        """Note that a node was active in a round; one that was not known is from now on."""
        self._raise(node, round, 0)

    def change(self, node: int, counter: int, joined: bool) -> None:
        """Note that a node has joined or left; news that is older than what is known changes nothing.

        Args:
            node: the node.
            counter: the number that the node itself has given to the event.
            joined: whether it has joined.
        """
        self._raise(node, NEVER, 2 * counter + (not joined))

    def expect(self, node: int, round: int, counter: int) -> None:
        """Note that a node has joined, which counts when :meth:`admit` is called.

        Args:
            node: the node.
            round: the round in which it was active.
            counter: the number that the node itself has given to the event.
        """
        old_round, old_counter = self._joins.get(node, (NEVER, 0))
        self._joins[node] = max(round, old_round), max(counter, old_counter)

    def admit(self) -> None:
        """Let the joins count that have been announced."""
        joins, self._joins = self._joins, {}
        for node, (round, counter) in joins.items():
            self._raise(node, round, 2 * counter)

    def merge(self, other: View) -> None:
        """Add what another view knows."""
        if other._table is not self._table:
            self._share(other._table)
        own, at = self._own, self._table.item
        for node, entry in other._own.items():  # as _raise does, without a call for each
            old = own.get(node)
            if old == entry:
                continue
            old_active, old_event = old or (at(0, node), at(1, node))
            active, event = entry
            if active > old_active or event > old_event:
                own[node] = max(active, old_active), max(event, old_event)
        self.latest = max(self.latest, other.latest)

    def fold(self) -> None:
        """Make a new table of a view that has many entries of its own, for those that it will be sent to."""
        if len(self._own) >= FOLD:
            self._table, self._own = self._whole(), {}

    def _look(self, node: int) -> tuple[int, int]:
        own = self._own.get(node)
        return own or (self._table.item(0, node), self._table.item(1, node))

    def _raise(self, node: int, active: int, event: int) -> None:
        old_active, old_event = self._look(node)
        if active > old_active or event > old_event:
            self._own[node] = max(active, old_active), max(event, old_event)
            self.latest = max(self.latest, active)

    def _share(self, table: np.ndarray) -> None:
        """Merge a table, and keep one that is there already where it says all that is known."""
        merged = np.maximum(self._table, table)
        if np.array_equal(merged, table):
            self._table = table
        elif not np.array_equal(merged, self._table):
            self._table = merged
        at = self._table.item
        self._own = {
            node: (max(active, at(0, node)), max(event, at(1, node)))
            for node, (active, event) in self._own.items()
            if active > at(0, node) or event > at(1, node)
        }

    def _candidates(self, least: int) -> np.ndarray:
        active, event = self._whole()
        here: np.ndarray = ((event & 1) == 0) & (
            active >= least
        )  # the event of one that is not known is odd, too
        return here

    def _whole(self) -> np.ndarray:
        if not self._own:
            return self._table
        whole = self._table.copy()
        whole[:, list(self._own)] = np.array(list(self._own.values()), dtype=np.int32).T
        return whole


def view_sizes(counts: Sequence[int]) -> dict[str, float]:
    """Return how many candidates views have, by the names of the metrics; nothing if there are no views.

    Args:
        counts: the number of candidates of each view.

    Returns:
        Mean, least and most, in nodes; and how many views these are of.

    >>> view_sizes([2, 4])
    {'view_mean': 3.0, 'view_min': 2.0, 'view_max': 4.0, 'views_read': 2.0}
    """
    if not counts:
        return {}
    mean, least, most = sum(counts) / len(counts), float(min(counts)), float(max(counts))
    return {"view_mean": mean, "view_min": least, "view_max": most, "views_read": float(len(counts))}
