"""Sharing of bandwidth, against the golden cases of the reference and against arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.clock import MICRO, Clock
from fedsim.world.net.flows import Flow, Link, Path, Sharing
from fedsim.world.net.maxmin import MaxMin
from fedsim.world.net.sharing import KINDS

BYTE_S = 8 / MICRO
"""One byte in a second, in bits per microsecond."""


class Sending(Flow):
    """A flow that says itself what happens at its end."""

    def __init__(
        self, bits: int, up: Link, edges: tuple[Link, ...], down: Link, on_sent: Callable[[], object]
    ) -> None:
        super().__init__(bits, Path(up, edges, down))
        self.on_sent = on_sent


def ends(kind: str, capacities: dict[str, float], requests: list[tuple[str, str, int]]) -> list[float]:
    """Return when each request has been sent, in seconds; capacities in bytes/s, sizes in bytes, all at t=0."""
    clock = Clock()
    sharing = KINDS[kind](clock, lambda flow: flow.on_sent())
    ups = {name: Link(c * BYTE_S) for name, c in capacities.items()}
    downs = {name: Link(c * BYTE_S) for name, c in capacities.items()}
    times = [math.nan] * len(requests)

    def sent(index: int) -> None:
        times[index] = clock.now_s

    for index, (src, dst, size) in enumerate(requests):
        sharing.start(Sending(size * 8, ups[src], (), downs[dst], lambda i=index: sent(i)))
    clock.run()
    return times


GOLDEN = [
    ({"X": 10, "Y": 10, "Z": 10}, [("X", "Z", 100), ("Y", "Z", 100)], [10, 20], [20, 20]),
    ({"X": 4, "Y": 10, "Z": 10}, [("X", "Z", 40), ("Y", "Z", 100)], [10, 14], [10, 14]),
    ({"A": 10, "B": 4, "C": 10}, [("A", "B", 40), ("A", "C", 120)], [10, 20], [10, 16]),
    (
        {"A": 10, "B": 5, "C": 5, "D": 5},
        [("A", "B", 50), ("A", "C", 50), ("A", "D", 50)],
        [10, 10, 20],
        [15, 15, 15],
    ),
]


@pytest.mark.parametrize(("capacities", "requests", "greedy", "fair"), GOLDEN)
def test_golden_cases(capacities, requests, greedy, fair) -> None:
    assert ends("greedy", capacities, requests) == greedy
    assert ends("max-min", capacities, requests) == fair


@pytest.mark.parametrize("k", [1, 2, 3, 7, 10])
def test_k_equal_flows_into_one_downlink(k: int) -> None:
    capacities = {"Z": 10.0} | {f"S{i}": 1000.0 for i in range(k)}
    requests = [(f"S{i}", "Z", 30) for i in range(k)]
    assert ends("max-min", capacities, requests) == [3.0 * k] * k
    assert ends("greedy", capacities, requests) == [3.0 * (i + 1) for i in range(k)]
    assert ends("none", capacities, requests) == [3.0] * k


@pytest.mark.parametrize("k", [1, 2, 5])
def test_k_equal_flows_out_of_one_uplink(k: int) -> None:
    capacities = {"A": 10.0} | {f"D{i}": 1000.0 for i in range(k)}
    requests = [("A", f"D{i}", 30) for i in range(k)]
    assert ends("max-min", capacities, requests) == [3.0 * k] * k
    assert ends("greedy", capacities, requests) == [3.0 * (i + 1) for i in range(k)]


def test_a_flow_that_comes_later_takes_its_half() -> None:
    # alone until 2 s (20 of 100 bytes), then half each: the second has 50 bytes at 12 s, the first then speeds up
    clock = Clock()
    sharing = MaxMin(clock, lambda flow: flow.on_sent())
    down, times = Link(10 * BYTE_S), {}
    sharing.start(Sending(800, Link(), (), down, lambda: times.setdefault("first", clock.now_s)))
    clock.after(
        2 * MICRO,
        lambda: sharing.start(
            Sending(400, Link(), (), down, lambda: times.setdefault("second", clock.now_s))
        ),
    )
    clock.run()
    assert times == {"second": 12.0, "first": 15.0}


def test_stopping_a_flow_that_shares_nothing_keeps_what_was_sent() -> None:
    clock = Clock()
    sharing = KINDS["none"](clock, lambda flow: flow.on_sent())
    flow = Sending(800, Link(), (), Link(10 * BYTE_S), lambda: None)
    sharing.start(flow)
    clock.after(4 * MICRO, sharing.stop, flow)
    clock.run()
    assert flow.sent_bytes(clock.now) == 40


@pytest.mark.parametrize("kind", ["max-min", "greedy"])
def test_stopping_a_flow_frees_its_share_and_keeps_what_was_sent(kind: str) -> None:
    clock = Clock()
    sharing = KINDS[kind](clock, lambda flow: flow.on_sent())
    down, times = Link(10 * BYTE_S), {}
    flows = [Sending(800, Link(), (), down, lambda i=i: times.setdefault(i, clock.now_s)) for i in range(2)]
    for flow in flows:
        sharing.start(flow)
    clock.after(4 * MICRO, sharing.stop, flows[0])
    clock.run()
    # max-min: 20 bytes each until 4 s, then 80 more at full speed; greedy: the second starts at 4 s
    assert times == {1: 12.0 if kind == "max-min" else 14.0}
    assert flows[0].sent_bytes(clock.now) == (20 if kind == "max-min" else 40)
    assert flows[1].sent_bytes(clock.now) == 100


def test_stopping_a_flow_that_waits() -> None:
    clock = Clock()
    sharing = KINDS["greedy"](clock, lambda flow: flow.on_sent())
    down, times = Link(10 * BYTE_S), {}
    flows = [Sending(800, Link(), (), down, lambda i=i: times.setdefault(i, clock.now_s)) for i in range(3)]
    for flow in flows:
        sharing.start(flow)
    sharing.stop(flows[1])
    clock.run()
    assert times == {0: 10.0, 2: 20.0}
    assert flows[1].sent_bytes(clock.now) == 0


def test_an_edge_limits_and_is_shared() -> None:
    clock = Clock()
    sharing = MaxMin(clock, lambda flow: flow.on_sent())
    edge, times = Link(4 * BYTE_S), []
    for _ in range(2):
        sharing.start(
            Sending(160, Link(10 * BYTE_S), (edge,), Link(10 * BYTE_S), lambda: times.append(clock.now_s))
        )
    clock.run()
    assert times == [10.0, 10.0]


worlds = st.tuples(
    st.lists(st.integers(1, 20), min_size=2, max_size=6),
    st.lists(st.integers(1, 20), min_size=2, max_size=6),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 60), st.integers(0, 8), st.booleans()),
        min_size=1,
        max_size=14,
    ),
)


class Watched:
    """Replays a random script of starts and stops, and checks the limits at every instant at which rates change."""

    def __init__(
        self, kind: str, ups: list[int], downs: list[int], script: list[tuple[int, int, int, int, bool]]
    ) -> None:
        self.clock = Clock()
        self.sharing: Sharing = KINDS[kind](self.clock, self._end)
        self.ups, self.downs = [Link(c / 10) for c in ups], [Link(c / 10) for c in downs]
        self.flows: list[Flow] = []
        self.running: dict[Flow, None] = {}
        self.ended: dict[Flow, int] = {}
        for src, dst, size, start, stops in script:
            up, down = self.ups[src % len(ups)], self.downs[dst % len(downs)]
            flow = Sending(size * 8, up, (), down, lambda: None)
            self.flows.append(flow)
            self.clock.after(start, self._start, flow)
            if stops:
                self.clock.after(start + 7, self._stop, flow)

    def _start(self, flow: Flow) -> None:
        self.running[flow] = None
        self.sharing.start(flow)

    def _stop(self, flow: Flow) -> None:
        if flow in self.running:
            del self.running[flow]
            self.sharing.stop(flow)

    def _end(self, flow: Flow) -> None:
        del self.running[flow]
        self.ended[flow] = self.clock.now

    def play(self, fair: bool) -> None:
        while (now := self.clock.peek()) != math.inf:
            while self.clock.peek() == now:
                self.clock.step()
            self._check(fair)

    def _check(self, fair: bool) -> None:
        rates = {flow: flow.rate for flow in self.running}
        for link in (*self.ups, *self.downs):
            crossing = [f for f in rates if link in (f.path.up, f.path.down)]
            assert sum(rates[f] for f in crossing) <= link.capacity * (1 + 1e-6)
        for flow in rates if fair else ():
            assert any(self._full_and_fastest(link, flow, rates) for link in (flow.path.up, flow.path.down))

    def _full_and_fastest(self, link: Link, flow: Flow, rates: dict[Flow, float]) -> bool:
        crossing = [f for f in rates if link in (f.path.up, f.path.down)]
        full = sum(rates[f] for f in crossing) >= link.capacity * (1 - 1e-6)
        return full and rates[flow] >= max(rates[f] for f in crossing) * (1 - 1e-6)


@settings(max_examples=500, deadline=None)
@given(worlds)
def test_max_min_is_fair_at_every_instant(world) -> None:
    watched = Watched("max-min", *world)
    watched.play(fair=True)
    assert not watched.running


@settings(max_examples=200, deadline=None)
@given(worlds, st.sampled_from(["greedy", "none"]))
def test_no_limit_is_exceeded_and_everything_ends(world, kind: str) -> None:
    watched = Watched(kind, *world)
    if kind == "greedy":
        watched.play(fair=False)
    else:
        watched.clock.run()
    assert not watched.running
    for flow in watched.flows:
        sent = flow.sent_bytes(watched.clock.now)
        assert sent == flow.bits // 8 if flow in watched.ended else 0 <= sent <= flow.bits // 8


@settings(max_examples=200, deadline=None)
@given(worlds, st.randoms(use_true_random=False))
def test_the_order_of_requests_does_not_matter_to_max_min(world, random) -> None:
    ups, downs, script = world
    order = list(range(len(script)))
    random.shuffle(order)
    one, two = (
        Watched("max-min", ups, downs, script),
        Watched("max-min", ups, downs, [script[i] for i in order]),
    )
    one.play(fair=True)
    two.play(fair=True)
    for place, index in enumerate(order):
        assert abs(one.ended.get(one.flows[index], -9) - two.ended.get(two.flows[place], -9)) <= 1
