from __future__ import annotations

import weakref

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.net.network import Message


@pytest.fixture
def node(make):
    return make(nx.path_graph(2)).nodes[0]


def text(payload, kind="text", round=-1, src=1):
    return Message(kind, payload, 10, round, src)


def model(round, src):
    return Message("model", f"{src}.{round}", 10, round, src)


def hear(node, *messages):
    for message in messages:
        node.deliver(message)


def payloads(event):
    """What a gather that is over has heard, by sender."""
    return {sender: message.payload for sender, message in event.value.items()}


def late(events):
    return [(time, peer, round) for time, kind, _, peer, _, round in events if kind == "late"]


def test_messages_are_read_in_the_order_of_their_arrival(node):
    hear(node, text("a"), text("b"), text("c"))
    assert [node.receive().value.payload for _ in range(3)] == ["a", "b", "c"]
    assert not node.receive().triggered


def test_readers_are_served_in_the_order_of_their_asking(node):
    first, second = node.receive(), node.receive()
    hear(node, text("a"))
    assert first.value.payload == "a"
    assert not second.triggered
    hear(node, text("b"))
    assert second.value.payload == "b"


def test_a_reader_gets_the_first_message_that_matches_and_leaves_the_others(node):
    hear(node, text("a", "noise"), text("b", "wanted"), text("c", "wanted"))
    wanted = [node.receive(lambda m: m.kind == "wanted").value.payload for _ in range(2)]
    assert wanted == ["b", "c"]
    assert node.receive().value.payload == "a"


def test_a_message_goes_to_the_first_reader_whom_it_suits(node):
    picky = node.receive(lambda m: m.src == 7)
    second, third = node.receive(), node.receive()
    hear(node, text("a", src=1), text("b", src=7))
    assert picky.value.payload == "b"
    assert second.value.payload == "a"
    assert not third.triggered


def test_a_process_receives_what_was_sent(make):
    world = make(nx.path_graph(2), network={"latency_ms": 20})
    a, b = world.nodes
    seen = []

    def life():
        while True:
            message = yield b.receive()
            seen.append((world.clock.now, message.src, message.payload))

    world.clock.process(life())
    a.send(b, text("early"))
    world.clock.after(5, a.send, b, text("later"))
    world.clock.run()
    assert seen == [(20_000, 0, "early"), (20_005, 0, "later")]


def test_gather_waits_for_all_and_sorts_by_sender(node):
    gather = node.gather("model", 1, [3, 1, 2])
    hear(node, model(1, 2), model(1, 3))
    assert not gather.triggered
    assert gather.missing == {1}
    hear(node, model(1, 1))
    assert list(payloads(gather).items()) == [(1, "1.1"), (2, "2.1"), (3, "3.1")]


def test_gather_takes_what_is_already_there(node):
    hear(node, model(1, 3), model(1, 2))
    assert payloads(node.gather("model", 1, [2, 3])) == {2: "2.1", 3: "3.1"}


def test_gather_mixes_what_was_there_with_what_comes(node):
    hear(node, model(1, 3))
    gather = node.gather("model", 1, [2, 3])
    assert gather.missing == {2}
    hear(node, model(1, 2))
    assert payloads(gather) == {2: "2.1", 3: "3.1"}


def test_nothing_is_kept_of_what_has_been_read(node):
    for round in range(20):
        hear(node, model(round, 1), model(round, 2))
        assert [node.receive().value.src for _ in range(2)] == [1, 2]
    assert node._inbox._items == {}


def test_what_a_gather_has_heard_is_not_kept_until_its_time_would_be_up(node):
    class Model:
        pass

    gather, payload = node.gather("model", 1, [1], timeout_us=10**9), Model()
    hear(node, Message("model", payload, 10, 1, 1))
    assert node.clock.wait(gather, lambda: "it")[1].payload is payload
    kept = weakref.ref(payload)
    del gather, payload
    assert kept() is None
    node.clock.run()
    assert node.clock.now == 10**9


