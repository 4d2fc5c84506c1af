from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.world.net.network import Message


@pytest.fixture
def node(make):
    """A node that needs a millisecond for each sample."""
    return make(nx.path_graph(2), devices={"seconds_per_sample": 0.001}).nodes[0]


def ending(node, job):
    """Note when a job ends, and how."""
    ends = []
    job.callbacks.append(lambda event: ends.append((node.clock.now, event.value)))
    return ends


def counters(node):
    return node.work, node.wasted, node.busy_us


def test_a_computation_takes_work_times_pace(node):
    ends = ending(node, node.compute(7, round=3))
    node.clock.run()
    assert ends == [(7000, True)]
    assert counters(node) == (7, 0, 7000)


def test_what_is_computed_is_written_down(make, watch):
    world = make(nx.path_graph(2))
    events = watch(world)
    world.nodes[1].compute(7, round=3)
    world.clock.run()
    assert events == [(0, "compute", 1, -1, 7, 3), (7000, "done", 1, -1, 7, 3)]


@pytest.mark.parametrize(
    ("work", "seconds", "us"),
    [
        (1, 1e-6, 1),
        (1, 1.1e-6, 2),  # 1.1 µs, rounded up
        (10, 1.1e-6, 11),
        (3, 3e-7, 1),  # 0.9 µs
        (4, 3e-7, 2),  # 1.2 µs
        (1, 1e-12, 1),
        (10**6, 1e-12, 1),
        (10**6 + 1, 1e-12, 2),
        (1000, 0.000123456, 123_456),
        (0, 1, 0),
    ],
)
def test_durations_are_rounded_up_to_microseconds(make, work, seconds, us):
    node = make(nx.path_graph(2), devices={"seconds_per_sample": seconds}).nodes[0]
    ends = ending(node, node.compute(work))
    node.clock.run()
    assert ends == [(us, True)]
    assert counters(node) == (work, 0, us)


def test_jobs_queue_up_and_one_runs_at_a_time(make, watch):
    world = make(nx.path_graph(2))
    events, node = watch(world), world.nodes[0]
    first, second = ending(node, node.compute(5)), ending(node, node.compute(2))
    late = []
    world.clock.after(6000, lambda: late.append(ending(node, node.compute(1))))
    world.clock.run()
    assert (first, second, late) == ([(5000, True)], [(7000, True)], [[(8000, True)]])
    assert [(time, kind, size) for time, kind, _, _, size, _ in events] == [
        (0, "compute", 5),
        (5000, "done", 5),
        (5000, "compute", 2),
        (7000, "done", 2),
        (7000, "compute", 1),
        (8000, "done", 1),
    ]
    assert counters(node) == (8, 0, 8000)


def test_two_nodes_compute_side_by_side(make):
    world = make(nx.path_graph(2))
    ends = [ending(node, node.compute(4)) for node in world.nodes]
    world.clock.run()
    assert ends == [[(4000, True)]] * 2


def test_no_work_takes_no_time_but_waits_its_turn(node):
    node.compute(3)
    ends = ending(node, node.compute(0))
    node.clock.run()
    assert ends == [(3000, True)]
    assert counters(node) == (3, 0, 3000)


def test_a_node_that_is_offline_computes_nothing(make, watch):
    world = make(nx.path_graph(2))
    node = world.nodes[0]
    node.set_online(False)
    events = watch(world)
    ends = ending(node, node.compute(5))
    world.clock.after(1, node.set_online, True)
    world.clock.run()
    assert ends == [(0, False)]
    assert [kind for _, kind, *_ in events] == ["online"]
    assert counters(node) == (0, 0, 0)


@pytest.mark.parametrize(("moment", "part"), [(0, 0), (999, 0), (1000, 1), (2500, 2), (6999, 6)])
def test_going_offline_interrupts_and_wastes_what_was_done(make, watch, moment, part):
    world = make(nx.path_graph(2))
    events, node = watch(world), world.nodes[0]
    ends = ending(node, node.compute(7, round=2))
    world.clock.after(moment, node.set_online, False)
    world.clock.run()
    assert ends == [(moment, False)]
    assert counters(node) == (part, part, moment)
    assert events == [
        (0, "compute", 0, -1, 7, 2),
        (moment, "offline", 0, -1, 0, -1),
        (moment, "aborted", 0, -1, part, 2),
    ]


