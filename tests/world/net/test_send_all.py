"""Sending one message to several nodes at once is the same as sending it to one after another."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from typing import Any

import networkx as nx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsim.world.clock import Clock
from fedsim.world.log import EventLog
from fedsim.world.net.broadcast import Fan
from fedsim.world.net.network import Access, Message, Network, Traffic, Transfer
from fedsim.world.node import Node

OnEnd = Callable[[bool], None] | None
Cast = Callable[[Node, Iterable[Node], Message, OnEnd], None]


def one_by_one(node: Node, to: Iterable[Node], message: Message, on_end: OnEnd = None) -> None:
    for other in to:
        node.send(other, message, on_end)


def at_once(node: Node, to: Iterable[Node], message: Message, on_end: OnEnd = None) -> None:
    node.send_all(to, message, on_end)


both = pytest.mark.parametrize("cast", [one_by_one, at_once])


@dataclass(frozen=True)
class Plan:
    """A world and what happens in it.

    Args:
        size: how many nodes there are.
        links: (a, b, latency_us, bits_per_s) for every link; 0 bits/s is no limit.
        access: latency_us, up_bps and down_bps of every node.
        sharing: how bandwidth is shared.
        header_bytes: added to every message.
        overlay: whether messages take no detours.
        one_way: whether latencies come from a function that is not symmetric; in an overlay they always do.
        acts: (time_us, name, arguments) of everything that is done to the world.
    """

    size: int
    links: list[tuple[int, int, int, int]]
    access: list[tuple[int, int, int]]
    sharing: str = "max-min"
    header_bytes: int = 0
    overlay: bool = False
    one_way: bool = False
    acts: list[tuple[Any, ...]] = field(default_factory=list)


class Stage:
    """Plays a plan; broadcasts are cast in one way or the other."""

    def __init__(self, plan: Plan, cast: Cast) -> None:
        self.clock, self.cast = Clock(), cast
        self.events: list[Any] = []
        self.log = EventLog(self.clock, lambda *event: self.events.append(event))
        graph = nx.Graph()
        graph.add_nodes_from(range(plan.size))
        for a, b, latency_us, bits_per_s in plan.links:
            graph.add_edge(a, b, latency_us=latency_us, bits_per_s=bits_per_s)
        access = {id: Access(*own) for id, own in enumerate(plan.access)}
        delay_us = (lambda a, b: 700 * a + 300 * b) if plan.one_way or plan.overlay else None
        self.network = Network(
            self.clock, self.log, graph, access, plan.sharing, plan.header_bytes, delay_us, plan.overlay
        )
        self.nodes = [Node(id, "peer", self.clock, self.log, self.network) for id in range(plan.size)]
        self.heard: list[Any] = []
        self.ends: list[Any] = []
        for node in self.nodes:
            node.on_message = lambda message, node=node: self.hear(node, message)
        for at_us, name, *arguments in plan.acts:
            self.clock.after(at_us, getattr(self, name), *arguments)

    def play(self) -> dict[str, Any]:
        """Let everything happen, and return all that can be seen of it."""
        self.clock.run()
        return {
            "events": self.events,
            "hash": self.log.hexdigest(),
            "traffic": {id: astuple(traffic) for id, traffic in self.network.traffic.items()},
            "links": dict(self.network.links),
            "heard": self.heard,
            "ends": self.ends,
            "left": [list(node.transfers) for node in self.nodes],
            "time": self.clock.now,
        }

    def hear(self, node: Node, message: Message) -> None:
        """Note an arrival; a message of a round that is left tells all others in turn."""
        self.heard.append((self.clock.now, node.id, message))
        if message.round > 0:
            others = [other for other in self.nodes if other is not node]
            self.cast(node, others, Message(message.kind, None, 40, message.round - 1), None)

    def broadcast(self, src: int, to: list[int], size: int, round: int, on_end: str) -> None:
        """Send to several nodes; the targets come as something that can be walked only once."""
        node, number = self.nodes[src], len(self.ends)

        def ended(ok: bool) -> None:
            self.ends.append((self.clock.now, number, ok))
            if on_end == "leave" and not ok:
                node.set_online(False)
            if on_end == "tell":
                node.send(self.nodes[0], Message("told", None, 30))

        message = Message("model", [src], size, round, src=99)
        self.cast(node, (self.nodes[other] for other in to), message, None if on_end == "none" else ended)

    def single(self, src: int, dst: int, size: int) -> None:
        """Send to one node."""
        end = len(self.ends)
        message = Message("single", None, size)
        self.nodes[src].send(self.nodes[dst], message, lambda ok: self.ends.append((self.clock.now, end, ok)))

    def switch(self, id: int, online: bool) -> None:
        """Leave or come back."""
        self.nodes[id].set_online(online)

    def crash(self, id: int) -> None:
        """Leave for good."""
        self.nodes[id].crash()

    def break_link(self, number: int, kills: bool) -> None:
        """Stop using a link; perhaps what is on it dies, too."""
        edge = sorted(self.network.graph.edges)[number % self.network.graph.number_of_edges()]
        self.network.break_edge(*edge)
        if kills:
            under_way = [t for node in self.nodes for t in self.network.transfers(node)]
            self.network.kill([t for t in under_way if edge in t.route.links])

    def mend_link(self, number: int) -> None:
        """Use a link again that has been broken."""
        edge = sorted(self.network.graph.edges)[number % self.network.graph.number_of_edges()]
        if self.network._broken[edge]:
            self.network.mend_edge(*edge)

    def kill(self, id: int) -> None:
        """Lose all that a node sends or receives."""
        self.network.kill(self.network.transfers(self.nodes[id]))

    def wall(self, groups: int) -> None:
        """Divide the nodes by the bits of a number."""
        self.network.walls.append({node.id: groups >> node.id & 1 for node in self.nodes})

    def heal(self) -> None:
        """Take the latest wall away."""
        del self.network.walls[-1:]

    def hazard(self, lose: int, hold: int, double: int) -> None:
        """Befall messages by their number: every so manieth is lost, held up, sent three times."""

        def befall(transfer: Transfer) -> None:
            self.log.add("delay", transfer.src.id, transfer.dst.id, transfer.number, transfer.copy)
            number = transfer.number + transfer.copy
            transfer.doomed = transfer.doomed or number % lose == 0
            transfer.late_us += 900 if number % hold == 0 else 0
            transfer.copies += 2 if not transfer.copy and number % double == 0 else 0

        self.network.hazards.append(befall)

    def calm(self) -> None:
        """Take the latest hazard away."""
        del self.network.hazards[-1:]


LATENCY_US = st.sampled_from([0, 0, 1, 800, 5000])
BPS = st.sampled_from([0, 0, 200_000, 1_000_000, 3_333_333])
BYTES = st.sampled_from([0, 1, 60, 500])
TIME_US = st.integers(0, 10).map(lambda step: step * 500)


def broadcasts(size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """One node sends to all others, as it may have done before, or to some, perhaps twice or to itself."""
    node, round = st.integers(0, size - 1), st.integers(-1, 2)
    to = st.one_of(st.permutations(range(size)), st.lists(node, max_size=size + 1))
    wants = st.sampled_from(["none", "note", "leave", "leave", "tell"])
    some = st.tuples(TIME_US, st.just("broadcast"), node, to, BYTES, round, wants)
    all_others = node.flatmap(
        lambda src: st.tuples(
            TIME_US,
            st.just("broadcast"),
            st.just(src),
            st.just([other for other in range(size) if other != src]),
            BYTES,
            round,
            st.just("none"),
        )
    )
    return st.one_of(some, all_others, all_others)


def others(size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """Anything else that can be done to a world."""
    node, some = st.integers(0, size - 1), st.integers(0, 9)
    return st.one_of(
        st.tuples(TIME_US, st.just("single"), node, node, BYTES),
        st.tuples(TIME_US, st.just("switch"), node, st.sampled_from([False, False, True])),
        st.tuples(TIME_US, st.just("crash"), node),
        st.tuples(TIME_US, st.just("break_link"), some, st.booleans()),
        st.tuples(TIME_US, st.just("mend_link"), some),
        st.tuples(TIME_US, st.just("wall"), st.integers(1, 2**size - 2)),
        st.tuples(TIME_US, st.just("heal")),
        st.tuples(TIME_US, st.just("hazard"), st.integers(2, 9), st.integers(1, 9), st.integers(2, 9)),
        st.tuples(TIME_US, st.just("calm")),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A tree with some more links, and a script."""
    size = draw(st.integers(2, 5))
    pairs = {(draw(st.integers(0, b - 1)), b) for b in range(1, size)}
    more = st.sets(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=4)
    pairs |= {(a, b) for a, b in draw(more) if a < b}
    return Plan(
        size,
        [(a, b, draw(LATENCY_US), draw(BPS)) for a, b in sorted(pairs)],
        [(draw(LATENCY_US), draw(BPS), draw(BPS)) for _ in range(size)],
        draw(st.sampled_from(["max-min", "greedy", "none"])),
        draw(st.sampled_from([0, 20])),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.lists(broadcasts(size), min_size=2, max_size=10)) + draw(st.lists(others(size), max_size=8)),
    )


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_all_at_once_is_the_same_as_one_by_one(plan):
    assert Stage(plan, at_once).play() == Stage(plan, one_by_one).play()


