"""Data that several runs of one process have in common: made once, and never changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fedsim import parts
from fedsim.learn.data.dataset import Dataset

MOST = 2
"""So many data sets are kept; what was made first goes first."""

KEPT: ContextVar[dict[Any, Dataset] | None] = ContextVar("KEPT", default=None)


@contextmanager
def kept() -> Iterator[None]:
    """Let all runs inside have their data in common, as far as they are the same."""
    before = KEPT.set({})
    try:
        yield
    finally:
        KEPT.reset(before)


def keep() -> None:
    """Let all runs of this process have their data in common."""
    KEPT.set({})


def made_once(
    part: parts.Part, given: Mapping[str, Any], supplied: Mapping[str, Any], make: Callable[[], Any]
) -> Any:
    """Return data, and make them only where no run of the same process has made them.

    Args:
        part: what makes them.
        given: the parameters that the experiment gives.
        supplied: what every part may ask for, such as the seed; what this one does not ask for makes no difference.
        make: makes them.
    """
    found = KEPT.get()
    if found is None:
        return make()
    asked = {name: one for name, one in supplied.items() if name in parts.parameters(part)}
    key = part, repr(sorted(given.items())), repr(sorted(asked.items()))
    if key not in found:
        while len(found) >= MOST:
            del found[next(iter(found))]
        found[key] = make()
    return found[key]
