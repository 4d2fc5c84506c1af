from __future__ import annotations

import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import RunError, StalledError
from fedsim.world.clock import EMPTY, Clock, micros


@pytest.mark.parametrize(
    ("seconds", "us"),
    [(0, 0), (1, 1_000_000), (0.000001, 1), (0.1 + 0.2, 300_000), (2.0000004, 2_000_000), (0.0000007, 1)],
)
def test_micros_rounds_to_the_nearest_microsecond(seconds, us):
    assert micros(seconds) == us


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), np.float32(0.25)])
def test_micros_are_plain_integers_whatever_the_number(number):
    assert micros(number) == 250_000
    assert type(micros(number)) is int


def test_three_tenths_and_the_sum_of_one_and_two_tenths_are_the_same_moment():
    clock = Clock()
    seen = []
    clock.after(micros(0.3), seen.append, "first asked")
    clock.after(micros(0.1), lambda: clock.after(micros(0.2), seen.append, "second asked"))
    clock.run()
    assert seen == ["first asked", "second asked"]
    assert (clock.now, clock.now_s) == (300_000, 0.3)


@given(st.lists(st.integers(0, 1000), max_size=20))
def test_calls_come_in_order_of_time_and_equal_times_in_order_of_asking(delays):
    clock = Clock()
    seen: list[tuple[int, int]] = []
    for index, delay in enumerate(delays):
        clock.after(delay, lambda i=index: seen.append((clock.now, i)))
    clock.run()
    assert seen == sorted((delay, index) for index, delay in enumerate(delays))
    assert type(clock.now) is int


def test_after_hands_on_its_arguments():
    clock = Clock()
    seen: list[object] = []
    clock.after(5, lambda *args: seen.extend(args), 1, "two", None)
    clock.run()
    assert seen == [1, "two", None]


def test_the_past_cannot_be_scheduled():
    clock = Clock()
    with pytest.raises(ValueError, match="-1"):
        clock.after(-1, print)


def test_wait_returns_the_value_and_stops_at_the_event():
    clock = Clock()
    late = []
    clock.after(11, late.append, "too late")
    assert clock.wait(clock.timeout(10, value="there"), lambda: "it") == "there"
    assert clock.now == 10
    assert late == []


def test_wait_for_what_has_happened_returns_at_once():
    clock = Clock()
    event = clock.timeout(3, value=7)
    clock.run()
    clock.after(100, print)
    assert clock.wait(event, lambda: "it") == 7
    assert clock.now == 3


def test_wait_for_what_is_triggered_but_not_processed():
    clock = Clock()
    assert clock.wait(clock.event().succeed("now"), lambda: "it") == "now"
    assert clock.now == 0


def test_wait_can_be_repeated_after_other_waits():
    clock = Clock()
    first, second = clock.timeout(5, value=1), clock.timeout(9, value=2)
    assert clock.wait(second, lambda: "second") == 2
    assert clock.wait(first, lambda: "first") == 1
    assert clock.wait(second, lambda: "second") == 2


def test_wait_on_an_empty_queue_stalls_and_says_what_for():
    clock = Clock()
    clock.after(2_500_000, int)
    with pytest.raises(StalledError) as caught:
        clock.wait(clock.event(), lambda: "the reply of client 3")
    reason = "nothing is left to happen, still waiting for the reply of client 3"
    assert caught.value.args == (reason, None, None, 2.5, "")
    assert str(caught.value) == f"t = 2.500000 s: {reason}"


def test_a_stalled_error_keeps_its_arguments_through_simpy():
    clock = Clock()

    def stall():
        yield clock.timeout(1)
        raise StalledError("stuck", 3, 2, 1.5, "gather")

    clock.process(stall())
    with pytest.raises(StalledError) as caught:
        clock.run()
    error = caught.value
    assert isinstance(error, RunError)
    assert (error.reason, error.node, error.round, error.sim_time_s, error.phase) == (
        "stuck", 3, 2, 1.5, "gather"
    )  # fmt: skip
    assert isinstance(error.__cause__, StalledError)
    assert error.__cause__.args == error.args


def test_a_runtime_error_of_the_last_thing_that_happens_is_not_taken_for_a_stall():
    clock = Clock()

    def broken():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    clock.after(1, broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        clock.wait(clock.event(), lambda: "it")


def test_waiting_for_a_process_that_fails_raises_its_error():
    clock = Clock()

    def fail():
        yield clock.timeout(4)
        raise KeyError("w")

    with pytest.raises(KeyError, match="w"):
        clock.wait(clock.process(fail()), lambda: "it")
    assert clock.now == 4


def test_waiting_for_a_failure_that_somebody_else_handles_raises_it_too():
    clock = Clock()
    event = clock.event()
    handled = []

    def handler():
        try:
            yield event
        except KeyError:
            handled.append(clock.now)

    clock.process(handler())
    clock.after(6, lambda: event.fail(KeyError("w")))
    with pytest.raises(KeyError, match="w"):
        clock.wait(event, lambda: "it")
    assert handled == [6]


def test_the_event_plane_loads_neither_torch_nor_flower():
    code = """
import importlib, pkgutil, sys
import fedsim.world
names = [module.name for module in pkgutil.iter_modules(fedsim.world.__path__)]
for name in names:
    importlib.import_module(f"fedsim.world.{name}")
print(len(names), sorted({"torch", "flwr", "ray", "matplotlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split(maxsplit=1)
    assert int(count) >= 9
    assert loaded.strip() == "[]"


def test_timers_that_are_called_off_leave_nothing():
    """Ten thousand timers of an hour each, of which one is ever open: the schedule stays short, and nobody waits."""
    clock, seen, payloads = Clock(), [], weakref.WeakSet()

    class Payload:
        pass

    for second in range(10_000):
        payload = Payload()
        payloads.add(payload)
        timer = clock.timer(micros(3600), seen.append, payload)
        del payload
        clock.after(micros(1), seen.append, second)
        clock.step()
        timer.cancel()
        timer.cancel()
    assert len(clock._queue) <= 2 * EMPTY
    assert len(clock._due) <= 2 * EMPTY
    assert not payloads
    assert seen == [*range(10_000)]
    assert clock.peek() == float("inf")
    clock.run()
    assert clock.now == micros(10_000)


def test_a_timer_has_its_place_among_what_happens_at_once():
    clock, seen = Clock(), []
    timers = [clock.timer(5, seen.append, index) for index in range(4)]
    clock.after(5, timers[3].cancel)
    clock.after(5, seen.append, "last")
    timers[1].cancel()
    assert clock.peek() == 5
    clock.run()
    assert seen == [0, 2, 3, "last"]
    timers[0].cancel()
    clock.timer(0, seen.append, "at once")
    clock.run()
    assert seen[-1] == "at once"


def test_one_timer_may_call_off_another_of_the_same_moment():
    clock, seen = Clock(), []
    later = []
    clock.after(5, lambda: later[0].cancel())
    later.append(clock.timer(5, seen.append, "never"))
    clock.run()
    assert seen == []
