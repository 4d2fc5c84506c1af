"""The event log: what happened when, as bytes whose hash identifies a run's timing."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Collection, Sequence
from functools import partial

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

BUFFER = 1 << 16
"""Bytes that are hashed at once."""

_EVENT = struct.Struct("<qBiiqi").pack
_HEAD, _PAIR, _TAIL = struct.Struct("<qB"), struct.Struct("<ii"), struct.Struct("<qi")

pack_pair = _PAIR.pack
"""Packs a node and its peer for :meth:`EventLog.writer`."""

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
        self._buffer = bytearray()
        self._pairs: list[bytes] = []
        self._series = b"", b""
        self.listen(listener)
        self.early: list[tuple[int, str, int, int, int, int]] = []

    def listen(self, listener: Listener | None, kinds: Collection[str] = KINDS) -> None:
        """Tell somebody of events from now on; others are told no more.

        Args:
            listener: called with every event, or None for nobody.
            kinds: the kinds of events to tell of.
        """
        self._listener, self._told = listener, frozenset(kinds if listener is not None else ())

    def add(self, kind: str, node: int, peer: int = -1, size: int = 0, round: int = -1) -> None:
        """Write an event down.

        Args:
            kind: one of :data:`KINDS`.
            node: the node it happened at, or -1 for the whole world.
            peer: the other node of a transfer, or -1.
            size: bytes or per-sample gradients.
            round: the round it belongs to, or -1.
        """
        if self._pairs:
            self._end_series()
        now = self._clock.now
        self._buffer += _EVENT(now, self._code[kind], node, peer, size, round)
        if now == 0 or kind in self._told:
            self._tell(now, kind, node, peer, size, round)
        if len(self._buffer) > BUFFER:
            self._flush()

    def add_all(self, kind: str, pairs: Sequence[bytes], size: int, round: int) -> None:
        """Write like events of this moment down, one for each node and its peer, packed by :func:`pack_pair`."""
        write = self.writer(kind, size, round)
        if kind in self._told or self._clock.now == 0:
            for pair in pairs:
                write(pair)
        else:
            self._pairs.extend(pairs)

    def writer(self, kind: str, size: int, round: int) -> Callable[[bytes], None]:
        """Return a function that writes like events of this moment down, until another one is asked for.

        Its argument is a node and its peer, packed by :func:`pack_pair`.
        """
        if self._pairs:
            self._end_series()
        now = self._clock.now
        if now == 0 or kind in self._told:
            return partial(self._add_pair, kind, size, round)
        self._series = _HEAD.pack(now, self._code[kind]), _TAIL.pack(size, round)
        return self._pairs.append

    def _add_pair(self, kind: str, size: int, round: int, pair: bytes) -> None:
        node, peer = _PAIR.unpack(pair)
        self.add(kind, node, peer, size, round)

    def _end_series(self) -> None:
        if self._pairs:
            head, tail = self._series
            self._buffer += head + (tail + head).join(self._pairs) + tail
            self._pairs.clear()
            if len(self._buffer) > BUFFER:
                self._flush()

    def hexdigest(self) -> str:
        """Return the SHA-256 of everything so far."""
        self._end_series()
        self._flush()
        return self._hash.hexdigest()

    def _tell(self, now: int, kind: str, node: int, peer: int, size: int, round: int) -> None:
        if self._listener is None:
            self.early.append((now, kind, node, peer, size, round))
        elif kind in self._told:
            self._listener(now, kind, node, peer, size, round)

    def _flush(self) -> None:
        self._hash.update(self._buffer)
        self._buffer.clear()
