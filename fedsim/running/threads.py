"""How many threads one operation on the CPU may use; the number is part of the result's last bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Use that many threads, and the former number again afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def remark(threads: int) -> str:
    """Say what a number of threads may cost on this machine; nothing for one.

    >>> remark(1), remark(10**6).partition(";")[0].endswith("on this machine")
    ('', True)
    """
    if threads == 1:
        return ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hint = "compare the time of a short run with threads: 1"
    if threads > cores:
        return f"more threads than the {cores} core(s) on this machine; they wait for each other, so {hint}"
    return f"more than one thread is often slower where cores are busy, or models small; {hint}"
