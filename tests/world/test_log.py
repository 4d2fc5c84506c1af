from __future__ import annotations

import hashlib
import struct
from itertools import permutations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.clock import Clock
from fedsim.world.log import BUFFER, KINDS, EventLog, pack_pair
from fedsim.world.net.network import Message

SMALL = st.integers(-1, 2**31 - 1)
ENTRY = st.tuples(st.integers(0, 10**9), st.sampled_from(KINDS), SMALL, SMALL, st.integers(0, 2**40), SMALL)


def digest(entries):
    """Write entries (delay_us, kind, node, peer, size, round) down and return the log's hash."""
    clock = Clock()
    log = EventLog(clock)
    for delay, *entry in entries:
        clock.run(until=clock.timeout(delay))
        log.add(*entry)
    return log.hexdigest()


def test_an_empty_log_is_the_hash_of_nothing():
    assert EventLog(Clock()).hexdigest() == hashlib.sha256(b"").hexdigest()


def test_the_bytes_of_an_event_are_fixed():
    # Time, the kind's place in the list, node, peer, size, round: little-endian, 8 + 1 + 4 + 4 + 8 + 4 bytes.
    expected = struct.pack("<q", 1500) + b"\x01" + struct.pack("<ii", 3, 4)
    expected += struct.pack("<q", 10**12) + struct.pack("<i", -1)
    assert len(expected) == 29
    assert digest([(1500, "deliver", 3, 4, 10**12, -1)]) == hashlib.sha256(expected).hexdigest()


def test_the_kinds_keep_their_places():
    # Appending a kind keeps old hashes; reordering them would not.
    known = "send deliver lost late compute done aborted online offline crash round"
    assert " ".join(KINDS).startswith(known)
    assert len(set(KINDS)) == len(KINDS)


def test_a_kind_that_does_not_exist_is_refused():
    with pytest.raises(KeyError, match="sned"):
        EventLog(Clock()).add("sned", 0)


def test_the_listener_sees_every_event_with_its_time():
    clock = Clock()
    seen = []
    log = EventLog(clock, lambda *event: seen.append(event))
    log.add("online", 2)
    clock.after(7, lambda: log.add("send", 0, peer=1, size=1000, round=4))
    clock.run()
    assert seen == [(0, "online", 2, -1, 0, -1), (7, "send", 0, 1, 1000, 4)]


def test_a_series_goes_on_when_something_else_is_written_between():
    clock = Clock()
    logs = [EventLog(clock) for _ in range(2)]
    clock.run(until=clock.timeout(1))
    write = logs[0].writer("deliver", 10, 3)
    for node in range(3):
        write(pack_pair(node, 9))
        logs[0].add("late", node)
        logs[1].add("deliver", node, 9, 10, 3)
        logs[1].add("late", node)
    assert logs[0].hexdigest() == logs[1].hexdigest()


def test_series_alone_do_not_fill_the_memory():
    clock = Clock()
    log = EventLog(clock)
    clock.run(until=clock.timeout(1))
    for round in range(3):
        write = log.writer("send", 10, round)
        for node in range(3000):
            write(pack_pair(node, 9))
    log.writer("send", 10, 4)
    assert len(log._buffer) < BUFFER < 3 * 3000 * 29  # bytes of an event


def test_listening_does_not_change_the_hash():
    quiet, heard = EventLog(Clock()), EventLog(Clock(), lambda *event: None)
    for log in (quiet, heard):
        log.add("send", 0, peer=1, size=1000)
    assert quiet.hexdigest() == heard.hexdigest()


@settings(max_examples=50, deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=6), st.data())
def test_any_change_of_any_field_changes_the_hash(entries, data):
    assert digest(entries) == digest(list(entries))
    index = data.draw(st.integers(0, len(entries) - 1))
    place = data.draw(st.integers(0, 5))
    changed = [list(entry) for entry in entries]
    changed[index][place] = data.draw(ENTRY.map(lambda entry: entry[place]))
    assert (digest(changed) == digest(entries)) == (changed == [list(entry) for entry in entries])


def test_order_matters_even_within_a_microsecond():
    three = [(0, "offline", node, -1, 0, -1) for node in range(3)]
    assert len({digest(order) for order in permutations(three)}) == 6


def test_the_same_script_gives_the_same_hash_and_any_other_timing_another(make):
    def run(latency_ms=5, size=1000, first=1, delay_us=10):
        world = make(nx.path_graph(3), network={"latency_ms": latency_ms, "up_mbps": 8})
        a, b, c = world.nodes
        order = (b, c) if first == 1 else (c, b)
        for to in order:
            a.send(to, Message("model", None, size))
        world.clock.after(delay_us, c.compute, 4)
        world.clock.run()
        return world.log.hexdigest()

    assert run() == run()
    others = {run(latency_ms=6), run(size=1001), run(first=2), run(delay_us=11)}
    assert len(others | {run()}) == 5


def test_payloads_do_not_enter_the_log(make):
    hashes = set()
    for payload in (None, "weights", [1.0, 2.0]):
        world = make(nx.path_graph(2))
        world.nodes[0].send(world.nodes[1], Message("model", payload, 10))
        world.clock.run()
        hashes.add(world.log.hexdigest())
    assert len(hashes) == 1


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("moment_us", [0, 5])
def test_like_events_are_written_as_one_after_the_other(told, moment_us):
    """Whether somebody listens or not, at the start (where all is kept for a listener to come) and later."""
    logs, heard = [], []
    for together in (True, False):
        clock = Clock()
        log = EventLog(clock, (lambda *event: heard.append(event)) if told else None)
        clock.after(moment_us, log.add, "compute", 4)
        clock.run()
        if together:
            log.add_all("send", [pack_pair(1, 2), pack_pair(1, 3)], 100, 7)
        else:
            log.add("send", 1, 2, 100, 7)
            log.add("send", 1, 3, 100, 7)
        log.add("done", 4)
        logs.append(log)
    assert logs[0].hexdigest() == logs[1].hexdigest()
    assert logs[0].early == logs[1].early
    assert heard[:4] == heard[4:]
    assert len(heard) == 8 * told
