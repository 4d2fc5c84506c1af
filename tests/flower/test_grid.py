"""The grid on the event plane: times to the microsecond, losses, waiting, and what a strategy can rely on.

All times are derived by hand from one little world: every client has a line of its own with 10 ms of latency and
1 Mbit/s both ways, 1 ms per sample, 64 bytes of header. The instruction has 625 bytes with its header (528 + 7 for the
arrays, 20 + 6 for the configuration), so it takes 5,000 µs to send; the reply has 626 bytes (528 + 7 and 20 + 7) and
takes 5,008 µs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import strategy_utils

from fedsim.errors import RunError, StalledError
from fedsim.flower import compat
from fedsim.flower.records import pack
from fedsim.flower.simulate.grid import SimGrid
from fedsim.flower.simulate.instruction import Watch, round_of
from fedsim.learn.deferred import Deferred
from fedsim.running.exchange import TimeUp
from fedsim.spec.experiment import load
from fedsim.world import world as worlds
from topologies.graphs import star

DOWN_US, WORK_US, UP_US = 15_000, 30_000, 15_008
ARRIVAL_US = DOWN_US + WORK_US + UP_US
DETECT_US = 2_000_000
DOWN_BYTES, UP_BYTES = 625, 626


class Once:
    """A vector of 100 zeros that notes with how many others it is computed."""

    batch = "once"

    def __init__(self, ran):
        self.ran = ran

    def run(self, calls, inputs):
        self.ran.append(len(calls))
        return [torch.zeros(100) for _ in calls]


class Clients:
    """Clients that work as long as they are told to and send 100 numbers back."""

    def __init__(self, works):
        self.works, self.seen, self.ran = works, [], []

    def work(self, client, message):
        return self.works[client]

    def answer(self, client, message, sim_time_s):
        self.seen.append((client, message, sim_time_s))
        arrays = pack(Deferred(Once(self.ran), {}), [("w", (100,))])
        return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 5})})


def make(*works, limit_s=None, **blocks):
    """Return a grid and the events of its world."""
    network = {"latency_ms": 10, "edge_mbps": 1, "header_bytes": 64}
    file = {
        "data": {"clients": len(works)},
        "strategy": "fedavg",
        "stop": {"rounds": 1},
        "network": network,
        "devices": {"seconds_per_sample": 0.001},
    }
    experiment = load({**file, **blocks})
    world = worlds.build(experiment, star(len(works) + 1), True)
    events = []
    world.log.listen(lambda *event: events.append(event))
    worlds.start(world, experiment)
    return SimGrid(world, Clients(list(works)), DETECT_US / 1e6, limit_s), events


def instruction(node, round=1, kind="train"):
    arrays = ArrayRecord({"w": Array(np.zeros(100, dtype=np.float32))})
    config = ConfigRecord({"server-round": round})
    return Message(RecordDict({"arrays": arrays, "config": config}), node, kind)


def senders(replies):
    return [reply.metadata.src_node_id for reply in replies]


def at(grid, us, call, *args):
    grid.world.clock.after(us, call, *args)


@pytest.fixture(autouse=True)
def session():
    """Messages need an identity outside of a run, too."""
    with compat.session(0, 99, lambda _: None):
        yield


# times


def test_one_reply_arrives_to_the_microsecond():
    grid, events = make(30)
    replies = grid.send_and_receive([instruction(0)])
    assert grid.world.clock.now == ARRIVAL_US == 60_008
    assert senders(replies) == [0]
    assert events == [
        (0, "send", 1, 0, DOWN_BYTES, 1),
        (DOWN_US, "deliver", 0, 1, DOWN_BYTES, 1),
        (DOWN_US, "compute", 0, -1, 30, 1),
        (DOWN_US + WORK_US, "done", 0, -1, 30, 1),
        (DOWN_US + WORK_US, "send", 0, 1, UP_BYTES, 1),
        (ARRIVAL_US, "deliver", 1, 0, UP_BYTES, 1),
    ]


def test_the_narrowest_place_counts():
    network = {"latency_ms": 10, "up_mbps": 2, "down_mbps": 4, "edge_mbps": 0.5, "header_bytes": 64}
    grid, _ = make(0, network=network)
    grid.send_and_receive([instruction(0)])
    assert grid.world.clock.now == 10_000 + 10_000 + 10_000 + 10_016


def test_a_client_answers_when_its_work_is_done():
    grid, _ = make(30)
    grid.send_and_receive([instruction(0)])
    ((client, message, sim_time_s),) = grid.clients.seen
    assert (client, sim_time_s) == (0, 0.045)
    assert message.metadata.message_type == "train"


def test_rounds_follow_one_another():
    grid, _ = make(30)
    for round in (1, 2, 3):
        grid.send_and_receive([instruction(0, round)])
    assert grid.world.clock.now == 3 * ARRIVAL_US
    assert grid.updates == 3


def test_a_client_does_one_thing_after_another():
    grid, _ = make(30, network={"latency_ms": 10})
    replies = grid.send_and_receive([instruction(0, 1), instruction(0, 2)])
    assert len(replies) == 2
    assert grid.world.clock.now == 10_000 + 2 * WORK_US + 10_000


def test_replies_come_in_the_order_of_arrival():
    grid, _ = make(30, 10, 20)
    assert senders(grid.send_and_receive([instruction(node) for node in (0, 1, 2)])) == [1, 2, 0]


def test_replies_at_the_same_time_come_in_the_order_of_sending():
    grid, _ = make(30, 30, 30)
    assert senders(grid.send_and_receive([instruction(node) for node in (2, 0, 1)])) == [2, 0, 1]


def test_nothing_to_send_takes_no_time():
    grid, _ = make(30)
    assert grid.send_and_receive([], timeout=60) == []
    assert grid.world.clock.now == 0


# stragglers


def test_a_timeout_drops_stragglers():
    grid, events = make(30, 100_000)
    for round in (1, 2, 3):
        replies = grid.send_and_receive([instruction(node, round) for node in (0, 1)], timeout=60.0)
        assert senders(replies) == [0]
    assert grid.world.clock.now_s == 180.0
    straggler = grid.world.nodes[1]
    assert [event for event in events if event[1] == "late"] == [
        (DOWN_US + 100_000_000 + UP_US, "late", 2, 1, UP_BYTES - 64, 1)
    ]
    assert straggler.wasted == 100_000
    assert grid.world.nodes[0].wasted == 0
    assert grid.updates == 3


def test_a_late_reply_is_never_computed():
    grid, _ = make(30, 100_000)
    grid.send_and_receive([instruction(0), instruction(1)], timeout=60.0)
    (reply,) = grid.send_and_receive([instruction(0, 2)])
    at(grid, 200_000_000, int)
    grid.world.clock.run(until=200_000_000)
    assert len(grid.clients.seen) == 3  # the late one has been sent, too
    reply.content["arrays"]["w"].numpy()
    assert grid.clients.ran == [1]


def test_a_microsecond_decides_about_being_late():
    enough, early = make(30)[0], make(30)[0]
    assert senders(enough.send_and_receive([instruction(0)], timeout=(ARRIVAL_US + 1) / 1e6)) == [0]
    assert senders(early.send_and_receive([instruction(0)], timeout=(ARRIVAL_US - 1) / 1e6)) == []
    assert early.world.clock.now == ARRIVAL_US - 1


# offline


def assert_unavailable(reply, node):
    assert reply.has_error()
    assert reply.error.code == 5
    assert reply.error.reason == f"client {node} went offline"
    assert reply.metadata.src_node_id == node


def test_an_offline_client_gives_error_5_once_the_server_has_noticed():
    grid, _ = make(30, 30)
    grid.world.nodes[1].set_online(False)
    first, second = grid.send_and_receive([instruction(0), instruction(1)])
    assert first.has_content()
    assert_unavailable(second, 1)
    assert grid.world.clock.now == DETECT_US
    assert grid.world.totals()["bytes_lost"] == 64  # only a header


def test_going_offline_while_receiving():
    grid, _ = make(30)
    at(grid, 2_000, grid.world.nodes[0].set_online, False)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert_unavailable(reply, 0)
    assert grid.world.clock.now == 2_000 + DETECT_US
    assert grid.world.network.traffic[1].lost == 250  # 2 of 5 ms of 625 bytes
    assert grid.world.totals()["work"] == 0


def test_going_offline_while_computing():
    grid, _ = make(30)
    node = grid.world.nodes[0]
    at(grid, DOWN_US + 12_000, node.set_online, False)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert_unavailable(reply, 0)
    assert grid.world.clock.now == DOWN_US + 12_000 + DETECT_US
    assert (node.work, node.wasted) == (12, 12)
    assert grid.clients.seen == []


def test_going_offline_while_sending():
    grid, _ = make(30)
    node = grid.world.nodes[0]
    at(grid, 50_000, node.set_online, False)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert_unavailable(reply, 0)
    assert grid.world.clock.now == 50_000 + DETECT_US
    assert (node.work, node.wasted) == (30, 30)
    assert grid.world.network.traffic[0].lost == 625  # 5,000 of 5,008 µs of 626 bytes
    assert grid.updates == 0


def test_going_offline_after_sending_is_too_late_to_matter():
    grid, _ = make(30)
    at(grid, 50_009, grid.world.nodes[0].set_online, False)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_content()
    assert grid.world.clock.now == ARRIVAL_US


def test_a_crash_is_noticed_like_any_absence_and_lasts():
    grid, events = make(30, 30)
    at(grid, DOWN_US + 1_000, grid.world.nodes[0].crash)
    replies = grid.send_and_receive([instruction(0), instruction(1)])
    assert senders(replies) == [1, 0]
    assert_unavailable(replies[1], 0)
    assert [event[:3] for event in events if event[1] == "crash"] == [(DOWN_US + 1_000, "crash", 0)]
    grid.world.nodes[0].set_online(True)
    assert grid.get_node_ids() == [1]


def test_an_error_after_the_timeout_reaches_nobody():
    grid, _ = make(30)
    grid.world.nodes[0].set_online(False)
    assert grid.send_and_receive([instruction(0)], timeout=1.0) == []
    assert grid.world.clock.now == 1_000_000
    grid.world.nodes[0].set_online(True)
    (reply,) = grid.send_and_receive([instruction(0, 2)])
    assert reply.has_content()


def test_every_byte_sent_is_received_or_lost():
    churn = {"name": "exponential", "online_s": 0.2, "offline_s": 0.1}
    grid, events = make(30, 10, 20, churn=churn)
    for round in range(1, 20):
        grid.send_and_receive([instruction(node, round) for node in range(3)], timeout=5.0)
    totals = grid.world.totals()
    assert totals["bytes_up"] == totals["bytes_down"] + totals["bytes_lost"]
    assert totals["bytes_lost"] > 0
    assert totals["work"] == sum(event[4] for event in events if event[1] in ("done", "aborted"))
    assert 0 < totals["wasted"] < totals["work"]


# a strategy's own main loop


def test_push_takes_no_time_and_pull_waits_for_the_next_reply():
    grid, _ = make(30, 10)
    ids = grid.push_messages([instruction(0), instruction(1)])
    assert grid.world.clock.now == 0
    assert senders(grid.pull_messages(ids)) == [1]
    assert grid.world.clock.now == ARRIVAL_US - 20_000
    assert senders(grid.pull_messages(ids)) == [0]
    assert grid.world.clock.now == ARRIVAL_US
    assert list(grid.pull_messages(ids)) == []
    assert grid.world.clock.now == ARRIVAL_US


def test_replies_that_are_there_are_pulled_at_once():
    grid, _ = make(30, 10)
    first = grid.push_messages([instruction(1)])
    second = grid.push_messages([instruction(0)])
    assert senders(grid.pull_messages(second)) + senders(grid.pull_messages(second)) == [0]
    assert senders(grid.pull_messages(first)) == [1]
    assert grid.world.clock.now == ARRIVAL_US


def test_polling_one_message_after_another_misses_no_arrival():
    """Clients 0 to 2 work for 90, 10 and 30 ms: 2 is seen when it comes, not when 0 makes the server look again."""
    grid, _ = make(90, 10, 30)
    waiting = {node: grid.push_messages([instruction(node)]) for node in range(3)}
    seen = []
    while waiting:
        for node, ids in list(waiting.items()):
            if list(grid.pull_messages(ids)):
                seen.append((grid.world.clock.now, node))
                del waiting[node]
    assert seen == [(ARRIVAL_US - 20_000, 1), (ARRIVAL_US, 2), (ARRIVAL_US + 60_000, 0)]


def test_a_reply_that_nobody_pulls_holds_up_no_server_that_polls_another():
    grid, _ = make(30, 10)
    grid.push_messages([instruction(1)])
    ids, pulls = grid.push_messages([instruction(0)]), 0
    while not list(grid.pull_messages(ids)):
        pulls += 1
    assert (grid.world.clock.now, pulls) == (ARRIVAL_US, 1)


def test_an_asynchronous_main_loop():
    """Two clients, 10 and 30 samples, each gets new work as soon as it replies."""
    grid, _ = make(30, 10)
    ids = set(grid.push_messages([instruction(0), instruction(1)]))
    order = []
    while len(order) < 6:
        for reply in grid.pull_messages(ids):
            ids.discard(reply.metadata.reply_to_message_id)
            order.append((grid.world.clock.now, reply.metadata.src_node_id))
            ids |= set(grid.push_messages([instruction(reply.metadata.src_node_id)]))
    slow, fast = ARRIVAL_US, ARRIVAL_US - 20_000  # 60,008 and 40,008
    assert order == [
        (fast, 1),
        (slow, 0),
        (2 * fast, 1),
        (2 * slow, 0),
        (3 * fast, 1),
        (4 * fast, 1),
    ]


def test_pulling_an_offline_client_gives_its_error():
    grid, _ = make(30)
    grid.world.nodes[0].set_online(False)
    ids = grid.push_messages([instruction(0)])
    (reply,) = grid.pull_messages(ids)
    assert_unavailable(reply, 0)


# a wait among other messages


@pytest.mark.parametrize(
    ("quorum", "timeout_s", "heard", "end_us"),
    [
        (1.0, None, [3, 4], DOWN_US + 100_000 + UP_US),
        (0.5, None, [3], DOWN_US + 1_000 + UP_US),
        (1.0, 0.1, [3], 100_000),
    ],
)
def test_replies_to_other_messages_do_not_end_a_wait(quorum, timeout_s, heard, end_us):
    """Clients 0 to 2 answer another exchange at 60,008 µs, between the two that are waited for."""
    grid, _ = make(30, 30, 30, 1, 100)
    grid = SimGrid(grid.world, grid.clients, quorum=quorum)
    others = grid.push_messages([instruction(node) for node in range(3)])
    assert senders(grid.send_and_receive([instruction(3), instruction(4)], timeout=timeout_s)) == heard
    assert grid.world.clock.now == end_us
    came = []
    while len(came) < 3:
        came += senders(grid.pull_messages(others))
    assert came == [0, 1, 2]
    assert grid.world.clock.now == max(end_us, ARRIVAL_US)


def test_errors_of_other_messages_do_not_end_a_wait():
    """Client 0 is offline, which the server notices after 2 s; client 1 works for 3 s."""
    grid, _ = make(30, 3000)
    grid.world.nodes[0].set_online(False)
    grid.push_messages([instruction(0)])
    assert senders(grid.send_and_receive([instruction(1)])) == [1]
    assert grid.world.clock.now == DOWN_US + 3_000_000 + UP_US > DETECT_US


def test_replies_to_other_messages_do_not_end_a_pause():
    """It lasts for 0.1 s, and client 0 answers within."""
    grid, _ = make(30, 30)
    grid.world.nodes[1].set_online(False)
    at(grid, 500_000, grid.world.nodes[1].set_online, True)
    grid.push_messages([instruction(0)])
    grid.sleep(0.1)
    assert grid.world.clock.now == 100_000


# who is there


def test_node_ids_are_the_clients_that_are_online_sorted():
    grid, _ = make(1, 1, 1, 1)
    assert grid.get_node_ids() == [0, 1, 2, 3]
    grid.world.nodes[2].set_online(False)
    grid.world.nodes[0].crash()
    assert grid.get_node_ids() == [1, 3]
    grid.world.nodes[2].set_online(True)
    ids = grid.get_node_ids()
    assert ids == [1, 2, 3]
    assert all(type(id) is int for id in ids)


@pytest.mark.parametrize("target", [2, 3, 77])
def test_an_unknown_node_stops_the_run(target):
    grid, _ = make(1, 1)  # node 2 is the server itself
    with pytest.raises(RunError, match=f"sends to node {target}; clients are 0 to 1") as caught:
        grid.send_and_receive([instruction(target, 4)])
    assert (caught.value.round, caught.value.sim_time_s) == (4, 0.0)


def test_a_grid_needs_a_server():
    experiment = load({"data": {"clients": 3}, "strategy": "dpsgd", "stop": {"rounds": 1}})
    world = worlds.build(experiment, star(3), False)
    with pytest.raises(RunError, match="a method with a server needs one"):
        SimGrid(world, Clients([1, 1, 1]))


def test_a_server_that_has_crashed_stops_the_run():
    grid, _ = make(30)
    at(grid, 20_000, grid.world.server.crash)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_error()
    with pytest.raises(RunError, match="the server has crashed"):
        grid.send_and_receive([instruction(0, 2)])


# waiting for clients


def wait_for(grid, count):
    with compat.session(0, 99, grid.sleep):
        return strategy_utils.sample_nodes(grid, count, 0)[1]


def test_a_strategy_waits_in_simulated_time():
    grid, _ = make(1, 1, 1)
    grid.world.nodes[1].set_online(False)
    at(grid, 2_500_000, grid.world.nodes[1].set_online, True)
    assert wait_for(grid, 3) == [0, 1, 2]
    assert grid.world.clock.now == 3_000_000  # it looks once a second


def test_waiting_works_under_churn():
    churn = {"name": "exponential", "online_s": 60, "offline_s": 60}
    grid, _ = make(*[1] * 4, churn=churn)
    assert wait_for(grid, 4) == [0, 1, 2, 3]
    assert all(node.online for node in grid.world.members)


def test_waiting_for_more_clients_than_can_ever_come_stalls():
    grid, _ = make(1, 1, 1)
    grid.world.nodes[1].crash()
    with pytest.raises(StalledError, match=r"2 are online, 1 of \d+ have crashed") as caught:
        wait_for(grid, 3)
    assert caught.value.sim_time_s == 0.0


def test_waiting_stalls_as_soon_as_all_survivors_are_there():
    grid, _ = make(1, 1, 1)
    grid.world.nodes[0].set_online(False)
    at(grid, 4_200_000, grid.world.nodes[0].set_online, True)
    at(grid, 1_000, grid.world.nodes[1].crash)
    with pytest.raises(StalledError, match="has waited for 5 s"):
        wait_for(grid, 3)
    assert grid.world.clock.now == 5_000_000


def test_waiting_for_somebody_whom_nothing_will_bring_back_stalls():
    grid, _ = make(1, 1)
    grid.world.nodes[1].set_online(False)
    with pytest.raises(StalledError, match=r"1 are online, 0 of \d+ have crashed"):
        wait_for(grid, 2)


# the end of time


def test_the_time_limit_ends_the_run_in_the_middle_of_a_wait():
    grid, _ = make(30, limit_s=0.05)
    with pytest.raises(TimeUp):
        grid.send_and_receive([instruction(0)])
    assert grid.world.clock.now == 50_000


def test_after_the_time_limit_every_wait_ends_at_once():
    grid, _ = make(30, limit_s=0.05)
    grid.world.nodes[0].set_online(False)
    for wait in (
        lambda: grid.send_and_receive([instruction(0)]),
        lambda: grid.pull_messages(grid.push_messages([instruction(0)])),
        lambda: grid.sleep(1.0),
        lambda: grid.send_and_receive([instruction(0)], timeout=1.0),
    ):
        at(grid, 1_000_000, int)
        with pytest.raises(TimeUp):
            wait()
        assert grid.world.clock.now == 50_000


# messages


def test_replies_carry_what_flower_needs():
    grid, _ = make(30)
    grid.set_run("described")
    message = grid.create_message(instruction(0).content, "train.anchor", 0, "group")
    (id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([id])
    data = reply.metadata
    assert message.metadata.message_id == data.reply_to_message_id == id
    assert (data.message_type, data.group_id) == ("train.anchor", "group")
    assert (data.src_node_id, data.dst_node_id) == (0, grid.server.id)
    assert data.message_id not in ("", id)
    assert grid.run == "described"


def test_one_record_in_many_messages_is_isolated():
    grid, _ = make(30, 30)
    arrays = ArrayRecord({"w": Array(np.zeros(100, dtype=np.float32))})
    config = ConfigRecord({"server-round": 1, "list": [1]})
    shared = RecordDict({"arrays": arrays, "config": config})
    ids = grid.push_messages([Message(shared, node, "train") for node in (0, 1)])
    config["server-round"] = 2  # what is on its way does not change
    arrays["w"] = Array(np.ones(100, dtype=np.float32))
    grid.world.clock.run(until=ARRIVAL_US - 1)
    (_, first, _), (_, second, _) = grid.clients.seen
    assert first.content["config"] == second.content["config"] == {"server-round": 1, "list": [1]}
    first.content["config"]["list"].append(2)
    del first.content["arrays"]["w"]
    assert second.content["config"]["list"] == [1]
    assert second.content["arrays"]["w"].numpy().sum() == 0
    assert config["list"] == [1]
    assert len(grid.pull_messages(ids)) == 2


def test_replies_that_are_pulled_together_are_computed_together():
    grid, _ = make(30, 30, 30)
    replies = grid.send_and_receive([instruction(node) for node in range(3)])
    assert grid.clients.ran == []
    for reply in replies:
        reply.content["arrays"]["w"].numpy()
    assert grid.clients.ran == [3]


def test_a_client_that_raises_stops_the_run():
    grid, _ = make(30)

    def fail(client, message, sim_time_s):
        raise ZeroDivisionError("no data")

    grid.clients.answer = fail
    with pytest.raises(ZeroDivisionError, match="no data"):
        grid.send_and_receive([instruction(0)])


def test_round_of_a_message():
    assert round_of(instruction(0, 12).content) == 12
    assert round_of(RecordDict({"config": ConfigRecord({"lr": 0.1})})) == -1
    assert round_of(RecordDict()) == -1


def test_two_worlds_of_one_seed_have_one_history():
    def history(seed):
        churn = {"name": "exponential", "online_s": 0.5, "offline_s": 0.2}
        grid, _ = make(30, 10, 20, churn=churn, seed=seed)
        for round in range(1, 10):
            grid.send_and_receive([instruction(node, round) for node in range(3)], timeout=1.0)
        return grid.world.log.hexdigest()

    assert history(1) == history(1)
    assert history(1) != history(2)


# a server's own waiting


def pull(grid, id, times):
    return [grid.pull_messages([id]) for _ in range(times)]


def test_pulling_nothing_for_ever_stalls():
    grid, _ = make(1)
    (id,) = grid.push_messages([instruction(0)])
    assert len(grid.pull_messages([id])) == 1
    with pytest.raises(StalledError, match="asked no client"):
        pull(grid, id, 20_000)


# waits leave nothing behind


def failing(code):
    return lambda client, message, sim_time_s: Error(code, "bad")


def test_errors_that_come_at_once_take_no_time():
    """The world has no delays; a wait's timer must not be what ends the next one."""
    grid, _ = make(0, 0, network={"latency_ms": 0, "header_bytes": 0})
    grid.clients.answer = failing(compat.RAISED)
    for round in (1, 2, 3):
        replies = grid.send_and_receive([instruction(node, round) for node in (0, 1)], timeout=3600.0)
        assert [reply.error.code for reply in replies] == [compat.RAISED] * 2
    assert grid.world.clock.now == 0


