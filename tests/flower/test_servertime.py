"""Clocks and sleep in a server's own code are simulated; everybody else's are real."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from fedsim.flower import compat
from fedsim.flower.apps.servertime import CLOCKS, READINGS, ServerTime

FLOATS = ("time", "monotonic", "perf_counter")


class Grid:
    """A grid in which nothing happens."""

    def __init__(self):
        self.world = SimpleNamespace(clock=SimpleNamespace(now=0))

    def share(self, threads):
        pass

    def pause(self, seconds):
        self.world.clock.now += round(seconds * 1e6)


@pytest.fixture
def server(tmp_path):
    """Return what runs code as that of an app: ``server("time.time()")``."""
    times = ServerTime(tmp_path)
    times.grid = Grid()

    def run(code, folder="app", names=None):
        file = tmp_path / folder / "server.py"
        return eval(compile(code, str(file), "eval"), {"time": time, **(names or {})})

    with times.kept():
        yield run


@pytest.mark.parametrize("name", FLOATS)
def test_a_clock_shows_the_time_that_was_slept(name, server):
    began = server(f"time.{name}()")
    server("time.sleep(1000.25)")
    assert server(f"time.{name}()") - began == 1000.25


@pytest.mark.parametrize("name", FLOATS)
def test_whole_nanoseconds_are_simulated_too(name, server):
    began = server(f"time.{name}_ns()")
    server("time.sleep(0.5)")
    assert server(f"time.{name}_ns()") - began == 500_000_000


def test_the_date_begins_with_the_real_one_and_a_whole_second(server):
    shown = server("time.time()")
    assert shown == int(shown)
    assert abs(time.time() - shown) < 100
    assert server("time.monotonic()") == server("time.perf_counter()") == 0.0


def test_libraries_clients_and_other_threads_see_real_time(server):
    server("time.sleep(1e9)")
    assert server("time.monotonic()") == 1e9
    assert time.monotonic() < 1e9
    assert server("time.monotonic()", "app/lib/site-packages/x") < 1e9
    with compat.Client(0, 1):
        assert server("time.monotonic()") < 1e9
    found = []
    thread = threading.Thread(target=lambda: found.append(server("time.monotonic()")))
    thread.start()
    thread.join()
    assert found[0] < 1e9


def test_a_server_that_only_looks_at_the_clock_gets_on(server):
    """A second passes with every million readings."""

    def spin(read):
        count = 0
        while read() < 1.0:
            count += 1
        return count

    code = "spin(lambda: time.monotonic())"
    assert server(code, names={"spin": spin}) == READINGS


def test_afterwards_all_clocks_are_real(tmp_path):
    before = {name: getattr(time, name) for name in CLOCKS}
    times = ServerTime(tmp_path)
    with times.kept():
        assert all(getattr(time, name) is not real for name, real in before.items())
        kept = time.perf_counter
    assert {name: getattr(time, name) for name in CLOCKS} == before
    code = compile("kept()", str(tmp_path / "server.py"), "eval")
    assert time.perf_counter() <= eval(code, {"kept": kept}) <= time.perf_counter()