def test_gather_from_nobody_is_over_at_once(node):
    assert node.gather("model", 1, []).value == {}
    assert node.waiting_for() == "nothing"


def test_gather_with_a_timeout_returns_what_it_has(node):
    gather = node.gather("model", 1, [2, 3], timeout_us=500)
    node.clock.after(499, node.deliver, model(1, 3))
    assert {s: m.payload for s, m in node.clock.wait(gather, lambda: "it").items()} == {3: "3.1"}
    assert node.clock.now == 500


def test_gather_with_a_timeout_may_have_nothing(node):
    gather = node.gather("model", 1, [2, 3], timeout_us=0)
    assert node.clock.wait(gather, lambda: "it") == {}
    assert node.clock.now == 0


def test_the_timeout_of_a_gather_that_is_over_does_nothing(node):
    gather = node.gather("model", 1, [2], timeout_us=500)
    hear(node, model(1, 2))
    node.clock.run()
    assert payloads(gather) == {2: "2.1"}
    assert node.gather("model", 2, [2], timeout_us=1000).triggered is False
    assert not node.stuck


def test_what_comes_after_the_timeout_is_late_and_written_down(make, watch):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    node.gather("model", 3, [1, 2, 5], timeout_us=500)
    for moment, message in ((400, model(3, 1)), (600, model(3, 2)), (700, model(2, 5)), (800, model(4, 5))):
        world.clock.after(moment, node.deliver, message)
    world.clock.run()
    assert late(events) == [(600, 2, 3), (700, 5, 2)]
    assert payloads(node.gather("model", 4, [5])) == {5: "5.4"}
    assert not node.receive().triggered


def test_late_concerns_one_kind_only_and_never_messages_without_a_round(make, watch):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    hear(node, model(-1, 1))
    node.gather("model", 9, [])
    hear(node, text("a", "score", 2), text("b", "model", -1))
    assert late(events) == []
    assert [node.receive().value.payload for _ in range(3)] == ["1.-1", "a", "b"]


def test_early_messages_wait_for_their_round(make, watch):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    hear(node, model(2, 1), model(3, 1), model(1, 1), model(2, 4))
    assert payloads(node.gather("model", 1, [1])) == {1: "1.1"}
    assert payloads(node.gather("model", 2, [1, 4])) == {1: "1.2", 4: "4.2"}
    assert payloads(node.gather("model", 3, [1])) == {1: "1.3"}
    assert late(events) == []


def test_rounds_that_are_skipped_are_late_in_the_end(make, watch):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    hear(node, model(1, 4), model(2, 4), model(5, 4))
    gather = node.gather("model", 5, [4, 6])
    hear(node, model(3, 4))
    assert late(events) == []
    hear(node, model(5, 6))
    assert payloads(gather) == {4: "4.5", 6: "6.5"}
    assert late(events) == [(0, 4, 1), (0, 4, 2), (0, 4, 3)]
    assert not node.receive().triggered


def test_the_second_message_of_a_sender_and_a_strangers_are_not_taken(make, watch):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    gather = node.gather("model", 1, [2, 3])
    hear(node, model(1, 2), Message("model", "again", 10, 1, 2), model(1, 9), model(1, 3))
    assert payloads(gather) == {2: "2.1", 3: "3.1"}
    assert late(events) == [(0, 2, 1), (0, 9, 1)]


def test_two_gathers_of_different_kinds(node):
    models, scores = node.gather("model", 1, [2]), node.gather("score", 1, [2])
    hear(node, text(0.5, "score", 1, 2))
    assert not models.triggered
    assert payloads(scores) == {2: 0.5}
    hear(node, model(1, 2))
    assert payloads(models) == {2: "2.1"}


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_two_gathers_of_different_rounds_end_independently(make, watch, order):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    gathers = {round: node.gather("model", round, [4, 5]) for round in order}
    hear(node, model(2, 4), model(1, 4), model(2, 5))
    assert payloads(gathers[2]) == {4: "4.2", 5: "5.2"}
    assert not gathers[1].triggered
    hear(node, model(1, 5))
    assert payloads(gathers[1]) == {4: "4.1", 5: "5.1"}
    assert late(events) == []


