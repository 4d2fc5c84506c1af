"""The event log: what happened when, as bytes whose hash identifies a run's timing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

from fedsim.world.clock import Clock

KINDS = (
    "send",  # a node began to send `size` bytes to its peer
    "deliver",  # the peer received them
    "lost",  # a transfer ended early; `size` bytes had left the sender
    "late",  # a message arrived that nobody waits for any more
    "compute",  # a node began to work; `size` per-sample gradients
    "done",  # it finished
    "aborted",  # it stopped early; `size` per-sample gradients had been done
    "online",
    "offline",
    "crash",
    "round",  # a round ended
    "fail",  # a fault took a node offline, until it recovers
    "recover",
    "slow",  # a node's work takes `size` thousandths of its normal time
    "normal",
    "corrupt",  # a node sends something else than it should
    "honest",
    "partition",  # the network fell apart; `size` nodes are outside of the first group
    "heal",
    "link_down",  # the link between a node and its peer stopped working
    "link_up",
    "drop",  # a message will be lost on its way; the loss itself is written down as "lost"
    "delay",  # a message will take `size` microseconds more than it should
    "duplicate",  # a message is sent twice
)

FAULTS = (
    "crash",
    "fail",
    "recover",
    "slow",
    "normal",
    "corrupt",
    "honest",
    "partition",
    "heal",
    "link_down",
    "link_up",
)
"""The kinds that mark the beginning and the end of a fault; what befalls single messages is not among them."""

Listener = Callable[[int, str, int, int, int, int], None]


class EventLog:
    """Writes every event of a world down, in the order in which they happen.

    Values of models never enter it, so a run that trains and a run that only keeps time have the same log.

    Args:
        clock: the clock that stamps the events.
        listener: called with (time_us, kind, node, peer, size, round) for every event; what happened at t=0 before
            there was a listener is kept in ``early``.

    >>> log = EventLog(Clock())
    >>> log.add("send", 0, peer=1, size=1000)
    >>> log.hexdigest()[:12]
    'ed380266b4ed'
    """

    def __init__(self, clock: Clock, listener: Listener | None = None) -> None:
        self._clock = clock
        self._hash = hashlib.sha256()
        self._code = {kind: code for code, kind in enumerate(KINDS)}
        self._pack = struct.Struct("<qBiiqi").pack
        self.listener = listener
        self.early: list[tuple[int, str, int, int, int, int]] = []

    def add(self, kind: str, node: int, peer: int = -1, size: int = 0, round: int = -1) -> None:
        """Write an event down.

        Args:
            kind: one of :data:`KINDS`.
            node: the node it happened at, or -1 for the whole world.
            peer: the other node of a transfer, or -1.
            size: bytes or per-sample gradients.
            round: the round it belongs to, or -1.
        """
        now = self._clock.now
        self._hash.update(self._pack(now, self._code[kind], node, peer, size, round))
        if self.listener is None:
            if now == 0:
                self.early.append((now, kind, node, peer, size, round))
        else:
            self.listener(now, kind, node, peer, size, round)

    def hexdigest(self) -> str:
        """Return the SHA-256 of everything so far."""
        return self._hash.hexdigest()
