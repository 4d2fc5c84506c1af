"""Runs that advance together, with what a process has only once: signals, threads, and the search for garbage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fedsim.learn.data.kept import kept
from fedsim.learn.engines.together import Group
from fedsim.running import threads
from fedsim.running.garbage import settled
from fedsim.running.signals import terminable


def advance(runs: Sequence[Callable[[], Any]], count: int) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Let runs advance together, and yield the number of each that has ended, and what returns its result.

    Args:
        runs: what to call for each of them.
        count: the threads of one operation, the same for all.

    >>> [(number, result()) for number, result in advance([lambda: "a", lambda: "b"], 1)]
    [(0, 'a'), (1, 'b')]
    """
    with terminable(), threads.limited(count), settled(), kept():
        yield from Group(runs).results()
