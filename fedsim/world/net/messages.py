"""Messages, the ways they go, and a message on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fedsim.world.clock import MICRO, Clock
from fedsim.world.net.flows import Flow, Link, Path


class Message(NamedTuple):
    """What one node sends to another.

    Args:
        kind: what it is, such as ``"model"``.
        payload: anything; the network does not look at it.
        size_bytes: its size on the wire, without the network's header.
        round: the round it belongs to, or -1.
        src: the sender's id, filled in by :meth:`Node.send`.
    """

    kind: str
    payload: Any
    size_bytes: int
    round: int = -1
    src: int = -1


@dataclass(slots=True)
class Traffic:
    """Bytes counted at one node, or in all, when a transfer ends; every byte sent is delivered or lost."""

    up: int = 0
    down: int = 0
    lost: int = 0


@dataclass(slots=True)
class Effort:
    """The per-sample gradients that all nodes have computed, and how many of them were of no use."""

    work: int = 0
    wasted: int = 0


class Endpoint(Protocol):
    """What the network sees of a node.

    Attributes:
        id: its number in the graph.
        online: whether it can be reached.
        clock: simulated time.
        transfers: what is on its way from or to it, which the network keeps there.
        on_message: whom what arrives is handed to at once, or None.
    """

    id: int
    online: bool
    clock: Clock
    transfers: dict[Any, None]
    on_message: Callable[[Message], None] | None

    def deliver(self, message: Message) -> None:
        """Take a message from the network."""


class Route(NamedTuple):
    """A way through the graph.

    Args:
        latency_us: the sum over its edges and both ends.
        path: the limited links that it crosses.
        links: its edges, as pairs of nodes with the smaller one first.
    """

    latency_us: int
    path: Path
    links: tuple[tuple[int, int], ...]

    @property
    def bits_per_s(self) -> int:
        """The capacity of its narrowest place, or 0 for no limit."""
        return round(min((link.capacity for link in self.path.links), default=0.0) * MICRO)


NOWHERE = Route(0, Path(Link(), (), Link()), ())
"""The way of what never leaves its node."""


class Transfer(Flow):
    """A message on its way.

    Faults may change what becomes of it before it starts: ``doomed`` to be lost at its arrival, ``late_us`` later than
    it should be, with so many ``copies`` beside it. ``number`` counts the sender's messages, ``copy`` those of one.
    """

    __slots__ = (
        "alive",
        "copies",
        "copy",
        "doomed",
        "dst",
        "is_sent",
        "late_us",
        "message",
        "number",
        "on_end",
        "route",
        "size_bytes",
        "src",
    )

    def __init__(
        self,
        message: Message,
        src: Endpoint,
        dst: Endpoint,
        route: Route,
        size_bytes: int,
        on_end: Callable[[bool], None] | None,
        number: int = 0,
        copy: int = 0,
        serial: int = 0,
    ) -> None:
        super().__init__(size_bytes * 8, route.path, serial)
        self.message, self.src, self.dst, self.route = message, src, dst, route
        self.size_bytes, self.on_end = size_bytes, on_end
        self.number, self.copy = number, copy
        self.alive = True
        self.is_sent = self.doomed = False
        self.late_us = self.copies = 0


class First:
    """Tells once how several copies of a message fared: as soon as one is delivered, or when all are lost."""

    def __init__(self, on_end: Callable[[bool], None] | None, copies: int) -> None:
        self.on_end, self.left = on_end, copies

    def __call__(self, delivered: bool) -> None:
        """Take note of the end of one copy."""
        self.left -= 1
        if self.on_end is not None and (delivered or not self.left):
            on_end, self.on_end = self.on_end, None
            on_end(delivered)
