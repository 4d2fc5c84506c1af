"""The grid of an app: what ends a run cannot be caught, a stranger's thread is refused, and looking is no stall."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedsim.errors import RunError, StalledError
from fedsim.flower import compat, run_app
from fedsim.flower.apps.grid import AppGrid
from fedsim.flower.apps.threads import Ended
from fedsim.flower.gridview import patient
from fedsim.running.exchange import TimeUp

spec = importlib.util.spec_from_file_location("grid_world", Path(__file__).with_name("test_grid.py"))
grid_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(grid_world)
instruction, at = grid_world.instruction, grid_world.at


def make(*works, limit_s=None):
    grid, _ = grid_world.make(*works)
    return AppGrid(grid.world, grid.clients, grid_world.DETECT_US / 1e6, limit_s)


@pytest.fixture(autouse=True)
def session():
    with compat.session(0, 99, lambda seconds: None):
        yield


# pauses


def test_a_pause_passes_simulated_time():
    grid = make(30)
    grid.pause(2.5)
    assert grid.world.clock.now_s == 2.5
    grid.push_messages([instruction(0)])
    grid.pause(1.0)  # the reply comes meanwhile
    assert grid.world.clock.now_s == 3.5
    assert len(grid.pull_messages(["1"])) == 1


def look(grid, times):
    return [grid.get_node_ids() for _ in range(times)]


def look_and_pause(grid, times, looks=1, seconds=2.0):
    for _ in range(times):
        look(grid, looks)
        grid.pause(seconds)


def test_looking_and_pausing_takes_the_time_of_the_pauses():
    """That everybody is there already is no reason to stop."""
    grid = make(1, 1)
    look(grid, 300)
    look_and_pause(grid, 900, looks=3)
    assert grid.world.clock.now_s == 1800.0


def test_pauses_between_looks_are_waiting():
    grid = make(1, 1)
    grid.world.nodes[1].set_online(False)
    at(grid, 7_000_000, grid.world.nodes[1].set_online, True)
    while len(grid.get_node_ids()) < 2:
        grid.pause(2.0)
    assert grid.world.clock.now_s == 8.0
    with pytest.raises(Ended, match="nobody else can come"):
        look_and_pause(grid, 1_100)
    assert isinstance(grid.ended, StalledError)


def test_pausing_without_looking_or_after_asking_is_no_waiting():
    grid = make(1, 1)
    look_and_pause(grid, 900)
    grid.pause(1.0)
    look_and_pause(grid, 900)
    grid.send_and_receive([instruction(0)])
    look_and_pause(grid, 900)
    assert grid.ended is None


def test_waiting_without_a_pause_stalls_too():
    grid = make(1, 1)
    grid.world.nodes[1].set_online(False)
    with pytest.raises(Ended, match="nobody else can come"):
        look_and_pause(grid, 1_100, seconds=0)


def test_looking_again_and_again_waits_for_what_happens_next():
    grid = make(1, 1)
    grid.world.nodes[1].set_online(False)
    at(grid, 7_000_000, grid.world.nodes[1].set_online, True)
    for _ in range(10_100):
        found = grid.get_node_ids()
        if len(found) == 2:
            break
    assert found == [0, 1]
    assert grid.world.clock.now_s == 7.0
    with pytest.raises(Ended, match="looks again and again"):
        look(grid, 10_100)


# the end


def test_what_ends_a_run_is_no_exception_and_lasts():
    grid = make(30, limit_s=0.05)
    for call in (
        lambda: grid.send_and_receive([instruction(0)]),
        lambda: grid.push_messages([instruction(0)]),
        lambda: grid.pull_messages(["1"]),
        lambda: grid.pause(1.0),
        lambda: grid.sleep(1.0),
        grid.get_node_ids,
    ):
        with pytest.raises(Ended) as caught:
            call()
        assert not isinstance(caught.value, Exception)
    assert isinstance(grid.ended, TimeUp)
    assert grid.world.clock.now == 50_000


def test_a_mistake_of_the_app_itself_is_its_own():
    grid = make(30)
    with pytest.raises(AttributeError):
        grid.push_messages([None])
    assert grid.ended is None


# threads


@pytest.mark.parametrize(
    "call",
    [
        lambda grid: grid.send_and_receive([instruction(0)]),
        lambda grid: grid.push_messages([instruction(0)]),
        lambda grid: grid.pull_messages(["1"]),
    ],
)
def test_a_thread_that_the_app_has_not_started_is_refused(call):
    grid = make(30)
    with ThreadPoolExecutor(1) as pool, pytest.raises(Ended, match="thread that a library has started"):
        pool.submit(call, grid).result()
    assert type(grid.ended) is RunError
    assert grid.world.clock.now == 0


def test_any_thread_may_look_who_is_online():
    grid = make(30, 30)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(look, grid, 10_100).result()[-1] == [0, 1]
    assert grid.ended is None


# what a SuperLink would say

ARRIVES_US = grid_world.ARRIVAL_US


def test_a_pull_returns_nothing_where_nothing_has_come():
    """One that is repeated at the same moment waits: for the next reply, which takes 60,008 us."""
    grid = make(30)
    ids = grid.push_messages([instruction(0)])
    assert grid.pull_messages(ids) == []
    assert grid.world.clock.now == 0
    assert len(grid.pull_messages(ids)) == 1
    assert grid.world.clock.now == ARRIVES_US


def test_a_server_that_sleeps_gets_nothing_from_later_than_it_sleeps():
    """The replies come after 6.030 and 8.030 s, and the server looks once in a second for 7 s."""
    grid = make(6_000, 8_000)
    ids, came = grid.push_messages([instruction(0), instruction(1)]), []
    for _ in range(7):
        came += grid_world.senders(grid.pull_messages(ids))
        grid.pause(1.0)
    assert came == []
    assert grid_world.senders(grid.pull_messages(ids)) == [0]
    assert grid.world.clock.now_s == 7.0


def test_a_server_that_looks_at_the_clock_keeps_its_deadline():
    """It asks again and again for half a second; the reply would come after one."""
    grid = make(1_000)
    ids, looks = grid.push_messages([instruction(0)]), 0
    while grid.world.clock.now_s < 0.5:
        grid.keeps_time = True  # as reading a clock does
        assert grid.pull_messages(ids) == []
        looks += 1
    assert grid.world.clock.now_s == 0.5
    assert looks == 10


def test_a_patient_server_waits_at_once():
    grid = make(30)
    ids = grid.push_messages([instruction(0)])
    with patient():
        assert len(grid.pull_messages(ids)) == 1


def codes(replies):
    return [reply.error.code if reply.has_error() else 0 for reply in replies]


def test_nodes_that_are_not_there_and_replies_that_were_pulled(caplog):
    grid = make(30)
    ids = grid.push_messages([instruction(7), instruction(0), instruction(grid.server.id)])
    assert (ids[0], len(set(ids))) == ("", 3)
    assert "node 7, but clients are 0 to 0" in caplog.text
    replies = grid.pull_messages(ids)
    assert codes(replies) == [compat.UNAVAILABLE, compat.NODE_UNAVAILABLE]
    assert [one.metadata.reply_to_message_id for one in replies] == [ids[0], ids[2]]
    grid.pause(1.0)
    assert codes(grid.pull_messages(ids[1:2])) == [0]
    assert codes(grid.pull_messages(ids[1:2])) == [compat.UNAVAILABLE]
    assert codes(grid.send_and_receive([instruction(7), instruction(0)])) == [compat.UNAVAILABLE, 0]


def test_pulling_old_replies_for_ever_is_a_stall():
    grid = make(30)
    (id,) = grid.push_messages([instruction(0)])
    grid.pause(1.0)
    grid.pull_messages([id])
    with pytest.raises(Ended, match="asked no client for anything"):
        [grid.pull_messages([id]) for _ in range(20_000)]


@pytest.mark.parametrize("timeout", [0.0, -3.0])
def test_a_timeout_that_is_over_gets_nothing(timeout):
    grid = make(30)
    assert grid.send_and_receive([instruction(0)], timeout=timeout) == []
    assert grid.world.clock.now == 0


def test_a_reply_is_no_message_to_send():
    grid = make(30)
    (reply,) = grid.send_and_receive([instruction(0)])
    with pytest.raises(ValueError, match="Invalid message"):
        grid.push_messages([reply])
    assert grid.ended is None


def test_a_run_is_a_copy_and_there_is_only_one():
    grid = make(30)
    grid.run.run_id = 5
    assert grid.run.run_id == compat.RUN_ID
    grid.set_run(grid.run)
    other = compat.make_run()
    other.run_id = 5
    with pytest.raises(RuntimeError, match="Cannot find the run with ID: 5"):
        grid.set_run(other)


def test_clients_see_that_a_message_was_delivered():
    grid = make(30)
    grid.send_and_receive([instruction(0)])
    ((_, message, _),) = grid.clients.seen
    assert message.metadata.delivered_at == compat.iso(message.metadata.created_at)


STRANGE = (
    "    return Message(message.content, message.metadata.src_node_id, 'train')\n    arrays = ArrayRecord"
)


def test_a_message_that_is_no_reply_is_a_failure(app, tmp_path):
    folder = app("plain", {"client.py": ("    arrays = ArrayRecord", STRANGE)})
    with pytest.raises(RunError, match="must reply to its own message"):
        run_app(folder, nodes=2, overrides={"app.on_failure": "stop", "record.report": False}, out=tmp_path)
