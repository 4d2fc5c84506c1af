"""Links of limited capacity, the flows that cross them, and what it takes to share them.

Rates are in bits per microsecond, which is the same as Mbit/s.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from fedsim.world.clock import Clock

EPSILON = 1e-9


class Link:
    """Something with a limited capacity that transfers cross.

    Args:
        capacity: bits per microsecond; infinite for no limit.
    """

    __slots__ = ("capacity", "flows", "held", "used", "waiting")

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.flows: dict[Flow, None] = {}
        self.used = 0.0
        self.held = 0  # how many flows it is the bottleneck of
        self.waiting: dict[Flow, None] = {}

    @property
    def spare(self) -> float:
        """Bits per microsecond that nobody has taken."""
        return self.capacity - self.used


class Path:
    """What the transfers from one node to another cross.

    Args:
        up: the sender's uplink.
        edges: limited edges on the way.
        down: the receiver's downlink.
    """

    __slots__ = ("down", "limit", "links", "up")

    def __init__(self, up: Link, edges: Sequence[Link], down: Link) -> None:
        self.up, self.down = up, down
        self.links = tuple([link for link in (up, *edges, down) if link.capacity < math.inf])
        self.limit = min([edge.capacity for edge in edges], default=math.inf)


class Flow:
    """The sending of one message.

    Args:
        bits: how much there is to send.
        path: what it crosses.
        serial: the order in which flows were started.
    """

    __slots__ = ("bits", "bottleneck", "left", "path", "rate", "serial", "since_us", "wakes")
    parts: Collection[Any] | None = None
    size = 1

    def __init__(self, bits: int, path: Path, serial: int = 0) -> None:
        self.bits, self.path, self.serial = bits, path, serial
        self.left = float(bits)
        self.rate = 0.0
        self.since_us = 0
        self.wakes = -1
        self.bottleneck: Link | None = None

    def hold(self, link: Link | None) -> None:
        """Take note of which link is its bottleneck."""
        if self.bottleneck is not None:
            self.bottleneck.held -= 1
        if link is not None:
            link.held += 1
        self.bottleneck = link

    def left_at(self, now_us: int) -> float:
        """Return how many bits are still to be sent."""
        return max(0.0, self.left - self.rate * (now_us - self.since_us))

    def sent_bytes(self, now_us: int) -> int:
        """Return how many whole bytes have left the sender."""
        sent = (self.bits - self.left_at(now_us)) / 8
        return min(self.bits // 8, math.floor(sent + EPSILON * max(1.0, sent)))


class Bundle(Flow):
    """Equal flows from one uplink that cross no other link together: one object, for as long as they are equally fast.

    Args:
        bits: how much each of them has to send.
        path: what they cross, the uplink first; the bundle counts as one flow in all other links.
        serial: the order in which flows were started; as many numbers as there are flows.
        size: how many they are.
    """

    __slots__ = ("parts", "size")

    def __init__(self, bits: int, path: Path, serial: int, size: int) -> None:
        super().__init__(bits, path, serial)
        self.size = size
        self.parts = None


class Sharing(ABC):
    """Gives every flow a rate, and says when it has been sent.

    Args:
        clock: simulated time.
        on_sent: called with a flow or a bundle when its last bit has left the sender.
        split: called with a bundle whose parts are no longer equal; sets ``parts``, alike in every way, and calls
            :meth:`replace`.
    """

    bundles = False
    """Whether it takes bundles."""

    def __init__(
        self, clock: Clock, on_sent: Callable[[Any], None], split: Callable[[Any], None] = lambda _: None
    ) -> None:
        self.clock, self.on_sent, self.split = clock, on_sent, split

    @abstractmethod
    def start(self, flow: Flow) -> None:
        """Begin to send."""

    @abstractmethod
    def stop(self, flow: Flow) -> None:
        """Stop sending, because it is done or because an end went offline."""

    def replace(self, bundle: Bundle, parts: Iterable[Flow]) -> None:  # noqa: B027 - most have nothing to do
        """Put its parts into a bundle's place."""

    def set_rate(self, flow: Flow, rate: float) -> None:
        """Change a flow's rate from now on, and see to it that its end is noticed."""
        now = self.clock.now
        flow.left, flow.since_us, flow.rate = flow.left_at(now), now, rate
        if rate > 0:
            self._watch(flow, now + _micros(flow.left, rate))

    def _watch(self, flow: Flow, end_us: int) -> None:
        """Look at a flow when it should have been sent; if it got slower meanwhile, it is looked at again."""
        if not 0 <= flow.wakes <= end_us:
            flow.wakes = end_us
            self.clock.after(end_us - self.clock.now, self._look, flow, end_us)

    def _look(self, flow: Flow, expected_us: int) -> None:
        if flow.parts is not None:
            for part in flow.parts:
                self._look(part, expected_us)
            return
        if flow.wakes != expected_us:
            return
        flow.wakes = -1
        if flow.rate > 0:
            end_us = flow.since_us + _micros(flow.left, flow.rate)
            if end_us > expected_us:
                self._watch(flow, end_us)
            else:
                self.stop(flow)
                flow.left = 0.0
                self.on_sent(flow)


def _micros(bits: float, rate: float) -> int:
    """Return how long it takes, rounded up; what a float's last digits add is not a microsecond."""
    return math.ceil(bits / rate * (1 - 1e-12) - EPSILON)
