"""What went wrong in other people's code, in one line with its place."""

from __future__ import annotations

import sysconfig
import textwrap
import traceback
from pathlib import Path

import torch

FEDSIM, TORCH = str(Path(__file__).parents[1]), str(Path(str(torch.__file__)).parent)
PYTHON, PACKAGES = sysconfig.get_path("stdlib"), ("site-packages", "dist-packages")


LONG = 160
"""How many characters of a message are told."""


def told(error: BaseException) -> str:
    r"""Return kind, first line and place of an error: ``KeyError: 'x' (nets.py:12)``.

    The place is the innermost line that is not fedsim's, torch's or Python's own, if there is one.

    >>> told(ValueError("too wide\nand more"))
    'ValueError: too wide'
    """
    first = textwrap.shorten(next(iter(str(error).splitlines()), ""), LONG, placeholder=" …")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    place = _place(error)
    return f"{text} ({place})" if place else text


def passes(error: BaseException) -> bool:
    """Tell whether an error is none of the code's own: Ctrl-C, or a generator that is closed."""
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


def _place(error: BaseException) -> str:
    """Return the innermost line of the user's own code, or else of an installed package."""
    lines = [
        (frame.filename, frame.lineno)
        for frame in reversed(traceback.extract_tb(error.__traceback__))
        if not frame.filename.startswith(("<", FEDSIM, TORCH))
    ]
    packaged = [line for line in lines if any(name in line[0] for name in PACKAGES)]
    own = [line for line in lines if line not in packaged and not line[0].startswith(PYTHON)]
    for file, line in (*own, *packaged):
        return f"{_short(Path(file))}:{line}"
    return ""


def _short(file: Path) -> Path:
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file