# by hand

FREE = (0, 0, 0)


def star(cast: Cast, *acts: tuple[Any, ...], **more: Any) -> Stage:
    """Node 0 has links of 1 ms to 1, 2 and 3, and sends 1 byte in a microsecond; the others are free."""
    links = [(0, other, 1000, 0) for other in (1, 2, 3)]
    return Stage(Plan(4, links, [(0, 8_000_000, 0), FREE, FREE, FREE], acts=list(acts), **more), cast)


@both
def test_three_messages_share_the_senders_uplink(cast):
    stage = star(cast, (0, "broadcast", 0, [1, 2, 3], 100, -1, "note"))
    found = stage.play()
    assert found["ends"] == [(1300, 0, True)] * 3
    message = Message("model", [0], 100, -1, src=0)
    assert found["heard"] == [(1300, 1, message), (1300, 2, message), (1300, 3, message)]
    assert stage.network.traffic[0] == Traffic(up=300)
    assert stage.network.links == {(0, 1): 100, (0, 2): 100, (0, 3): 100}


@both
def test_greedily_they_come_one_after_another_in_the_order_given(cast):
    stage = star(cast, (0, "broadcast", 0, [3, 1, 2], 100, -1, "note"), sharing="greedy")
    # the receivers have no limit, so the first takes the whole uplink
    assert [(at, id) for at, id, _ in stage.play()["heard"]] == [(1100, 3), (1200, 1), (1300, 2)]


