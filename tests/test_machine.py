"""What is asked of the machine, and of its C library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedsim.machine import KEPT_BYTES

PAGES = """
import resource, sys
from fedsim.machine import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    raise SystemExit("not here")

def step():
    held = [bytearray(2**20) for _ in range(8)]  # as activations: made one after the other, and all freed

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step()
before = faults()
for _ in range(50):
    step()
print(faults() - before)
"""


def pages(how: str) -> int:
    """Return how many pages a process of its own is given anew in 50 steps of 8 MiB each."""
    command = [sys.executable, "-c", PAGES, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stderr.strip() == "not here":
        pytest.skip("the C library has no such setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_used_again_and_not_returned_at_every_step() -> None:
    """50 steps are given their pages once, and not 50 times; a few others are the interpreter's."""
    assert pages("kept") * 10 < pages("as it is")


def test_what_is_kept_is_within_what_glibc_takes() -> None:
    """Its manual bounds the mmap threshold: 4 * 1024 * 1024 * sizeof(long)."""
    assert KEPT_BYTES[-3] <= 4 * 1024 * 1024 * 8
