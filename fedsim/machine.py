"""What the machine has, and whether what an experiment needs fits into it; asked before the memory itself is."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

from fedsim.errors import BadValue

NODE_BYTES = 3000
"""About what a node of the simulated world takes: itself, its process, its inbox, its place in the graph."""

LINK_BYTES = 500
"""About what a link takes in the graphs that are made on the way from a topology to a network."""

KEPT_BYTES = {-1: 2**28, -3: 2**25}
"""What glibc may keep of what is freed, at the end of the heap, and the block that it asks the system for and returns
each time; by the numbers that ``malloc.h`` gives M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""

LIMITS = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"
"""Where Linux says how much a container may use."""


@functools.cache
def memory_bytes() -> int:
    """Return the memory of this machine, or of the container that this process is in.

    >>> memory_bytes() > 2**26
    True
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in map(Path, LIMITS):
        text = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
        found += [int(text)] if text.isdecimal() else []
    return min(found)


def cores() -> int:
    """Return how many cores this process may use.

    >>> cores() >= 1
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, as far as a training step asks for the same again.

    Otherwise glibc returns the activations and gradients of every step to the system, which then clears the pages of
    the next step: more than a fifth of the time of a small convolutional network. Only processes that train and do
    nothing else should ask for it.

    Returns:
        Whether the C library does so; that of other systems has no such setting, and needs none.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, size) == 1 for option, size in KEPT_BYTES.items())


def require_threads(threads: int) -> None:
    """Refuse more threads than are of any use here: 4 for each core, or 64 where those are fewer.

    Raises:
        BadValue: with the key ``threads``.
    """
    have = os.cpu_count() or 1
    most = max(64, 4 * have)
    if threads > most:
        raise BadValue("threads", threads, f"must be at most {most} on this machine, which has {have} cores")


def require_room(key: str, value: Any, need_bytes: float, what: str, hint: str = "") -> None:
    """Refuse what does not fit into the memory of this machine.

    Args:
        key: the parameter to blame.
        value: what that parameter was.
        need_bytes: an estimate of what it takes.
        what: what takes it, in words.
        hint: what to do about it.

    Raises:
        BadValue: if it is more than the machine has; says both.

    >>> require_room("n", 10**9, 2.0**70, "its links")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: n: 1000000000: needs about 1.18e+12 GB for its links, and this machine has ...
    """
    have = memory_bytes()
    if need_bytes > have:
        rule = f"needs about {need_bytes / 1e9:.3g} GB for {what}, and this machine has {have / 1e9:.3g} GB"
        raise BadValue(key, value, rule, hint)


def remark_on_threads(threads: int) -> str:
    """Say what a number of threads may cost on this machine; nothing for one.

    >>> remark_on_threads(1), remark_on_threads(10**6).partition(";")[0].endswith("on this machine")
    ('', True)
    """
    if threads == 1:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hint = "compare the time of a short run with threads: 1"
    if threads > cores:
        return f"more threads than the {cores} core(s) on this machine; they wait for each other, so {hint}"
    return f"more than one thread is often slower where cores are busy, or models small; {hint}"


def remark_on_workers(workers: int | None, threads: int) -> str:
    """Say that processes will wait for each other's cores; nothing if they will not.

    >>> remark_on_workers(None, 1), remark_on_workers(10**6, 1).partition(";")[0].endswith("on this machine")
    ('', True)
    """
    if workers is None or workers * threads <= max(cores(), threads):
        return ""
    each = "" if threads == 1 else f" of {threads} threads each"
    return f"more processes{each} than the {cores()} core(s) on this machine; they wait for each other"