@both
def test_a_target_that_is_offline_costs_the_header(cast):
    acts = [(0, "switch", 2, False), (0, "broadcast", 0, [1, 2, 3], 80, -1, "note")]
    stage = star(cast, *acts, header_bytes=20)
    assert stage.play()["ends"] == [(0, 0, False), (1200, 0, True), (1200, 0, True)]
    assert stage.network.traffic[0] == Traffic(up=220, lost=20)


@both
def test_a_sender_that_is_offline_sends_nothing_and_says_so_for_each(cast):
    stage = star(cast, (0, "switch", 0, False), (5, "broadcast", 0, [1, 2, 1], 80, -1, "note"))
    found = stage.play()
    assert found["ends"] == [(5, 0, False)] * 3
    assert [event[1] for event in found["events"]] == ["offline"]


@both
def test_a_sender_that_leaves_in_the_middle_sends_nothing_to_the_rest(cast):
    # the second target is offline, and hearing of it the sender leaves, which kills the first message, too
    acts = [(0, "switch", 2, False), (0, "broadcast", 0, [1, 2, 3], 80, -1, "leave")]
    stage = star(cast, *acts)
    found = stage.play()
    assert [event[1:4] for event in found["events"] if event[1] == "send"] == [("send", 0, 1), ("send", 0, 2)]
    assert found["ends"] == [(0, 0, False)] * 3
    assert found["heard"] == []


@both
def test_one_that_begins_when_a_broadcast_ends_leaves_no_room_for_a_third(cast):
    stage = star(
        cast,
        (100, "single", 0, 2, 100),  # comes before the end that falls into the same microsecond
        (0, "broadcast", 0, [1], 100, -1, "none"),
        (150, "single", 0, 1, 100),
    )
    # the second is alone until 150 and has 50 bytes left, which take 100 us beside the third
    assert [(at, id) for at, id, _ in stage.play()["heard"]] == [(1100, 1), (1250, 2), (1300, 1)]


