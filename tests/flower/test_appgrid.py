"""The grid of an app: what ends a run cannot be caught, threads are refused, and looking around is not a stall."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedsim.errors import RunError, StalledError
from fedsim.flower import compat
from fedsim.flower.apps.grid import AppGrid, Ended
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
def test_another_thread_is_refused(call):
    grid = make(30)
    with ThreadPoolExecutor(1) as pool, pytest.raises(Ended, match="ServerApp's own thread alone"):
        pool.submit(call, grid).result()
    assert type(grid.ended) is RunError
    assert grid.world.clock.now == 0


def test_another_thread_may_look_who_is_online():
    grid = make(30, 30)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(look, grid, 10_100).result()[-1] == [0, 1]
    assert grid.ended is None
