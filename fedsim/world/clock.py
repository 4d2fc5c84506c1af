"""Simulated time: a SimPy environment that counts whole microseconds."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator
from heapq import heapify, heappop, heappush
from itertools import repeat
from operator import attrgetter
from typing import Any, cast

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, URGENT

from fedsim.errors import RunError, StalledError
from fedsim.world import scene

Process = Generator[simpy.Event, Any, Any]
"""What a SimPy process is written as."""

LAST: Any = NORMAL + 1
"""Priority of an event that comes after all others of its microsecond."""

MICRO = 1_000_000
"""Microseconds in a second."""

EMPTY = 100
"""How many moments without a call may stand in the schedule."""

END_US = 2**63 - 1
"""The last microsecond that the event log can hold, after 292,000 years."""

MOST_EVENTS, MOST_WAITS = 1_000_000, 10_000
"""So many events, and waits for one, may fall into one microsecond in a world of few nodes."""

LOOKS = 2000
"""So many events are looked at to find out who spins."""

Calls = list[tuple[Callable[..., Any], tuple[Any, ...]]]


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
        self._due: dict[int, Calls] = {}
        self._empty = 0
        self._most_events, self._most_waits = MOST_EVENTS, MOST_WAITS
        self._waits, self._waited_us = 0, -1
        self._ends, self._looks = False, 0

    def expect(self, nodes: int) -> None:
        """Allow as many events and waits in one microsecond as so many nodes can need, all of them with each other."""
        self._most_events = min(MOST_EVENTS + 10 * nodes**2, 100 * MOST_EVENTS)
        self._most_waits = MOST_WAITS + 10 * nodes

    @property
    def signs(self) -> int:
        """How many events have been planned; asking takes a number of them, which changes no event's turn."""
        self._looks += 1
        return next(self._eid) - self._looks + 1

    now: int = property(  # type: ignore[assignment]  # SimPy allows any number; this clock has only integers
        attrgetter("_now"), doc="Simulated microseconds since the start."
    )  # without a call of Python's: it is asked for at every step

    @property
    def now_s(self) -> float:
        """Simulated seconds since the start."""
        return float(self.now) / MICRO

    def timeout(self, delay: int = 0, value: Any = None) -> simpy.Timeout:  # type: ignore[override]
        """Return an event that happens after a delay, as SimPy does, but in whole microseconds.

        Raises:
            TypeError: if the delay is not an integer; ``clock.timeout(micros(seconds))`` makes it one.
        """
        if type(delay) is not int:
            raise TypeError(f"a delay is a whole number of microseconds, not {delay!r}; use micros(seconds)")
        if self._now + delay > END_US:
            delay = self._to_the_end()
        return simpy.Timeout(self, delay, value)

    def after(self, delay_us: int, call: Callable[..., Any], *args: Any) -> None:
        """Call a function later.

        Calls that fall into one microsecond share one event, at the place of the first of them.

        Args:
            delay_us: the delay in microseconds, at least 0.
            call: the function.
            args: its arguments.
        """
        if delay_us < 0:
            raise ValueError(f"a delay is at least 0, not {delay_us}")
        due_us: int = self._now + delay_us  # type: ignore[assignment]  # as above
        if due_us > END_US:
            self._to_the_end()
            due_us = END_US
        calls = self._due.get(due_us)
        if calls is None:
            self._due[due_us] = calls = []
            heappush(self._queue, (due_us, NORMAL, next(self._eid), _Moment(self, calls, due_us)))
        calls.append((call, args))

    def timer(self, delay_us: int, call: Callable[..., Any], *args: Any) -> Timer:
        """Call a function later, unless it is called off: then nothing is left of it.

        Args:
            delay_us: the delay in microseconds, at least 0.
            call: the function.
            args: its arguments.

        >>> clock = Clock()
        >>> early, late = (clock.timer(micros(s), print, s, "seconds") for s in (1, 2))
        >>> early.cancel()
        >>> clock.run()
        2 seconds
        """
        timer = Timer(self, self.now + delay_us, call, args)
        self.after(delay_us, timer.happen)
        return timer

    def call_off(self, due_us: int, call: Callable[..., Any]) -> None:
        """Forget a call without arguments that is due later; moments without calls leave the schedule in the end."""
        calls = self._due.get(due_us)
        if calls is None:  # the moment has come
            return
        calls.remove((call, ()))
        self._empty += not calls
        if self._empty > max(EMPTY, len(self._queue) // 2):
            self._clear()

    def peek(self) -> float:
        """Return when the next thing happens; a moment whose calls were all called off is none."""
        while self._queue and self._forget(self._queue[0][-1]):
            heappop(self._queue)
        return super().peek()

    def _clear(self) -> None:
        """Take the moments without calls out of the schedule; what is left keeps its order."""
        self._empty = 0
        kept = [item for item in self._queue if type(item[-1]) is not _Moment or item[-1]._calls]
        for due_us in [due_us for due_us, calls in self._due.items() if not calls]:
            del self._due[due_us]
        self._queue[:] = kept
        heapify(self._queue)

    def _forget(self, event: simpy.Event) -> bool:
        """Let go of an event if it is a moment without calls."""
        empty = isinstance(event, _Moment) and event.is_empty
        if isinstance(event, _Moment) and empty:
            del self._due[event.due_us]
        return empty

    def last(self, call: Callable[[], Any]) -> None:
        """Call a function at the end of this microsecond, after all that is already due in it."""
        self.schedule(_Moment(self, [(call, ())]), LAST, 0)

    def wait(self, event: simpy.Event, waiting_for: Callable[[], str]) -> Any:
        """Let time pass until an event has happened, and return its value.

        Args:
            event: what to wait for.
            waiting_for: says it in words, for the error.

        Raises:
            StalledError: if nothing is left that could make it happen.
        """
        wanted = cast(Any, event)
        self.count_wait()
        try:
            self._step_while(wanted)
        except EmptySchedule:
            reason = f"nothing is left to happen, still waiting for {waiting_for()}"
            raise StalledError(reason, sim_time_s=self.now_s) from None
        if isinstance(event.value, BaseException) and not event.ok:
            raise event.value
        return event.value

    def advance(self, done: Callable[[], bool]) -> None:
        """Let time pass, event by event, until something holds.

        Raises:
            StalledError: if events go on and on, and no time passes.
        """
        while not done():
            began_us = self._now
            for _ in repeat(None, self._most_events):
                self.step()
                if done():
                    return
            self._check_moves(began_us)

    def _step_while(self, pending: Any) -> None:
        """Take steps until an event has been processed; between many of them, see whether time passes at all."""
        step = self.step
        while True:
            began_us = self._now
            for _ in repeat(None, self._most_events):
                if pending.callbacks is None:  # quicker than asking whether it has been processed
                    return
                step()
            self._check_moves(began_us)

    def _check_moves(self, began_us: int | float) -> None:
        if self._now > began_us:
            return
        seen: Counter[scene.Scene] = Counter()
        for _ in repeat(None, LOOKS):
            seen.update(scene.of_event(self._queue[0][-1]))
            self.step()
        node, line = seen.most_common(1)[0][0] if seen else scene.Scene(None, "")
        reason = f"time stands still: more than {self._most_events} events in one microsecond"
        raise StalledError(reason + (f", most of them from {line}" if line else ""), node, None, self.now_s)

    def count_wait(self) -> None:
        """Notice somebody who waits or asks again and again while no time passes, such as a loop of a server.

        Raises:
            StalledError: if that is too often in one microsecond; says where.
        """
        if self._now != self._waited_us:
            self._waits, self._waited_us = 0, self.now
        self._waits += 1
        if self._waits > self._most_waits:
            line = scene.of_thread(threading.get_ident()).line
            reason = f"time stands still: {self._most_waits} waits or requests in one microsecond"
            raise StalledError(f"{reason}, the last one at {line}", sim_time_s=self.now_s)

    def _to_the_end(self) -> int:
        """Return how long it is to the end of time, where whatever would come later ends the run."""
        left_us = END_US - self.now
        if not self._ends:
            self._ends = True
            self.schedule(_Moment(self, [(self._end, ())]), URGENT, left_us)
        return left_us

    def _end(self) -> None:
        raise RunError("nothing happens any more until the end of simulated time", sim_time_s=self.now_s)


class Timer:
    """A call that is due later; see :meth:`Clock.timer`."""

    __slots__ = ("_args", "_call", "_clock", "_due_us")

    def __init__(self, clock: Clock, due_us: int, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._clock, self._due_us = clock, due_us
        self._call: Callable[..., Any] | None = call
        self._args = args

    def happen(self) -> None:
        """Make the call, if it has not been called off."""
        call, args = self._call, self._args
        self._call, self._args = None, ()
        if call is not None:
            call(*args)

    def cancel(self) -> None:
        """Call it off; once it has happened, or has been called off, that does nothing."""
        if self._call is not None:
            self._call, self._args = None, ()
            self._clock.call_off(self._due_us, self.happen)


class _Moment(simpy.Event):
    """The calls of one microsecond."""

    def __init__(self, clock: Clock, calls: Calls, due_us: int = -1) -> None:
        self.env, self._ok, self._value = clock, True, None
        self.callbacks = [self._happen]
        self._clock, self._calls, self.due_us = clock, calls, due_us

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to do."""
        return not self._calls

    def _happen(self, _: simpy.Event) -> None:
        self._clock._due.pop(self.due_us, None)
        for call, args in self._calls:
            call(*args)
