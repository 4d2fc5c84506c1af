"""Max-min fair sharing by progressive filling, where a change touches no more flows than fairness asks for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedsim.world.clock import Clock
from fedsim.world.net.flows import EPSILON, Bundle, Flow, Link, Sharing

GUARD = 1e-12
"""What rounding may add to a sum of rates; too little for a microsecond."""

MOST = 1 + GUARD
"""How much of its capacity a link may give away."""


class MaxMin(Sharing):
    """Max-min fairness: no flow could be faster without slowing down one that is not faster than itself.

    All changes of one microsecond are settled together. A change first touches the flows that have begun and those
    that were held back by a link that has got room; others follow only where fairness asks for it, so that far-away
    flows cost nothing.

    D. Bertsekas, R. Gallager: Data Networks, 2nd edition, 1992, section 6.5.2.
    """

    bundles = True

    def __init__(
        self, clock: Clock, on_sent: Callable[[Any], None], split: Callable[[Any], None] = lambda _: None
    ) -> None:
        super().__init__(clock, on_sent, split)
        self._new: dict[Flow, None] = {}
        self._freed: dict[Link, None] = {}
        self._settling = False

    def start(self, flow: Flow) -> None:
        """Join the links; the rate comes at the end of this microsecond, unless it is clear that nobody minds."""
        flow.since_us = self.clock.now
        clear = not self._settling and not flow.path.up.flows
        for link in flow.path.links:
            link.flows[flow] = None
        if clear and isinstance(flow, Bundle) and self._fits(flow):
            self.set_rate(flow, flow.rate)
        else:
            self._new[flow] = None
            self._change()

    def stop(self, flow: Flow) -> None:
        """Leave the links to the others."""
        flow.left = flow.left_at(self.clock.now)
        self._new.pop(flow, None)
        flow.hold(None)
        rate = flow.rate
        flow.path.up.used -= rate * (flow.size - 1)
        for link in flow.path.links:
            flows = link.flows
            del flows[flow]
            link.used = link.used - rate if flows else 0.0
            if link.held:
                self._freed[link] = None
                self._change()
        flow.rate, flow.since_us = 0.0, self.clock.now

    def replace(self, bundle: Bundle, parts: Iterable[Flow]) -> None:
        """Put its parts into a bundle's place."""
        fresh = bundle in self._new
        self._new.pop(bundle, None)
        for link in bundle.path.links:
            del link.flows[bundle]
        for part in parts:
            part.hold(bundle.bottleneck)
            for link in part.path.links:
                link.flows[part] = None
            if fresh:
                self._new[part] = None
        bundle.hold(None)

    def _change(self) -> None:
        if not self._settling:
            self._settling = True
            self.clock.last(self._settle)

    def _settle(self) -> None:
        self._settling = False
        for up in dict.fromkeys(flow.path.up for flow in self._new):
            if len(up.flows) > 1:
                self._part(flow for flow in list(up.flows) if flow.path.up is up)
        self._part(flow for flow in list(self._new) if isinstance(flow, Bundle) and not self._fits(flow))
        new, self._new, freed, self._freed = self._new, {}, self._freed, {}
        bundles = [flow for flow in new if isinstance(flow, Bundle)]
        moved = {flow: None for flow in new if not isinstance(flow, Bundle)}
        held = [flow for link in freed for flow in link.flows if flow.bottleneck is link]
        # a bundle needs no more: it has all of its uplink already
        moved.update((flow, None) for flow in held if not isinstance(flow, Bundle))
        rates = self._fair(moved)
        for bundle in bundles:
            rates.update((flow, flow.rate) for flow in bundle.parts or [bundle] if flow not in rates)
        for flow in sorted(rates, key=_serial) if len(rates) > 1 else rates:
            self._set(flow, rates[flow])

    def _fits(self, bundle: Bundle) -> bool:
        """Give a bundle the whole uplink, if no other link stands in the way, and say whether that worked."""
        up, *others = bundle.path.links
        rate = up.capacity / bundle.size
        for link in others:
            if link.used + rate > link.capacity * MOST:
                return False
        for link in others:
            link.used += rate
        up.used += rate * bundle.size
        bundle.rate = rate
        bundle.hold(up)
        return True

    def _fair(self, moved: dict[Flow, None]) -> dict[Flow, float]:
        """Return new rates for some flows and all that fairness draws in."""
        while moved:
            rates = fill(moved)
            more = unfair(moved, rates)
            if any(isinstance(flow, Bundle) for flow in more):
                self._part(more)
                more = unfair(moved, rates)
            if not more:
                return rates
            moved.update(more)
        return {}

    def _part(self, flows: Iterable[Flow]) -> None:
        for flow in flows:
            if isinstance(flow, Bundle):
                self.split(flow)

    def _set(self, flow: Flow, rate: float) -> None:
        if rate != flow.rate:
            for link in flow.path.links:
                link.used += rate - flow.rate
            self.set_rate(flow, rate)
        elif flow.wakes < 0:
            self.set_rate(flow, rate)


def _serial(flow: Flow) -> int:
    return flow.serial


def fill(moved: Iterable[Flow]) -> dict[Flow, float]:
    """Raise the rates of some flows together until a link is full, freeze those that cross it, and go on.

    Args:
        moved: the flows to give rates to; all others keep theirs.

    Returns:
        The new rates. Every flow's ``bottleneck`` is the link that froze it.
    """
    crossing: dict[Link, list[Flow]] = {}
    for flow in sorted(moved, key=_serial):
        for link in flow.path.links:
            crossing.setdefault(link, []).append(flow)
    spare = {link: _spare(link, flows) for link, flows in crossing.items()}
    count = {link: len(flows) for link, flows in crossing.items()}
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
        for flow in crossing[link]:
            if flow not in rates:
                rates[flow] = rate
                flow.hold(link)
                for crossed in flow.path.links:
                    spare[crossed] -= rate
                    count[crossed] -= 1
    return rates


def _spare(link: Link, moved: Sequence[Flow]) -> float:
    """Return what a link has for flows that are to get new rates; a hair more where rounding might hurt others."""
    if len(moved) == len(link.flows):
        return link.capacity
    return link.capacity * MOST - (link.used - math.fsum(flow.rate for flow in moved))


def unfair(moved: Mapping[Flow, None], rates: Mapping[Flow, float]) -> dict[Flow, None]:
    """Return the flows that have kept their rate and now must not.

    A flow may keep its rate if its bottleneck is still full and nobody there is faster; and it must not be faster
    than a flow that has been frozen at a link that both cross.
    """
    found: dict[Flow, None] = {}
    for link in dict.fromkeys(link for flow in moved for link in flow.path.links):
        if not link.held or len(link.flows) == 1:
            continue
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