def test_a_timer_is_gone_with_its_wait():
    grid, _ = make(30)
    grid.send_and_receive([instruction(0)], timeout=3600.0)
    assert grid.world.clock.peek() == float("inf")


def test_asking_those_whom_nothing_brings_back_stalls_despite_timeouts():
    grid, _ = make(30)
    grid.line._detect_us = 0
    grid.world.nodes[0].set_online(False)
    with pytest.raises(StalledError, match="no client can be reached, and nothing will change that"):
        grid.send_and_receive([instruction(0)], timeout=3600.0)
    assert grid.world.clock.now == 0


# time to live


def short_lived(node, ttl_s, round=1):
    message = instruction(node, round)
    return Message(message.content, node, "train", ttl=ttl_s)


def test_a_message_without_a_reply_in_its_time_gives_an_error():
    grid, events = make(30, 30)
    (slow,) = grid.push_messages([short_lived(0, 0.040)])
    (reply,) = grid.pull_messages([slow])
    assert grid.world.clock.now == 40_000
    assert (reply.error.code, reply.error.reason) == (3, "no reply within 0.04 s, the message's time to live")
    (other,) = grid.send_and_receive([instruction(1)])
    assert other.has_content()
    assert [event[:3] for event in events if event[1] == "late"] == [(ARRIVAL_US, "late", 2)]
    assert grid.world.nodes[0].wasted == 30


