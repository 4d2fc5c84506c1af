"""What Python's threads wait with, for the threads of an app's server: locks, queues, joins and event loops.

Only what is made meanwhile is replaced; locks that were there before are real. For whoever is no thread of the app's,
the replacements do what the originals do.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import selectors
import sys
import sysconfig
import threading
import time
from asyncio import base_events
from collections.abc import Iterator
from concurrent.futures import _base
from pathlib import Path
from types import FrameType
from typing import Any

from fedsim.flower.apps.threads import Threads, is_below

KEEP_TIME = tuple(str(module.__file__) for module in (threading, queue, _base, base_events))
"""Files of Python's that measure how long an app's threads have waited."""
ASIDE = ("multiprocessing", "subprocess", "concurrent.futures.process")
"""Modules of Python whose threads wait for other processes."""
HOMES = ("flwr.", "fedsim.flower.")
"""Packages whose threads count as the app's own."""

_stdlib = sysconfig.get_path("stdlib")
_allocate = threading.Lock


class Future(_base.Future):  # type: ignore[type-arg]
    """A future that has the same place in a set in every run."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self._number = next(self._numbers)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


@contextlib.contextmanager
def shared(threads: Threads, root: Path) -> Iterator[None]:
    """Let the threads that an app's code starts share one baton; at the end, those that are left are ended.

    Args:
        threads: the app's.
        root: its folder.
    """
    lock = _lock_of(threads)
    start, join, alive = _thread_of(threads, root)
    select = selectors.DefaultSelector.select
    Future._numbers = itertools.count()
    changes: list[tuple[Any, str, Any]] = [
        (threading, "Lock", lock),
        (threading, "_allocate_lock", lock),
        (threading, "RLock", threading._PyRLock),  # type: ignore[attr-defined]
        (threading, "_time", time.monotonic),
        (queue, "time", time.monotonic),
        (queue, "SimpleQueue", queue._PySimpleQueue),  # type: ignore[attr-defined]
        (_base, "Future", Future),
        (threading.Thread, "start", start),
        (threading.Thread, "join", join),
        (threading.Thread, "is_alive", alive),
        (selectors.DefaultSelector, "select", _select_of(threads, select)),
    ]
    before = [getattr(owner, name) for owner, name, _ in changes]
    try:
        for owner, name, new in changes:
            setattr(owner, name, new)
        yield
    finally:
        threads.close()
        for (owner, name, _), old in zip(changes, before, strict=True):
            setattr(owner, name, old)


def _lock_of(threads: Threads) -> Any:
    """Return what takes the place of ``threading.Lock``."""

    class Lock:
        """A lock for which a thread of the app waits by letting others go on."""

        def __init__(self) -> None:
            self._real = _allocate()
            self.release, self.locked = self._real.release, self._real.locked

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self._real.acquire(False):
                return True
            if not blocking or not threads.own():
                return self._real.acquire(blocking, timeout)
            wait_s = None if timeout < 0 else timeout
            return threads.wait_for(lambda: self._real.acquire(False), wait_s, "a lock or a queue")

        def __enter__(self) -> bool:
            return self.acquire()

        def __exit__(self, *_: object) -> None:
            self._real.release()

        def _at_fork_reinit(self) -> None:
            self._real._at_fork_reinit()  # type: ignore[attr-defined]

    return Lock


def _thread_of(threads: Threads, root: Path) -> tuple[Any, Any, Any]:
    """Return what starts a thread, waits for one, and tells whether one has ended."""
    start, join, alive = threading.Thread.start, threading.Thread.join, threading.Thread.is_alive

    def begin(self: threading.Thread) -> None:
        if not threads.own() or self.ident is not None:
            start(self)
            return
        own = _is_own(sys._getframe(1), root)
        if own:
            threads.adopt(self)
        with threads.inside():
            start(self)
        if not own:
            threads.let_go(self)

    def wait(self: threading.Thread, timeout: float | None = None) -> None:
        task = threads.adopted(self)
        if task is not None and threads.own():
            if self is threading.current_thread():
                raise RuntimeError("cannot join current thread")
            if not threads.wait_for(lambda: task.done, timeout, f"the end of {self.name}"):
                return
        join(self, timeout)

    def is_alive(self: threading.Thread) -> bool:
        task = threads.adopted(self)
        return not task.done if task is not None and threads.own() else alive(self)

    return begin, wait, is_alive


def _select_of(threads: Threads, select: Any) -> Any:
    """Return what an event loop waits with; one that has sockets of its own waits in real time."""

    def wait(self: Any, timeout: float | None = None) -> Any:
        loop = sys._getframe(1).f_code.co_filename == base_events.__file__
        if not loop or not threads.own() or len(self.get_map()) > 1:
            return select(self, timeout)
        found: list[Any] = []

        def ready() -> bool:
            found[:] = select(self, 0)
            return bool(found)

        threads.wait_for(ready, timeout, "an event loop's next task")
        return found

    return wait


def _is_own(frame: FrameType | None, root: Path) -> bool:
    """Tell whether the app's code has a thread started, and no library."""
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        file = frame.f_code.co_filename
        if name.startswith(ASIDE):
            return False
        if not file.startswith(_stdlib) or "site-packages" in file:
            return is_below(file, root) or name.startswith(HOMES)
        frame = frame.f_back
    return False
