"""A file of pieces, one after the other, each with its checksum: what a kill has cut off can be told from the rest."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Self

HEAD = struct.Struct("<Q32s")
"""Before each piece: its length in bytes, and the SHA-256 of that and of the piece."""


class Tape:
    """Pieces that were written before, to be read in their order, and room for more after the last of them.

    Whatever is appended has left the process when the call returns, so that a kill cannot take it back. What follows
    the first piece that is not whole is overwritten by what is appended next.

    Args:
        path: the file; it is made if there is none.
        lasting_s: after so many seconds of real time, what is appended also outlives a loss of power.

    Attributes:
        path: the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Tape(Path(folder) / "a.tape") as tape:
    ...         tape.append(b"one")
    ...     with Tape(Path(folder) / "a.tape") as tape:
    ...         tape.read(), tape.read(), tape.left
    (b'one', None, 0)
    """

    def __init__(self, path: Path, lasting_s: float = 60.0) -> None:
        self.path, self._lasting_s = path, lasting_s
        self._file = open(path, "r+b" if path.exists() else "x+b", buffering=0)  # noqa: SIM115 - close() closes it
        self._place, self._lasted_s = 0, time.monotonic()

    @property
    def left(self) -> int:
        """How many bytes follow what was read and appended."""
        return max(0, os.fstat(self._file.fileno()).st_size - self._place)

    def read(self) -> bytes | None:
        """Return the next piece, or None if there is none that is whole."""
        self._file.seek(self._place)
        head = self._file.read(HEAD.size) or b""
        if len(head) < HEAD.size:
            return None
        length, digest = HEAD.unpack(head)
        if length > self.left - HEAD.size:
            return None
        piece = self._all(length)
        if _digest(piece) != digest:
            return None
        self._place += HEAD.size + length
        return piece

    def append(self, piece: bytes) -> None:
        """Write a piece after those that were read and appended.

        Raises:
            OSError: if there is no room; nothing of the piece is left, then.
        """
        self._file.seek(self._place)
        if self.left:
            self._file.truncate()
        try:
            rest = memoryview(HEAD.pack(len(piece), _digest(piece)) + piece)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
            if time.monotonic() - self._lasted_s >= self._lasting_s:
                self._sync()
        except OSError:
            self._file.truncate(self._place)
            raise
        self._place += HEAD.size + len(piece)

    def close(self) -> None:
        """Let all that was appended outlive a loss of power; a second call does nothing."""
        if not self._file.closed:
            with self._file:
                self._sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, length: int) -> bytes:
        """Read so many bytes; the system may hand out fewer of many at once."""
        parts = []
        while length:
            part = self._file.read(length)
            if not part:
                break
            parts.append(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._lasted_s = time.monotonic()


def _digest(piece: bytes) -> bytes:
    found = hashlib.sha256(len(piece).to_bytes(8, "little"))
    found.update(piece)
    return found.digest()