def test_a_reply_in_time_is_a_reply():
    grid, _ = make(30)
    (reply,) = grid.send_and_receive([short_lived(0, 0.061)])
    assert reply.has_content()
    grid.world.clock.run(until=1_000_000)
    assert grid.updates == 1


# errors and watches


class Seen(Watch):
    def __init__(self):
        self.seen = []

    def sent(self, messages):
        self.seen.append(("sent", [message.metadata.dst_node_id for message in messages]))

    def aborted(self, message):
        self.seen.append(("aborted", message.metadata.dst_node_id))

    def pulled(self, replies):
        self.seen.append(("pulled", senders(replies)))


def test_a_client_can_answer_with_an_error():
    grid, _ = make(30, 30)
    answer = grid.clients.answer

    def fail(client, message, sim_time_s):
        return Error(6, "no clipping norm") if client == 0 else answer(client, message, sim_time_s)

    grid.clients.answer = fail
    first, second = grid.send_and_receive([instruction(0), instruction(1)])
    assert (first.metadata.src_node_id, first.error.code, first.error.reason) == (0, 6, "no clipping norm")
    assert second.has_content()
    assert grid.updates == 1
    assert grid.world.network.traffic[0].up == 64 + len("no clipping norm")


def test_a_watch_is_told_what_happens():
    grid, _ = make(30, 30, 30)
    seen = Seen()
    grid._watches = grid.line.clients._watches = [seen]
    at(grid, DOWN_US + 1, grid.world.nodes[1].set_online, False)
    grid.send_and_receive([instruction(node) for node in range(3)])
    grid.send_and_receive([])
    assert seen.seen == [("sent", [0, 1, 2]), ("aborted", 1), ("pulled", [0, 2, 1])]
    Watch().sent([])
    Watch().pulled([])
