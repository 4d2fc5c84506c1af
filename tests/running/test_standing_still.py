"""Runs that stand still, in simulated or in real time, and code that ends the program or yields nonsense."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

import fedsim
from fedsim.errors import RunError, StalledError
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.spec.experiment import Local
from fedsim.world import clock
from fedsim.world.clock import Clock, Process
from fedsim.world.net.network import Message


def lines(marker: str, above: int = 0) -> str:
    """Return this file's line with a marker, or one above it such as a loop's head, as messages name it."""
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    (number,) = (n for n, line in enumerate(text, 1) if line.endswith(f"# {marker}"))
    return f"{Path(__file__).name}:{number - above}"


class Lab(PeerStrategy):
    """Node 2 misbehaves in round 3."""

    def __init__(self, *, local: Local) -> None:
        del local

    def run(self, node: Peer) -> Process:
        for round in node.rounds():
            yield from node.sleep(1.5)
            if node.id == 2 and round == 3:
                yield from self.misbehave(node)
            node.finish(round, node.initial_model)

    def misbehave(self, node: Peer) -> Process:
        yield from node.sleep(1.0)


class Zero(Lab):
    def misbehave(self, node: Peer) -> Process:
        while True:
            yield from node.sleep(0.0)  # zero


class ToItself(Lab):
    def misbehave(self, node: Peer) -> Process:
        while True:
            node.node.send(node.node, Message("ball", None, 0, 3))
            yield from node.receive("ball")  # ball


class Bare(Lab):
    def misbehave(self, node: Peer) -> Process:
        while node:
            pass  # bare
        yield from ()


class Sleepy(Lab):
    def misbehave(self, node: Peer) -> Process:
        time.sleep(60)  # sleepy
        yield from ()


class Processed(Lab):
    def misbehave(self, node: Peer) -> Process:
        done = node.node.clock.timeout(0)
        while True:
            yield done  # processed


class Quits(Lab):
    def misbehave(self, node: Peer) -> Process:
        raise SystemExit(0)
        yield


class Five(Lab):
    def misbehave(self, node: Peer) -> Process:
        yield 5  # five


class QuitsInside(Lab):
    def holders(self, round: int) -> Any:
        raise SystemExit(0) if round == 2 else GeneratorExit


class ServerQuits(FedAvg):
    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == 2:
            raise SystemExit(0)
        return super().aggregate_train(server_round, replies)


class ServerStill(FedAvg):
    """In round 2, it asks again and again, and never waits for an answer."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Iterable[Any]:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        while server_round == 2:
            grid.push_messages(messages)  # still
        return messages


class ServerSpins(FedAvg):
    """In round 2, it does nothing at all, for ever."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Grid) -> Iterable[Any]:
        while server_round == 2:
            grid.get_node_ids()  # spins
        return super().configure_train(server_round, arrays, config, grid)


def experiment(strategy: type, **more: Any) -> dict[str, Any]:
    return {
        "data": {"clients": 4},
        "model": "softmax",
        "strategy": {"name": f"{__name__}:{strategy.__name__}"},
        "topology": "star" if issubclass(strategy, FedAvg) else "ring",
        "stop": {"rounds": 5},
        "record": {"report": False},
        **more,
    }


@pytest.fixture
def few_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time stand still for fewer events than usual, so that tests are quick; the bound itself is tested below."""
    monkeypatch.setattr(clock, "MOST_EVENTS", 20_000)
    monkeypatch.setattr(clock, "MOST_WAITS", 200)


@pytest.mark.parametrize(("strategy", "marker"), [(Zero, "zero"), (ToItself, "ball")])
def test_a_peer_without_progress_of_time_is_told_with_its_line(tmp_path, few_events, strategy, marker):
    with pytest.raises(StalledError) as caught:
        fedsim.run(experiment(strategy), out=tmp_path)
    error = caught.value
    # Every round takes 1.5 s, so node 2 is at 4.5 s in its third one.
    assert (error.node, error.round, error.sim_time_s) == (2, 3, 4.5)
    assert lines(marker) in error.reason or marker == "ball"
    assert "time stands still: more than 20160 events" in error.reason  # 20,000 + 10 x 4 x 4 nodes


def test_a_server_that_never_waits_is_told_with_its_line(tmp_path, few_events):
    with pytest.raises(StalledError) as caught:
        fedsim.run(experiment(ServerStill), out=tmp_path)
    assert caught.value.round == 2
    assert lines("still") in caught.value.reason
    assert caught.value.sim_time_s is not None


def test_a_server_that_does_nothing_is_told_with_its_line(tmp_path):
    with pytest.raises(StalledError) as caught:
        fedsim.run(experiment(ServerSpins), out=tmp_path, compute__patience_s=1.0)
    assert caught.value.round == 2
    assert lines("spins") in caught.value.reason or lines("spins", 1) in caught.value.reason


@pytest.mark.parametrize(
    ("strategy", "marker"), [(Bare, "bare"), (Sleepy, "sleepy"), (Processed, "processed")]
)
def test_real_time_without_an_event_has_an_end(tmp_path, strategy, marker):
    began = time.monotonic()
    with pytest.raises(StalledError) as caught:
        fedsim.run(experiment(strategy), out=tmp_path, compute__patience_s=1.0)
    assert time.monotonic() - began < 30  # and not the minute that one of them sleeps
    error = caught.value
    assert (error.node, error.round, error.sim_time_s) == (2, 3, 4.5)
    assert lines(marker) in error.reason or lines(marker, 1) in error.reason
    assert "1 s of real time" in error.reason


def test_the_bounds_grow_with_the_world_and_time_that_passes_resets_them():
    one, many = Clock(), Clock()
    many.expect(1000)
    assert one._most_events == 10**6
    assert many._most_events == 10**6 + 10 * 1000**2
    few = Clock()
    few._most_events = few._most_waits = 50
    for _ in range(200):  # more than 50 in all, and never more than one in a microsecond
        few.wait(few.timeout(1), str)
    few.wait(few.all_of([few.timeout(3) for _ in range(45)]), str)
    assert few.now == 203


@pytest.mark.parametrize("strategy", [Quits, QuitsInside, Five])
def test_a_peer_that_ends_the_program_ends_the_run_with_a_scene(tmp_path, strategy):
    with pytest.raises(RunError) as caught:
        fedsim.run(experiment(strategy), out=tmp_path)
    error = caught.value
    assert error.exit_code == 3
    assert error.run_path.exists()
    expected = (2, 3, 4.5)
    if strategy is Five:
        assert (error.node, error.round, error.sim_time_s) == expected
        assert "yields 5 at" in error.reason
        assert lines("five") in error.reason
    elif strategy is Quits:
        assert (error.node, error.round, error.sim_time_s) == expected
        assert error.reason == "SystemExit: 0"


def test_a_server_strategy_that_ends_the_program_ends_the_run(tmp_path):
    with pytest.raises(RunError, match="SystemExit: 0") as caught:
        fedsim.run(experiment(ServerQuits), out=tmp_path)
    assert caught.value.round == 2