def test_partial_work_counts_whole_samples_however_the_duration_was_rounded(make):
    # 10 samples of 0.3 µs take 3 µs; of 0.33 µs, 3.3, rounded up to 4 µs.
    for seconds, moment, part in ((3e-7, 1, 3), (3e-7, 2, 6), (3.3e-7, 1, 3), (3.3e-7, 2, 6), (3.3e-7, 3, 9)):
        node = make(nx.path_graph(2), devices={"seconds_per_sample": seconds}).nodes[0]
        node.compute(10)
        node.clock.after(moment, node.set_online, False)
        node.clock.run()
        assert counters(node) == (part, part, moment)


def test_going_offline_ends_the_queue_too_but_only_what_had_begun_is_wasted(make, watch):
    world = make(nx.path_graph(2))
    events, node = watch(world), world.nodes[0]
    ends = [ending(node, node.compute(work)) for work in (2, 5, 9)]
    world.clock.after(3000, node.set_online, False)
    world.clock.run()
    assert ends == [[(2000, True)], [(3000, False)], [(3000, False)]]
    assert counters(node) == (3, 1, 3000)
    assert [event[1] for event in events] == ["compute", "done", "compute", "offline", "aborted"]


def test_after_coming_back_a_new_job_starts_afresh(node):
    first = ending(node, node.compute(5))
    second = []
    node.clock.after(2000, node.set_online, False)
    node.clock.after(4000, node.set_online, True)
    node.clock.after(4500, lambda: second.append(ending(node, node.compute(3))))
    node.clock.run()
    assert first == [(2000, False)]
    assert second == [[(7500, True)]]
    assert counters(node) == (5, 2, 5000)


def test_the_value_of_an_interrupted_job_reaches_the_process_that_waits(node):
    seen = []

    def life():
        while True:
            yield node.back()
            if (yield node.compute(4)):
                seen.append(node.clock.now)
                return
            seen.append(-node.clock.now)

    node.clock.process(life())
    node.clock.after(1500, node.set_online, False)
    node.clock.after(5000, node.set_online, True)
    node.clock.run()
    assert seen == [-1500, 9000]
    assert counters(node) == (5, 1, 5500)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 5)), min_size=1, max_size=8),
    st.lists(st.integers(0, 9000), max_size=6),
)
def test_work_is_either_done_or_wasted_and_time_is_never_counted_twice(make, watch, jobs, switches):
    world = make(nx.path_graph(2))
    events, node = watch(world), world.nodes[0]
    results = []
    for moment, work in jobs:
        world.clock.after(
            moment, lambda w=work: node.compute(w).callbacks.append(lambda e: results.append((w, e.value)))
        )
    for moment in switches:
        world.clock.after(moment, lambda: node.set_online(not node.online))
    world.clock.run()
    assert sorted(work for work, _ in results) == sorted(work for _, work in jobs)
    assert node.work - node.wasted == sum(work for work, finished in results if finished)
    assert node.wasted == sum(event[4] for event in events if event[1] == "aborted")
    running = sum({"compute": -1, "done": 1, "aborted": 1}.get(kind, 0) * time for time, kind, *_ in events)
    assert node.busy_us == running
    assert 0 <= node.busy_us - 1000 * node.work < 1000 * (len(switches) + 1)


def test_switching_to_what_it_is_changes_nothing(make, watch):
    world = make(nx.path_graph(2))
    events, node, calls = watch(world), world.nodes[0], []
    node.on_change += (lambda n: calls.append((n.id, n.online)),)
    for online in (True, False, False, True, True):
        node.set_online(online)
    assert [event[1] for event in events] == ["offline", "online"]
    assert calls == [(0, False), (0, True)]


