"""How transfers share bandwidth.

A transfer crosses links of limited capacity: its sender's uplink, its receiver's downlink, and any edge on the way that
has a limit. Rates are in bits per microsecond, which is the same as Mbit/s.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from fedsim.world.clock import Clock

EPSILON = 1e-9


class Link:
    """Something with a limited capacity that transfers cross.

    Args:
        capacity: bits per microsecond; infinite for no limit.
    """

    __slots__ = ("capacity", "flows", "used", "waiting")

    def __init__(self, capacity: float = math.inf) -> None:
        self.capacity = capacity
        self.flows: dict[Flow, None] = {}
        self.used = 0.0
        self.waiting: dict[Flow, None] = {}

    @property
    def spare(self) -> float:
        """Bits per microsecond that nobody has taken; kept by :class:`Greedy` alone."""
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
        self.links = tuple(link for link in (up, *edges, down) if link.capacity < math.inf)
        self.limit = min((edge.capacity for edge in edges), default=math.inf)


class Flow:
    """The sending of one message.

    Args:
        bits: how much there is to send.
        path: what it crosses.
    """

    __slots__ = ("bits", "bottleneck", "left", "path", "rate", "since_us", "wakes")

    def __init__(self, bits: int, path: Path) -> None:
        self.bits, self.path = bits, path
        self.left = float(bits)
        self.rate = 0.0
        self.since_us = 0
        self.wakes = -1
        self.bottleneck: Link | None = None

    def left_at(self, now_us: int) -> float:
        """Return how many bits are still to be sent."""
        return max(0.0, self.left - self.rate * (now_us - self.since_us))

    def sent_bytes(self, now_us: int) -> int:
        """Return how many whole bytes have left the sender."""
        sent = (self.bits - self.left_at(now_us)) / 8
        return min(self.bits // 8, math.floor(sent + EPSILON * max(1.0, sent)))


class Sharing(ABC):
    """Gives every flow a rate, and says when it has been sent.

    Args:
        clock: simulated time.
        on_sent: called with a flow when its last bit has left the sender.
    """

    def __init__(self, clock: Clock, on_sent: Callable[[Any], None]) -> None:
        self.clock, self.on_sent = clock, on_sent

    @abstractmethod
    def start(self, flow: Flow) -> None:
        """Begin to send."""

    @abstractmethod
    def stop(self, flow: Flow) -> None:
        """Stop sending, because it is done or because an end went offline."""

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


class Unshared(Sharing):
    """Every flow has its narrowest link for itself."""

    def start(self, flow: Flow) -> None:
        """Begin to send at full speed."""
        self.set_rate(flow, min(link.capacity for link in flow.path.links))

    def stop(self, flow: Flow) -> None:
        """Nothing to give back."""
        flow.rate = 0.0


class MaxMin(Sharing):
    """Max-min fairness: no flow could be faster without slowing down one that is not faster than itself.

    All changes of one microsecond are settled together. A change first touches the flows that share a link with it;
    others follow only where fairness asks for it, so that far-away flows cost nothing.

    D. Bertsekas, R. Gallager: Data Networks, 2nd edition, 1992, section 6.5.2.
    """

    def __init__(self, clock: Clock, on_sent: Callable[[Any], None]) -> None:
        super().__init__(clock, on_sent)
        self._dirty: dict[Link, None] = {}
        self._settling = False

    def start(self, flow: Flow) -> None:
        """Join the links; the rate comes at the end of this microsecond."""
        flow.since_us = self.clock.now
        for link in flow.path.links:
            link.flows[flow] = None
        self._touch(flow)

    def stop(self, flow: Flow) -> None:
        """Leave the links to the others."""
        flow.left = flow.left_at(self.clock.now)
        flow.rate, flow.since_us = 0.0, self.clock.now
        for link in flow.path.links:
            del link.flows[flow]
        self._touch(flow)

    def _touch(self, flow: Flow) -> None:
        self._dirty.update(dict.fromkeys(flow.path.links))
        if not self._settling:
            self._settling = True
            self.clock.last(self._settle)

    def _settle(self) -> None:
        self._settling = False
        dirty, self._dirty = self._dirty, {}
        moved: dict[Flow, None] = {flow: None for link in dirty for flow in link.flows}
        while moved:
            rates = fill(moved)
            more = unfair(moved, rates)
            if not more:
                for flow, rate in rates.items():
                    if rate != flow.rate:
                        self.set_rate(flow, rate)
                return
            moved.update(more)


def fill(moved: dict[Flow, None]) -> dict[Flow, float]:
    """Raise the rates of some flows together until a link is full, freeze those that cross it, and go on.

    Args:
        moved: the flows to give rates to; all others keep theirs.

    Returns:
        The new rates. Every flow's ``bottleneck`` is the link that froze it.
    """
    spare: dict[Link, float] = {}
    count: dict[Link, int] = {}
    for flow in moved:
        for link in flow.path.links:
            if link not in spare:
                spare[link] = link.capacity - sum(f.rate for f in link.flows if f not in moved)
                count[link] = 0
            count[link] += 1
    rates: dict[Flow, float] = {}
    heap = [(spare[link] / count[link], order, link) for order, link in enumerate(count)]
    heapq.heapify(heap)
    while heap:
        share, order, link = heapq.heappop(heap)
        if not count[link]:
            continue
        rate = max(0.0, spare[link] / count[link])
        if rate > share:  # some of its flows have been frozen elsewhere, which leaves more for the others
            heapq.heappush(heap, (rate, order, link))
            continue
        for flow in [f for f in link.flows if f in moved and f not in rates]:
            rates[flow], flow.bottleneck = rate, link
            for crossed in flow.path.links:
                spare[crossed] -= rate
                count[crossed] -= 1
    return rates


def unfair(moved: dict[Flow, None], rates: dict[Flow, float]) -> dict[Flow, None]:
    """Return the flows that have kept their rate and now must not.

    A flow may keep its rate if its bottleneck is still full and nobody there is faster; and it must not be faster
    than a flow that has been frozen at a link that both cross.
    """
    found: dict[Flow, None] = {}
    for link in dict.fromkeys(link for flow in moved for link in flow.path.links):
        now = {flow: rates.get(flow, flow.rate) for flow in link.flows}
        tolerance = EPSILON * link.capacity
        full = sum(now.values()) >= link.capacity - tolerance
        fastest = max(now.values())
        frozen = [rate for flow, rate in now.items() if flow in moved and flow.bottleneck is link]
        for flow, rate in now.items():
            if flow in moved:
                continue
            loses = bool(frozen) and rate > min(frozen) + tolerance
            gains = flow.bottleneck is link and not (full and rate >= fastest - tolerance)
            if loses or gains:
                found[flow] = None
    return found


class Greedy(Sharing):
    """First come, first served: a transfer takes what is left, and keeps it.

    A transfer that finds nothing left at its receiver waits there. When one ends, the receiver's other transfers
    speed up first, and then the sender's next one starts. An edge limits single transfers, and is not shared out.

    This is how the simulators of Plexus and DecLearn share bandwidth (de Vos et al., EuroMLSys 2025).
    """

    def start(self, flow: Flow) -> None:
        """Queue at the sender."""
        flow.path.up.waiting[flow] = None
        self._serve(flow.path.up)

    def stop(self, flow: Flow) -> None:
        """Give the rate back, first to the receiver's other transfers, then to the sender's queue."""
        flow.path.up.waiting.pop(flow, None)
        flow.path.down.waiting.pop(flow, None)
        if flow not in flow.path.down.flows:
            return
        del flow.path.down.flows[flow]
        flow.path.up.used -= flow.rate
        flow.path.down.used -= flow.rate
        self.set_rate(flow, 0.0)
        for other in [*flow.path.down.flows, *flow.path.down.waiting]:
            self._give(other)
        self._serve(flow.path.up)

    def _serve(self, up: Link) -> None:
        """Start the transfers that queue at a sender."""
        for flow in list(up.waiting):
            if up.spare <= EPSILON:
                return
            if not self._give(flow):
                flow.path.down.waiting[flow] = None

    def _give(self, flow: Flow) -> bool:
        """Let a flow take all that both its ends have to spare, and say whether that was anything."""
        more = min(flow.path.up.spare, flow.path.down.spare, flow.path.limit - flow.rate)
        if more <= EPSILON:
            return False
        flow.path.up.waiting.pop(flow, None)
        flow.path.down.waiting.pop(flow, None)
        flow.path.down.flows[flow] = None
        flow.path.up.used += more
        flow.path.down.used += more
        self.set_rate(flow, flow.rate + more)
        return True


KINDS: dict[str, type[Sharing]] = {"none": Unshared, "max-min": MaxMin, "greedy": Greedy}
"""The ways to share, by the name that an experiment file gives them."""
