"""The threads of a Flower app's server: one runs at a time, and simulated time passes only while all of them wait."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import _base
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from simpy.core import EmptySchedule

from fedsim.errors import RunError, StalledError
from fedsim.flower import compat
from fedsim.running.exchange import TimeUp
from fedsim.running.instruction import happen
from fedsim.world import scene
from fedsim.world.clock import Clock, micros

NAP_S = 0.001
GRACE_S = 2.0
"""How long, in real time, a thread may go on with what it does when a run is over."""
PLEAS, LAST_TURNS = 100, 10_000
"""So often a thread is told that the run is over, and so many turns threads have when the ServerApp has returned."""

_allocate, _nap, _real_s = threading.Lock, time.sleep, time.monotonic


class Ended(BaseException):
    """Carries the end of a run through an app's code, which may go on after every Exception."""


class Place(Protocol):
    """What knows the time that the threads live in."""

    @property
    def clock(self) -> Clock:
        """Counts the time."""

    @property
    def over(self) -> bool:
        """Whether the simulated time is over."""


@dataclass(eq=False)
class Task:
    """A thread of the app.

    Args:
        name: of the thread.
        daemon: whether nobody needs to wait for its end.
        thread: what Python calls it.
    """

    name: str
    daemon: bool
    thread: threading.Thread
    gate: Any = field(default_factory=_allocate)
    ident: int = 0
    ready: Callable[[], bool] | None = None
    until_us: float = math.inf
    turn: int = 0
    what: str = ""
    in_grid: bool = False
    got: bool = False
    inside: int = 0
    pleas: int = 0
    done: bool = False


