"""Server policies in simulated time: quorum, over-selection, retries, and what they waste.

The world is that of the grid's own tests: 10 ms and 1 Mbit/s for every client, 1 ms per sample. An instruction of 625
bytes arrives after 15,000 µs, a reply of 626 bytes takes 15,008 µs.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

import fedsim
from fedsim.errors import ConfigError
from fedsim.flower import compat
from fedsim.flower.simulate.grid import SimGrid

spec = importlib.util.spec_from_file_location("grid_world", Path(__file__).with_name("test_grid.py"))
grid_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(grid_world)
make, instruction = grid_world.make, grid_world.instruction
DOWN_US, UP_US, DETECT_US = grid_world.DOWN_US, grid_world.UP_US, grid_world.DETECT_US


@pytest.fixture(autouse=True)
def session():
    with compat.session(0, 99, lambda seconds: None):
        yield


def with_policy(grid: SimGrid, **policy) -> SimGrid:
    return SimGrid(grid.world, grid.clients, DETECT_US / 1e6, **policy)


@pytest.mark.parametrize(
    ("quorum", "heard"), [(0.1, 1), (0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4), (1.0, 4)]
)
def test_a_quorum_ends_the_wait_with_the_first_replies(quorum, heard):
    grid, _ = make(400, 100, 300, 200)
    grid = with_policy(grid, quorum=quorum)
    replies = grid.send_and_receive([instruction(node) for node in range(4)])
    assert [reply.metadata.src_node_id for reply in replies] == [1, 3, 2, 0][:heard]
    assert grid.world.clock.now == DOWN_US + heard * 100_000 + UP_US


def test_what_comes_after_the_quorum_is_late_and_wasted():
    grid, events = make(100, 200, 300)
    grid = with_policy(grid, quorum=0.6)
    assert len(grid.send_and_receive([instruction(node) for node in range(3)])) == 2
    grid.world.clock.run()
    assert [(event[0], event[3]) for event in events if event[1] == "late"] == [
        (DOWN_US + 300_000 + UP_US, 2)
    ]
    assert [node.wasted for node in grid.world.members] == [0, 0, 300]
    assert grid.updates == 2


def test_error_replies_do_not_count_towards_the_quorum():
    grid, _ = make(100, 200, 300)
    grid = with_policy(grid, quorum=0.6)
    grid.world.nodes[0].set_online(False)
    replies = grid.send_and_receive([instruction(node) for node in range(3)])
    assert [reply.metadata.src_node_id for reply in replies if reply.has_content()] == [1, 2]
    assert grid.world.clock.now == DOWN_US + 300_000 + UP_US


def test_a_quorum_that_cannot_be_reached_ends_when_all_have_answered_or_failed():
    grid, _ = make(100, 200)
    grid = with_policy(grid, quorum=0.9)
    grid.world.nodes[0].set_online(False)
    replies = grid.send_and_receive([instruction(node) for node in range(2)])
    assert sorted(reply.has_error() for reply in replies) == [False, True]
    assert grid.world.clock.now == DETECT_US


def test_a_client_that_came_back_is_asked_again():
    grid, _ = make(100)
    grid = with_policy(grid, retries=1)
    node = grid.world.nodes[0]
    grid.world.clock.after(50_000, node.set_online, False)  # in the middle of its work
    grid.world.clock.after(60_000, node.set_online, True)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_content()
    assert grid.world.clock.now == 50_000 + DETECT_US + DOWN_US + 100_000 + UP_US
    assert (node.work, node.wasted) == (135, 35)


def test_retries_are_used_up():
    grid, _ = make(100)
    grid = with_policy(grid, retries=2)
    node = grid.world.nodes[0]
    for attempt in range(3):
        moment = 50_000 + attempt * (50_000 + DETECT_US)
        grid.world.clock.after(moment, node.set_online, False)
        grid.world.clock.after(moment + 1, node.set_online, True)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_error()
    assert grid.world.clock.now == 3 * (50_000 + DETECT_US)
    assert node.wasted == 3 * 35


def test_a_client_that_is_still_away_is_not_asked_again():
    grid, events = make(100)
    grid = with_policy(grid, retries=3)
    grid.world.nodes[0].set_online(False)
    (reply,) = grid.send_and_receive([instruction(0)])
    assert reply.has_error()
    assert [event[1] for event in events].count("send") == 1


BASE = {
    "data": {"clients": 12},
    "model": "softmax",
    "strategy": {"name": "fedavg", "fraction_train": 0.5, "fraction_evaluate": 0.0},
    "network": {"up_mbps": 1, "down_mbps": 1},
    "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 1.0}},
    "stop": {"rounds": 8},
    "record": {"report": False},
}


def test_over_selection_with_a_quorum_is_faster_and_wastes_work(tmp_path):
    # 6 asked and 6 needed, against 12 asked and the first 6 needed
    plain = fedsim.run(BASE, out=tmp_path).summary
    over = fedsim.run(BASE, out=tmp_path, strategy__fraction_train=1.0, strategy__quorum=0.5).summary
    assert over["sim_time_s"] < plain["sim_time_s"]
    assert plain["wasted_samples"] == 0 < over["wasted_samples"]


def test_a_quorum_does_not_need_values(tmp_path):
    full = fedsim.run(BASE, out=tmp_path, strategy__quorum=0.5).summary
    dry = fedsim.run(BASE, out=tmp_path, strategy__quorum=0.5, timing_only=True).summary
    assert full["event_hash"] == dry["event_hash"]
    assert math.isclose(full["sim_time_s"], dry["sim_time_s"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"strategy.quorum": 0}, "strategy.quorum: 0: must be greater than 0"),
        ({"strategy.quorum": 1.5}, "strategy.quorum: 1.5: must be at most 1"),
        ({"strategy.retries": -1}, "strategy.retries: -1: must be at least 0"),
    ],
)
def test_impossible_policies_are_refused(change, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        fedsim.check(BASE, change)
