"""Processes that do the work of an app's clients, and what can be told of one that dies."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import torch

from fedsim.flower.apps.project import Project

GRACE_S = 5.0
"""How long a process may go on with what it does when a run is over: nobody will want the result."""

LOOK_S = 0.5
"""How often to look whether all processes are alive."""

COLUMNS = 3
"""What the table says of each process: its id, the client that it is at work for + 1, the round."""


@dataclass(frozen=True)
class Death:
    """What is known of a process that has died at work.

    Args:
        node: the client that it was at work for.
        round: the round of the message, or -1.
        how: its exit code or signal.
    """

    node: int
    round: int
    how: str


class Workers:
    """Processes that know an app's modules.

    Args:
        count: how many.
        root: the app's folder.
        threads: of PyTorch in each process.
    """

    def __init__(self, count: int, root: str, threads: int) -> None:
        context = _Spawn()
        self._started = context.started
        self._table: Any = context.RawArray("q", COLUMNS * count)
        given = root, threads, self._table, context.Value("i", 0)
        self._pool = ProcessPoolExecutor(count, context, _prepare, given)

    def submit(self, node: int, round: int, function: Callable[..., bytes], *arguments: Any) -> Future[bytes]:
        """Let a process work for a client.

        Args:
            node: the client.
            round: the round, or -1.
            function: a function of a module.
            arguments: its own.

        Raises:
            BrokenProcessPool: if one of the processes has died.
        """
        return self._pool.submit(_marked, node, round, function, *arguments)

    def result(self, future: Future[bytes]) -> bytes:
        """Wait for what :meth:`submit` has promised.

        Raises:
            BrokenProcessPool: if one of the processes has died, whichever.
        """
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                # The pool itself does not watch a process that it has started after it was last woken up.
                if not all(process.is_alive() for process in self._started):
                    raise BrokenProcessPool("a process has died") from None

    def death(self) -> Death | None:
        """Return whom a process that has died was at work for, if that can be told."""
        codes = {process.pid: _code(process) for process in self._started}
        for place in range(0, len(self._table), COLUMNS):
            pid, client, round = self._table[place : place + COLUMNS]
            code = codes.get(pid)
            if client and code not in (None, -signal.SIGTERM):
                return Death(client - 1, round, _how(code))
        return None

    def deaths(self) -> str:
        """Return how the processes have ended that have, in words."""
        codes = [process.exitcode for process in self._started]
        return ", ".join(_how(code) for code in codes if code is not None) or "none has ended by now"

    def close(self) -> None:
        """End the processes; one that is at work for long is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        end_s = time.monotonic() + GRACE_S
        for process in self._started:
            process.join(max(0.0, end_s - time.monotonic()))
        for process in self._started:
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def workers_of(project: Project) -> Iterator[Workers | None]:
    """Start as many processes as an app allows; None if it allows none."""
    count = project.settings.workers
    if not count:
        yield None
        return
    workers = Workers(count, str(project.root), torch.get_num_threads())
    try:
        yield workers
    finally:
        workers.close()


class _Spawn(SpawnContext):
    """Starts processes anew, and remembers them."""

    def __init__(self) -> None:
        self.started: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802
        process = SpawnProcess(*args, **options)
        self.started.append(process)
        return process


def _code(process: SpawnProcess) -> int | None:
    """Return how a process has ended; None if it goes on.

    The pool's own thread waits for the same processes. Where it was first to be told of an end and has not written
    it down yet, the process looks as if it were at work, so this asks again.
    """
    process.join(LOOK_S)  # the pool may be about to end it
    end_s = time.monotonic() + GRACE_S
    while process.exitcode is None and wait([process.sentinel], 0) and time.monotonic() < end_s:
        threading.Event().wait(
            0.01
        )  # in real time; ``time.sleep`` of a run's own thread passes simulated time
    return process.exitcode


def _how(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"


_place: list[Any] = []
"""In a process: the table, and where its own row begins."""


def _prepare(root: str, threads: int, table: Any, count: Any) -> None:
    """Make a process ready for an app."""
    sys.path.insert(0, root)
    torch.set_num_threads(threads)
    with count.get_lock():
        start, count.value = COLUMNS * count.value, count.value + 1
    table[start] = multiprocessing.current_process().pid or 0
    _place[:] = table, start


def _marked(node: int, round: int, function: Callable[..., bytes], *arguments: Any) -> bytes:
    """Work, and say meanwhile for whom."""
    table, start = _place
    table[start + 1], table[start + 2] = node + 1, round
    try:
        return function(*arguments)
    finally:
        table[start + 1] = 0
