"""Standard output and standard error that may be full, closed, or a pipe that nobody reads any more.

A run takes hours, and its result is in its folder: that nobody listens must not end it. So what cannot be written is
dropped, the first refusal is kept in mind, and :func:`judged` says at the very end what that means.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

REFUSED = 1
"""The exit code of a command that was asked for nothing but text, and could not write it."""

NAMES = {1: "stdout", 2: "stderr"}


class Stream(io.FileIO):
    """A file descriptor that is written to for as long as it takes anything.

    >>> with Stream("/dev/full", "wb") as full:
    ...     full.write(b"dropped"), full.refusal.strerror
    (7, 'No space left on device')
    """

    refusal: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write, or drop what cannot be written."""
        if self.refusal is None:
            try:
                return super().write(data)
            except OSError as error:
                self.refusal = error
        return len(data)


def guard() -> dict[int, Stream]:
    """Put streams that never fail in the place of standard output and standard error, and return them.

    What was closed before the process began is opened for reading alone: it refuses all that is written, and no file
    of a run gets its number, into which a library could print.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest free number, which is this one
    streams = {}
    for number, name in NAMES.items():
        before = getattr(sys, name)
        if before is not None:
            before.flush()
        streams[number] = raw = Stream(number, "wb", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors=getattr(before, "errors", None) or "backslashreplace",
            line_buffering=number == 2 or raw.isatty(),
        )
        setattr(sys, name, text)
    return streams


def judged(code: int | str | None, streams: dict[int, Stream], wanted: bool) -> int | str | None:
    """Say on standard error what standard output has refused, and return the exit code.

    A pipe that nobody reads any more is no mistake (``fedsim list | head -1``), and is not worth a word.

    Args:
        code: the command's own exit code.
        streams: what :func:`guard` has returned.
        wanted: whether the text was all that the command was asked for.
    """
    sys.stdout.flush()
    refusal = streams[1].refusal
    if refusal is not None and refusal.errno != errno.EPIPE:
        print(f"standard output cannot be written ({refusal.strerror})", file=sys.stderr)  # noqa: T201
    sys.stderr.flush()
    return REFUSED if wanted and refusal is not None and not code else code
