"""The ways in which runs of a study are run: in this process, in several, or wherever somebody else has them run."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from fedsim.errors import ConfigError, EndedError
from fedsim.machine import keep_freed_memory
from fedsim.spec.experiment import Compute
from fedsim.study.file import Settings

Run = Callable[..., Any]
"""Runs an experiment: :func:`fedsim.run`, which is handed in, since this room lies below it."""

Ways = tuple[Run, Run]
"""How to run, and how to go on with what was stopped."""

Call = Callable[[], tuple[str, dict[str, Any]]]
"""Runs one run of a study, and returns its folder and its final numbers, or raises what it failed with."""

Made = Callable[[], Call]
"""Makes a call when it is to be made, so that it knows what is there by then of a run that was stopped."""

Ends = Iterator[tuple[int, Call]]
"""The number of each run that has ended, and what returns its result."""

Advance = Callable[[Sequence[Call], int], Ends]
"""Lets runs advance together, all with so many threads; handed in for the same reason."""

Spread = Callable[[Sequence[Made], Sequence[Compute], Path], Ends]
"""Has runs run elsewhere: from what makes their calls, what they need, and the folder that theirs are to be in."""


def done_by(
    run: Run, resume: Run, source: Any, changes: Settings, out: str, begun: str | None
) -> tuple[str, dict[str, Any]]:
    """Run an experiment, or go on with it, and return what is left of it in a form that can be sent.

    Args:
        run: as :func:`fedsim.run`.
        resume: as :func:`fedsim.resume`.
        source: the experiment.
        changes: values of it by dotted key.
        out: the folder in which it gets its own.
        begun: the folder of a run that was stopped, or None.
    """
    result = None
    if begun is not None:
        with contextlib.suppress(ConfigError):  # such as a run of an earlier version: it is begun anew
            result = resume(begun)
    result = result or run(source, overrides=changes, out=out)
    return str(result.path), result.summary


def processes(calls: Sequence[Made], jobs: int) -> Ends:
    """Do calls, each in a process of this machine, so many at a time.

    Args:
        calls: what can be sent to another process.
        jobs: how many processes there are.
    """
    left = list(range(len(calls)))
    while left:
        broken: list[int] = []
        with _pool(min(jobs, len(left))) as pool:
            futures = {pool.submit(calls[number]()): number for number in left}
            for future in _completed(futures):
                if isinstance(future.exception(), BrokenProcessPool):
                    broken.append(futures[future])
                else:
                    yield futures[future], future.result
        # A process that dies takes the others' runs with it; which one it was is seen when each runs alone.
        left = broken[1:] if len(broken) > jobs else []
        for number in broken[: 1 if left else None]:
            yield number, _alone(calls[number])


def _alone(call: Made) -> Call:
    with _pool(1) as pool:
        future = pool.submit(call())
    return functools.partial(_ended, future)


def _ended(future: Future[tuple[str, dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise EndedError from None


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, get_context("spawn"), _prepare)


def _prepare() -> None:
    """Make a process ready: the runs share the cores already, and nobody wants it when who asked is gone."""
    os.environ.setdefault("FEDSIM_WORKERS", "1")
    keep_freed_memory()
    asked = parent_process()
    if asked is not None:
        threading.Thread(target=_end_with, args=(asked.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _completed(futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
    left = set(futures)
    while left:
        done, left = wait(left, return_when=FIRST_COMPLETED)
        yield from done