def test_a_crash_is_for_good(make, watch):
    world = make(nx.path_graph(2), network={"latency_ms": 20, "edge_mbps": 8})
    events, (node, other) = watch(world), world.nodes
    calls, ends = [], ending(node, node.compute(5))
    node.on_change += (lambda n: calls.append(n.online),)
    other.send(node, Message("model", None, 936))
    world.clock.after(2000, node.crash)
    world.clock.after(3000, node.set_online, True)
    world.clock.after(4000, node.crash)
    world.clock.run()
    assert (node.online, node.crashed, node.stuck) == (False, True, True)
    assert events[2:] == [
        (2000, "crash", 0, -1, 0, -1),
        (2000, "offline", 0, -1, 0, -1),
        (2000, "lost", 1, 0, 1000, -1),
        (2000, "aborted", 0, -1, 2, -1),
    ]
    assert ends == [(2000, False)]
    assert calls == [False]


def test_a_node_that_is_offline_can_crash(make, watch):
    world = make(nx.path_graph(2))
    events, node = watch(world), world.nodes[0]
    node.set_online(False)
    back = node.back()
    node.crash()
    node.set_online(True)
    world.clock.run()
    assert [event[1] for event in events] == ["offline", "crash"]
    assert (node.online, node.crashed, back.triggered) == (False, True, False)


def test_back_happens_at_once_for_a_node_that_is_online(node):
    back = node.back()
    node.clock.run()
    assert back.processed
    assert node.clock.now == 0


def test_back_happens_for_everybody_who_waits_and_each_time_anew(node):
    seen = []

    def wait(name):
        yield node.back()
        seen.append((name, node.clock.now))

    node.set_online(False)
    node.clock.process(wait("a"))
    node.clock.process(wait("b"))
    node.clock.after(10, node.set_online, True)
    node.clock.after(20, node.set_online, False)
    node.clock.after(25, lambda: node.clock.process(wait("c")))
    node.clock.after(30, node.set_online, True)
    node.clock.run()
    assert seen == [("a", 10), ("b", 10), ("c", 30)]


def test_a_handler_takes_messages_instead_of_the_inbox(make):
    world = make(nx.path_graph(2))
    a, b = world.nodes
    heard = []
    read = b.receive()
    b.on_message = heard.append
    a.send(b, Message("model", None, 10, 5))
    world.clock.run()
    assert [message.round for message in heard] == [5]
    assert not read.triggered


def test_a_node_remembers_the_latest_round_it_has_heard_of(make):
    world = make(nx.path_graph(2), network={"latency_ms": 1})
    a, b = world.nodes
    assert b.heard == 0
    for round in (3, 7, -1, 5):
        a.send(b, Message("model", None, 10, round))
    world.clock.run()
    assert (a.heard, b.heard) == (0, 7)


def test_a_node_names_its_role_and_id(make):
    assert repr(make(nx.star_graph(3), server=True).nodes[3]) == "<server 3>"
    assert repr(make(nx.path_graph(2)).nodes[0]) == "<peer 0>"


def test_stuck_means_that_only_a_message_could_help(make):
    world = make(nx.path_graph(2), network={"latency_ms": 20})
    a, b = world.nodes
    assert not a.stuck  # nobody reads: it may wait for something of its own
    b.receive()
    assert b.stuck
    job = b.compute(1)
    assert not b.stuck
    world.clock.run(until=job)
    assert b.stuck
    a.send(b, Message("other", None, 1))
    assert not b.stuck
    world.clock.run()
    assert not b.stuck  # it has got its message and reads no more


def test_a_node_that_is_awaited_back_is_not_stuck(node):
    node.receive()
    node.set_online(False)
    assert node.stuck
    node.back()
    assert not node.stuck
    node.set_online(True)
    assert node.stuck


def test_waiting_with_a_timeout_is_not_being_stuck(node):
    node.gather("model", 1, [1], timeout_us=50)
    assert not node.stuck
    node.gather("model", 2, [1])
    assert not node.stuck
    node.clock.run()
    assert node.stuck  # the one with the timeout is over


def test_a_node_says_what_it_waits_for(node):
    assert node.waiting_for() == "nothing"
    node.receive()
    assert node.waiting_for() == "a message"
    node.gather("model", 4, [3, 1])
    assert node.waiting_for() == "model of round 4 from [1, 3]"
    node.gather("score", 5, [2])
    assert node.waiting_for() == "model of round 4 from [1, 3], score of round 5 from [2]"
    node.deliver(Message("model", None, 0, 4, src=3))
    assert node.waiting_for().startswith("model of round 4 from [1], ")
    node.set_online(False)
    assert node.waiting_for() == "to come back online"