class Threads:
    """Lets one thread of an app run at a time.

    Whoever runs goes on until it waits: in the grid, in simulated sleep, or for another thread. Then the one goes on
    that has waited longest of those that can; if none can, the thread that began lets simulated time pass until one
    can. So an app with threads is as deterministic as one without. Threads that libraries start are not the app's:
    they run when they like, as they wait for other processes and for networks.

    Args:
        root: the app's folder.

    Attributes:
        ended: what has ended the run, and None before; every wait raises :class:`Ended` from then on.
        interrupt: what has interrupted the thread that began while another one was running.
        switches: how often another thread has gone on.
    """

    def __init__(self, root: Path) -> None:
        self.ended: TimeUp | RunError | None = None
        self.interrupt: KeyboardInterrupt | None = None
        self.place: Place | None = None
        self.switches = 0
        self._root, self._pid, self._turns, self._closed = root, os.getpid(), 0, False
        thread = threading.current_thread()
        self._main = Task(thread.name, False, thread, ident=threading.get_ident())
        self._main.gate.acquire()
        self._holder = self._main
        self._tasks = {self._main.ident: self._main}
        self._all: list[Task] = [self._main]
        self._foreign: list[threading.Thread] = []
        self._spare = np.random.MT19937(0)

    @property
    def alone(self) -> bool:
        """Whether the server has no other thread."""
        return len(self._all) == 1

    @property
    def _is_over(self) -> bool:
        return self._closed or self.ended is not None or self.interrupt is not None

    @property
    def running(self) -> int:
        """The id of the thread that runs."""
        return self._holder.ident

    def own(self) -> bool:
        """Tell whether this is code of the app's server, in whatever thread of it."""
        task = self._tasks.get(threading.get_ident())
        own = task is not None and not task.inside and not (self._closed and task is self._main)
        return own and not compat.in_client() and os.getpid() == self._pid

    def knows(self) -> bool:
        """Tell whether this thread is one of the app's."""
        return threading.get_ident() in self._tasks

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread do what is not the app's, such as letting time pass: what it waits for is real."""
        task = self._tasks[threading.get_ident()]
        task.inside += 1
        try:
            yield
        finally:
            task.inside -= 1

    def adopt(self, thread: threading.Thread) -> Task:
        """Make a thread that is about to start one of the app's; its turn comes when others wait."""
        task = Task(thread.name, thread.daemon, thread)
        task.gate.acquire()
        self._queue(task, lambda: True, math.inf, "its turn")
        self._all.append(task)
        run = thread.run

        def begin() -> None:
            task.ident = threading.get_ident()
            task.gate.acquire()
            self._tasks[task.ident] = task
            try:
                if not self._is_over:
                    run()
            except Ended:
                pass
            finally:
                self._leave(task)

        thread.run = begin  # type: ignore[method-assign]
        thread.daemon = True  # the end of the run waits for it, and not the end of the program
        return task

    def adopted(self, thread: threading.Thread) -> Task | None:
        """Return what is known of a thread of the app."""
        return next((task for task in self._all if task.thread is thread), None)

    def let_go(self, thread: threading.Thread) -> None:
        """Take note of a thread that a library has started."""
        self._foreign.append(thread)

    def wait_for(self, ready: Callable[[], bool], timeout_s: float | None, what: str) -> bool:
        """Wait until something holds that another thread brings about, and tell whether it does.

        While threads of libraries are at work, nothing but real time tells whether they are late.
        """
        if ready():
            return True
        if timeout_s is None or not self._helped():
            return self.wait(ready, timeout_s, what)
        end_s, found = _real_s() + timeout_s, []

        def late() -> bool:
            if ready():
                found.append(True)
            return bool(found) or _real_s() >= end_s

        self.wait(late, None, what)
        return bool(found)

    def wait(
        self, ready: Callable[[], bool], timeout_s: float | None, what: str, in_grid: bool = False
    ) -> bool:
        """Let others go on, and time pass, until something holds.

        Args:
            ready: tells whether it holds; whoever runs may ask, and it is not asked again once it has.
            timeout_s: how many simulated seconds to wait at most; None is for ever.
            what: is waited for, in words.
            in_grid: whether time itself will bring it.

        Returns:
            Whether it holds; otherwise the timeout is over.

        Raises:
            Ended: if the run is over.
        """
        task = self._tasks[threading.get_ident()]
        now_us = self.place.clock.now if self.place else 0
        until_us = (
            math.inf if timeout_s is None or timeout_s == math.inf else now_us + micros(max(0.0, timeout_s))
        )
        self._plead(task)
        self._queue(task, ready, until_us, what)
        task.in_grid = in_grid
        while task.ready is not None:
            chosen = self._choose()
            if chosen is None and task is self._main:
                self._pass_time()
            elif chosen is not task:
                self._hand_over(task, chosen or self._main)
            self._plead(task)
        return task.got

    def _plead(self, task: Task) -> None:
        """Say that the run is over; whoever does not hear it stands still for ever."""
        if not self._is_over:
            return
        task.pleas += 1
        if task.pleas > PLEAS and task is not self._main:
            self._leave(task)
            task.gate.acquire()
        task.ready = None
        raise Ended(str(self.ended or "the ServerApp has returned")) from self.ended or self.interrupt

    def _queue(self, task: Task, ready: Callable[[], bool], until_us: float, what: str) -> None:
        self._turns += 1
        task.turn, task.ready, task.until_us, task.what = self._turns, ready, until_us, what

    def _choose(self) -> Task | None:
        """Return the one that has waited longest of those that can go on."""
        now_us = self.place.clock.now if self.place else 0
        for task in sorted((one for one in self._all if one.ready is not None), key=lambda one: one.turn):
            assert task.ready is not None  # those that wait
            got = task.ready()
            if got or now_us >= task.until_us:
                task.ready, task.got = None, got
                return task
        return None

    def _hand_over(self, task: Task, to: Task) -> None:
        self._holder = to
        self.switches += 1
        to.gate.release()
        try:
            task.gate.acquire()
        except KeyboardInterrupt as stop:  # in the thread that began; somebody else runs
            self.interrupt = stop
            raise

    def _leave(self, task: Task) -> None:
        """Let the others go on without a thread."""
        task.done, task.ready = True, None
        self._all.remove(task)
        self._tasks.pop(task.ident, None)
        to = self._main if self._is_over else self._choose() or self._main
        self._holder = to
        self.switches += 1
        to.gate.release()

    def _pass_time(self) -> None:
        """Let time pass until somebody can go on, or until the next timeout."""
        until_us = min(one.until_us for one in self._all if one.ready is not None)
        if until_us == math.inf and not any(one.in_grid and one.ready for one in self._all):
            if not self._helped():
                self.fail(StalledError(self._deadlock(), sim_time_s=self._now_s()))
            self.switches += 1  # somebody else is at work
            _nap(NAP_S)
            return
        try:
            with compat.undisturbed(self._spare), self.inside():
                self._step(until_us)
        except EmptySchedule:
            what = "; ".join(f"{one.name} for {one.what}" for one in self._all if one.in_grid and one.ready)
            reason = f"nothing is left to happen, still waiting: {what}"
            self.fail(StalledError(reason, sim_time_s=self._now_s()))
        except (TimeUp, RunError) as error:
            self.fail(error)

    def _step(self, until_us: float) -> None:
        if self.place is None:
            raise RunError(
                "a module of the app waits for simulated time while it is imported", phase="import"
            )
        place, clock = self.place, self.place.clock
        clock.advance(lambda: self._can_go_on() or place.over or clock.peek() >= until_us < math.inf)
        if self._can_go_on():
            return
        if place.over:
            raise TimeUp("the simulated time is over")
        due = clock.event()
        clock.after(int(until_us) - clock.now, happen, due)
        clock.advance(lambda: due.processed)

    def _can_go_on(self) -> bool:
        """Tell whether somebody can go on, who then has what it has waited for."""
        for task in sorted((one for one in self._all if one.ready is not None), key=lambda one: one.turn):
            assert task.ready is not None  # those that wait
            if task.ready():
                task.ready = lambda: True
                return True
        return False

    def fail(self, error: TimeUp | RunError) -> None:
        """End the run.

        Raises:
            Ended: always.
        """
        self.ended = self.ended or error
        raise Ended(str(error)) from error

    def _helped(self) -> bool:
        self._foreign = [one for one in self._foreign if one.is_alive()]
        return bool(self._foreign)

    def _now_s(self) -> float:
        return self.place.clock.now_s if self.place else 0.0

    def _deadlock(self) -> str:
        who = [f"{one.name} for {one.what} at {self._line(one)}" for one in self._all]
        if len(who) == 1:
            return f"the ServerApp waits for what nobody can bring about: {who[0]}"
        return f"the threads of the ServerApp wait for each other: {'; '.join(who)}"

    def _line(self, task: Task) -> str:
        """Return the app's line at which a thread waits."""
        frame = sys._current_frames().get(task.ident)
        while frame is not None and not is_below(frame.f_code.co_filename, self._root):
            frame = frame.f_back
        return scene.line(frame) if frame else "its start"

    def close(self) -> None:
        """End the threads that are left: those that have something to do and need no time for it do it first."""
        with _unheard():
            self._close()

    def _close(self) -> None:
        if self._holder is not self._main and not self._main.gate.acquire(timeout=GRACE_S):
            return  # a thread is in code that does not return; it and the others are left where they are
        self._holder, self._main.ready = self._main, None
        for _ in range(LAST_TURNS):
            busy = any(not task.daemon for task in self._all if task is not self._main)
            chosen = self._choose() if busy and not self._is_over else None
            if chosen is None:
                break
            self._hand_over(self._main, chosen)
        self._closed = True
        for task in [one for one in self._all if one is not self._main]:
            while not task.done:
                task.ready = None
                self._holder = task
                task.gate.release()
                if not self._main.gate.acquire(timeout=GRACE_S):
                    return


@functools.cache
def is_below(file: str, root: Path) -> bool:
    """Tell whether a file is an app's own; packages that are installed inside the app's folder are not."""
    path = Path(file)
    return root in path.parents and "site-packages" not in path.parts


@contextmanager
def _unheard() -> Iterator[None]:
    """Let pools keep to themselves that their threads are ended."""
    log = logging.getLogger(_base.LOGGER.name)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
