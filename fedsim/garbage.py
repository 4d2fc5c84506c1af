"""How often Python looks for garbage during a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 50_000, 20, 100


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
