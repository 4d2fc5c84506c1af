"""How often Python looks for garbage during a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 50_000, 20, 100
MUCH = 200_000_000
"""How many bytes finished runs may leave behind before they are looked for."""

_left = 0


@contextmanager
def settled() -> Iterator[None]:
    """Look for garbage seldom, and not among what exists already.

    A run makes many objects that live for a while and few cycles; with Python's own thresholds, a third of the time of
    a large timing-only run goes into looking for them.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def over() -> None:
    """Look for no garbage when this process ends, as its memory goes back as a whole; say so last of all.

    Python looks through all that libraries have made once more before it exits. What must be closed or written at the
    end is registered with :mod:`atexit`, and is done as ever.
    """
    gc.disable()
    gc.freeze()


def leave(size_bytes: int) -> None:
    """Note that a run is about to end, and free the earlier ones once they hold much memory.

    What a run holds hangs together in circles. Python counts the objects in these and not their bytes, so it would let
    the data of many runs in a row pile up.

    Args:
        size_bytes: the memory that the run holds.
    """
    global _left
    _left += size_bytes
    if _left > MUCH:
        gc.collect()
        _left = size_bytes