def test_two_gathers_of_the_same_round_share_the_messages_out(node):
    left, right = node.gather("model", 1, [2], timeout_us=50), node.gather("model", 1, [3])
    hear(node, model(1, 3))
    assert payloads(right) == {3: "3.1"}
    assert not left.triggered
    hear(node, model(1, 2))
    assert payloads(left) == {2: "2.1"}


def test_the_end_of_one_gather_leaves_another_of_the_same_round_open(node):
    short, long = node.gather("model", 1, [2], timeout_us=50), node.gather("model", 1, [2, 3])
    node.clock.run()
    assert short.value == {}
    hear(node, model(1, 2), model(1, 3))
    assert payloads(long) == {2: "2.1", 3: "3.1"}


def test_a_gather_comes_before_a_reader(node):
    reader = node.receive()
    gather = node.gather("model", 1, [2])
    hear(node, model(1, 2), model(2, 2))
    assert payloads(gather) == {2: "2.1"}
    assert reader.value.payload == "2.2"


def test_a_round_can_be_gathered_again_but_what_was_late_is_gone(node):
    assert node.gather("model", 1, []).value == {}
    hear(node, model(1, 2))
    again = node.gather("model", 1, [2, 3])
    assert again.missing == {2, 3}
    hear(node, model(1, 3))
    assert again.missing == {2}


def test_messages_that_arrive_over_the_network_are_gathered(make, watch):
    world = make(nx.star_graph(3), network={"latency_ms": 2, "edge_mbps": 8, "header_bytes": 0})
    events, hub = watch(world), world.nodes[0]
    for node in world.nodes[1:]:
        node.send(hub, Message("model", node.id, 1000 * node.id, 1))
    gather = hub.gather("model", 1, [1, 2, 3], timeout_us=4500)
    world.clock.run()
    # They arrive after 3, 4 and 5 ms; the third one is late.
    assert payloads(gather) == {1: 1, 2: 2}
    assert late(events) == [(5000, 3, 1)]


@settings(max_examples=50, deadline=None)
@given(st.permutations([(round, src) for round in (1, 2, 3) for src in (4, 5)]), st.integers(0, 6))
def test_lock_step_rounds_lose_nothing_whatever_the_order_of_arrival(make, watch, order, before):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    seen = []

    def life():
        for round in (1, 2, 3):
            seen.append((yield node.gather("model", round, [4, 5])))

    hear(node, *(model(*key) for key in order[:before]))
    world.clock.process(life())
    for delay, key in enumerate(order[before:], start=1):
        world.clock.after(delay, node.deliver, model(*key))
    world.clock.run()
    assert [{s: m.payload for s, m in heard.items()} for heard in seen] == [
        {4: f"4.{round}", 5: f"5.{round}"} for round in (1, 2, 3)
    ]
    assert late(events) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 4), st.integers(1, 3)), max_size=15),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4), st.integers(1, 90)), max_size=5),
)
def test_every_message_is_gathered_once_or_late_or_still_there(make, watch, messages, gathers):
    world = make(nx.path_graph(2))
    node, events = world.nodes[0], watch(world)
    heard = []
    for moment, round, src in messages:
        world.clock.after(moment, node.deliver, model(round, src))
    for moment, round, timeout_us in gathers:

        def ask(round=round, timeout_us=timeout_us):
            gather = node.gather("model", round, [1, 2], timeout_us)
            gather.callbacks.append(lambda event: heard.extend(event.value.values()))

        world.clock.after(moment, ask)
    world.clock.run()
    left = []
    while (event := node.receive()).triggered:
        left.append(event.value)
    fates = [(m.round, m.src) for m in heard + left] + [(round, peer) for _, peer, round in late(events)]
    assert sorted(fates) == sorted((round, src) for _, round, src in messages)
    over = max((round for _, round, _ in gathers), default=-1)
    assert all(message.round > over for message in left)
