"""What a server waits for while simulated time passes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import simpy


class Wait:
    """A wait for replies to certain messages; replies to any other message neither end it nor count.

    Args:
        ready: happens when the wait is over.
        ids: the messages; of none, only a timeout ends the wait.
        needed: replies with content that are enough.
    """

    def __init__(self, ready: simpy.Event, ids: Iterable[str] = (), needed: float = math.inf) -> None:
        self.ready, self.ids, self._needed = ready, set(ids), needed

    def heard(self, id: str, has_content: bool) -> None:
        """Take note of a reply, or of the error in its place."""
        if id not in self.ids:
            return
        self.ids.discard(id)
        self._needed -= has_content
        if not self.ids or self._needed <= 0:
            self.end()

    def end(self) -> None:
        """The wait is over."""
        if not self.ready.triggered:
            self.ready.succeed()


class Look(Wait):
    """A wait for the next reply to any message, by a server that polls: it may look for another one afterwards."""

    def heard(self, id: str, has_content: bool) -> None:
        """Take note of a reply, or of the error in its place."""
        self.end()
