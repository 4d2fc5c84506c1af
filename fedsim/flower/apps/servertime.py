"""The time that a Flower app's server lives in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.flower import compat
from fedsim.flower.apps.blocking import KEEP_TIME, shared
from fedsim.flower.apps.grid import AppGrid
from fedsim.flower.apps.threads import Threads, is_below
from fedsim.world.clock import MICRO

CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
READINGS = 1_000_000
"""Reading clocks so often at one moment is waiting for time to pass."""


class ServerTime:
    """Makes the time of a grid that of a server's own code: sleeping passes it, and Python's clocks show it.

    The grid may come later: a module may keep ``sleep`` from the moment on at which it is imported, which for a
    ClientApp is before the run. Only code in the app's folder is shown simulated time.
    Libraries measure real time: they wait for other processes with it.

    Args:
        root: the app's folder.
        start_s: the date at which simulated time begins, in seconds since 1970; None is now.

    Attributes:
        start_s: that date.
    """

    _sleep = staticmethod(time.sleep)

    def __init__(self, root: Path, start_s: int | None = None) -> None:
        self.start_s = int(time.time()) if start_s is None else start_s
        self._grid: AppGrid | None = None
        self._root, self._threads = root, Threads(root)
        self._readings = 0, 0  # the moment of the last one in microseconds, and how many there were at it

    @property
    def grid(self) -> AppGrid | None:
        """The grid whose time it is, as soon as there is one."""
        return self._grid

    @grid.setter
    def grid(self, grid: AppGrid | None) -> None:
        self._grid = grid
        if grid is not None:
            grid.share(self._threads)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Replace ``time.sleep``, the clocks and what threads wait with for the server code of this thread."""
        before = {name: getattr(time, name) for name in CLOCKS}
        threads = self._threads

        def simulated(file: str) -> bool:
            return threads.own() and (file in KEEP_TIME or is_below(file, self._root))

        with compat.slow_time(self.pause, threads.own):
            try:
                for name, real in before.items():
                    setattr(time, name, _clock(name, real, simulated, self._read, self.start_s))
                with shared(threads, self._root):
                    yield
            finally:
                for name, real in before.items():
                    setattr(time, name, real)

    def pause(self, seconds: float) -> None:
        """Let simulated time pass, as soon as there is some."""
        (self._sleep if self.grid is None else self.grid.pause)(seconds)

    def _read(self) -> int:
        """Return the simulated microseconds; for a server that does nothing but ask for them, they have to pass."""
        if self.grid is not None:
            self.grid.keeps_time = True
        now_us = self._now_us()
        last_us, count = self._readings
        count = count + 1 if now_us == last_us else 1
        if count > READINGS:
            self.pause(1.0)
            now_us = self._now_us()
        self._readings = now_us, count
        return now_us

    def _now_us(self) -> int:
        return self.grid.world.clock.now if self.grid is not None else 0


def _clock(
    name: str,
    real: Callable[[], Any],
    simulated: Callable[[str], bool],
    read_us: Callable[[], int],
    date_s: int,
) -> Any:
    """Return what replaces one of Python's clocks.

    The date begins with a whole second, and the others with 0: so differences round alike in every run.
    """
    start_s = date_s if name in ("time", "time_ns") else 0

    def clock() -> Any:
        if not simulated(sys._getframe(1).f_code.co_filename):
            return real()
        us = read_us()
        return start_s * 10**9 + us * 1000 if name.endswith("_ns") else start_s + us / MICRO

    return clock
