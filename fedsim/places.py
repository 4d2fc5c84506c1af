"""Places in code: which line of which file, and whether a user may have written it."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from types import TracebackType

OWN = str(Path(__file__).parent) + os.sep
OTHERS = tuple({sysconfig.get_path(name) + os.sep for name in ("stdlib", "purelib", "platlib")})
"""Folders whose code no user has written: this package, the standard library, what is installed."""


def of_error(error: BaseException) -> str:
    """Return file and line where an error was raised, in code that a user may have written if there is any."""
    places, trace = [], error.__traceback__
    while isinstance(trace, TracebackType):
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    foreign = [place for place in places if not is_own(place[0])]
    return "".join(f"{near(file)}:{number}" for file, number in (foreign or places)[-1:])


def is_own(file: str) -> bool:
    """Tell whether no user has written a file."""
    return file.startswith((OWN, *OTHERS, "<"))


def near(file: str) -> str:
    """Return a path from the current folder where the file is inside of it."""
    here = os.getcwd() + os.sep
    return file.removeprefix(here)
