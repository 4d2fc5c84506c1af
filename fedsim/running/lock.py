"""One process at a time in a run's folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import BadValue

if sys.platform != "win32":
    import fcntl


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others out of a folder; the system lets them in again when the process ends, however it ends.

    Raises:
        BadValue: if another process is in it.
    """
    if sys.platform == "win32":  # which has no such lock
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "is in use: another process runs or resumes this run"
            raise BadValue("run", str(folder), rule, "wait until it has ended") from None
        yield
    finally:
        os.close(place)