@both
def test_a_message_that_is_lost_at_once_leaves_a_broadcast_as_it_is(cast):
    acts = [(0, "broadcast", 0, [1, 2], 100, -1, "none"), (50, "single", 0, 3, 100), (50, "switch", 3, False)]
    assert [(at, id) for at, id, _ in star(cast, *acts).play()["heard"]] == [(1200, 1), (1200, 2)]


@both
def test_a_broadcast_in_place_of_a_lost_one_takes_the_uplink_and_no_more(cast):
    acts = [(0, "broadcast", 0, [1, 2], 100, -1, "none"), (50, "kill", 0)]
    stage = star(cast, *acts, (50, "broadcast", 0, [1, 2], 100, -1, "none"))
    assert [(at, id) for at, id, _ in stage.play()["heard"]] == [(1250, 1), (1250, 2)]


@both
def test_an_uplink_is_as_full_as_it_is_and_empty_in_the_end(cast):
    stage = star(cast, (300, "single", 0, 1, 10), (0, "broadcast", 0, [1, 2, 3], 100, -1, "none"))
    used, up = [], stage.network.route(0, 1).path.up
    for at_us in (1, 299, 305, 311):
        stage.clock.after(at_us, lambda: used.append(up.used))
    stage.play()
    assert used == pytest.approx([8.0, 8.0, 8.0, 0.0])
    assert up.used == up.held == 0


@both
def test_who_is_reached_finds_every_byte_counted_that_has_come_so_far(cast):
    stage, found = star(cast), []

    def look(message: Message) -> None:
        network = stage.network
        traffic = network.traffic
        assert network.total == Traffic(*map(sum, zip(*(astuple(t) for t in traffic.values()))))
        found.append((network.total.down, [traffic[id].down for id in (1, 2, 3)], dict(network.links)))

    for node in stage.nodes:
        node.on_message = look
    stage.clock.after(5, stage.broadcast, 0, [1, 2, 3], 100, -1, "none")
    stage.play()
    assert found == [
        (100, [100, 0, 0], {(0, 1): 100}),
        (200, [100, 100, 0], {(0, 1): 100, (0, 2): 100}),
        (300, [100, 100, 100], {(0, 1): 100, (0, 2): 100, (0, 3): 100}),
    ]


@both
def test_the_log_is_the_same_when_nobody_listens_to_what_handlers_broadcast(cast):
    told, untold = [
        Stage(Plan(4, [(a, b, 9, 0) for b in range(4) for a in range(b)], [FREE] * 4), cast) for _ in range(2)
    ]
    untold.log.listen(None)
    for stage in (told, untold):
        stage.clock.after(5, stage.broadcast, 0, [1, 2, 3], 100, 2, "none")
    assert told.play()["hash"] == untold.play()["hash"]
    assert len(told.events) == 2 * (3 + 9 + 27)
    assert untold.events == []


def test_who_is_about_to_be_reached_is_not_stuck():
    stage = star(at_once, (0, "broadcast", 0, [1, 2, 3], 100, -1, "none"))
    stage.nodes[1].gather("model", -1, [0])
    assert stage.nodes[1].stuck
    found = []
    for at_us in (10, 1299, 1301):
        stage.clock.after(at_us, lambda: found.append(stage.nodes[1].stuck))
    stage.play()
    assert found == [False, False, True]  # its handler takes the message away from the gathering


@pytest.mark.slow
def test_a_sender_with_other_receivers_each_time_keeps_no_ways_to_the_old_ones():
    turns = [(2000 * turn, 1 + turn % 3, 1 + (turn + 1) % 3) for turn in range(50)]
    stage = star(at_once, *((at_us, "broadcast", 0, [a, b], 9, -1, "none") for at_us, a, b in turns))
    stage.clock.run()
    gc.collect()
    assert sum(type(thing) is Fan and thing.src is stage.nodes[0] for thing in gc.get_objects()) == 1
    assert stage.network.traffic[0] == Traffic(up=900)


@both
def test_nobody_to_send_to(cast):
    assert star(cast, (0, "broadcast", 0, [], 80, -1, "note")).play()["events"] == []
