"""Simulated time: a SimPy environment that counts whole microseconds."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, EventPriority

from fedsim.errors import StalledError

Process = Generator[simpy.Event, Any, Any]
"""What a SimPy process is written as."""

MICRO = 1_000_000
"""Microseconds in a second."""


def micros(seconds: float) -> int:
    """Return a duration in whole microseconds.

    >>> micros(0.25)
    250000
    """
    return round(seconds * MICRO)


class Clock(simpy.Environment):
    """A SimPy environment whose time is an integer number of microseconds.

    Floats would break ties differently from run to run: 0.1 + 0.2 is later than 0.3. Integers do not.

    >>> clock = Clock()
    >>> clock.after(micros(1.5), print, "now")
    >>> clock.run()
    now
    >>> clock.now, clock.now_s
    (1500000, 1.5)
    """

    def __init__(self) -> None:
        super().__init__(0)

    @property
    def now(self) -> int:
        """Simulated microseconds since the start."""
        return self._now  # type: ignore[return-value]  # SimPy allows any number; this clock has only integers

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return float(self.now) / MICRO

    def schedule(self, event: simpy.Event, priority: EventPriority = NORMAL, delay: float = 0) -> None:
        """Schedule an event, as SimPy does, but only after whole microseconds.

        Raises:
            TypeError: if the delay is not an integer; a process that waits uses ``clock.timeout(micros(seconds))``.
        """
        if type(delay) is not int:
            raise TypeError(f"a delay is a whole number of microseconds, not {delay!r}; use micros(seconds)")
        super().schedule(event, priority, delay)

    def after(self, delay_us: int, call: Callable[..., Any], *args: Any) -> None:
        """Call a function later.

        Args:
            delay_us: the delay in microseconds, at least 0.
            call: the function.
            args: its arguments.
        """
        callbacks = self.timeout(delay_us).callbacks
        assert callbacks is not None  # a timeout that has just been made has not been processed
        callbacks.append(lambda _: call(*args))

    def wait(self, event: simpy.Event, waiting_for: Callable[[], str]) -> Any:
        """Let time pass until an event has happened, and return its value.

        Args:
            event: what to wait for.
            waiting_for: says it in words, for the error.

        Raises:
            StalledError: if nothing is left that could make it happen.
        """
        try:
            while not event.processed:
                self.step()
        except EmptySchedule:
            reason = f"nothing is left to happen, still waiting for {waiting_for()}"
            raise StalledError(reason, sim_time_s=self.now_s) from None
        if isinstance(event.value, BaseException) and not event.ok:
            raise event.value
        return event.value
