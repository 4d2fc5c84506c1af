"""Memory that two processes share: numbers are laid on it instead of being sent through a pipe.

A desk is a file without a name that others need to know for long: both sides map it, and then it is removed, so that
nothing is left behind whoever is killed.
"""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64
"""Tensors begin at multiples of so many bytes, as torch's own do."""

LEAST = 1024
"""Tensors of fewer bytes go through the pipe."""

SHARED = "/dev/shm"
"""Where Linux keeps files that never reach a disk."""


class Board(Protocol):
    """Something to lay numbers on, beside a pickle."""

    def put(self, tensor: Tensor) -> int | None:
        """Lay a tensor's numbers down, and return where; None if there is no room."""

    def view(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Return what was laid down, where it lies."""

    def put_bytes(self, data: bytes) -> int | None:
        """Lay bytes down, and return where; None if there is no room."""

    def take_bytes(self, start: int, size: int) -> bytes:
        """Return a copy of bytes that were laid down."""


class Desk:
    """A piece of shared memory that is filled from its beginning, again and again.

    Args:
        path: a file of that many bytes.
        start: the first byte that is this desk's.
        size: how many bytes it has.
    """

    def __init__(self, path: str | Path, start: int, size: int) -> None:
        self._memory = np.memmap(path, np.uint8, "r+", start, size)
        self._used = 0

    def clear(self) -> None:
        """Begin anew: whoever reads has copied what he needs."""
        self._used = 0

    def put(self, tensor: Tensor) -> int | None:
        """Lay a tensor's numbers down, and return where; None if there is no room."""
        start = self._used
        if start + tensor.nbytes > len(self._memory):
            return None
        self.view(start, tensor.dtype, tensor.shape).copy_(tensor)
        self._used = -(-(start + tensor.nbytes) // ALIGNED) * ALIGNED
        return start

    def put_bytes(self, data: bytes) -> int | None:
        """Lay bytes down, and return where; None if there is no room."""
        start = self._used
        if start + len(data) > len(self._memory):
            return None
        self._memory[start : start + len(data)] = np.frombuffer(data, np.uint8)
        self._used = -(-(start + len(data)) // ALIGNED) * ALIGNED
        return start

    def take_bytes(self, start: int, size: int) -> bytes:
        """Return a copy of bytes that were laid down."""
        return self._memory[start : start + size].tobytes()

    def view(self, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """Return what was laid down, where it lies."""
        size = shape.numel() * dtype.itemsize
        return torch.from_numpy(self._memory[start : start + size]).view(dtype).view(shape)


def reserve(size: int) -> str:
    """Make a file of that many bytes that both can map, in memory if there is room, and return its path.

    Raises:
        OSError: if there is no room anywhere.
    """
    folders = [folder for folder in (SHARED, tempfile.gettempdir()) if os.path.isdir(folder)]
    for last, folder in enumerate(folders, 1 - len(folders)):
        handle, path = tempfile.mkstemp(prefix="fedsim-", dir=folder)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(
                    handle, 0, size
                )  # or a full disk would be noticed in the middle of writing
            else:
                os.truncate(path, size)
        except OSError:
            os.unlink(path)
            if last == 0:
                raise
        else:
            return path
        finally:
            os.close(handle)
    raise AssertionError("there is a folder for temporary files")


def dumps(value: Any, desk: Board) -> bytes:
    """Pickle a value; the larger tensors in it are laid on a desk, each of them once."""
    written = io.BytesIO()
    Writer(written, desk).dump(value)
    return written.getvalue()


def loads(data: bytes, desk: Board, copy: bool = True) -> Any:
    """Return the value that was pickled.

    Args:
        data: what :func:`dumps` returned.
        desk: the same desk.
        copy: whether its tensors are copies; otherwise they stay where they lie, for as long as nobody clears the desk.
    """
    return _Reader(io.BytesIO(data), desk, copy).load()


class Writer(pickle.Pickler):
    """Writes a pickle, and the larger tensors in it onto a desk.

    Args:
        file: gets the pickle.
        desk: gets the numbers.
    """

    def __init__(self, file: io.BytesIO, desk: Board) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._desk = desk
        self._put: dict[int, tuple[Any, ...]] = {}
        self._held: list[Any] = []  # an id belongs to another value when the first one is gone

    def persistent_id(self, value: Any) -> Any:
        """Return where a value lies that is laid on the desk; None for any other."""
        if type(value) is np.ndarray and value.dtype.kind in "if" and value.nbytes >= LEAST:
            return *self._laid(value, torch.from_numpy(np.ascontiguousarray(value))), True
        if type(value) is not Tensor or value.requires_grad or value.device.type != "cpu":
            return None
        return *self._laid(value, value), False

    def _laid(self, value: Any, tensor: Tensor) -> tuple[Any, ...]:
        """Lay numbers down, unless they lie there already, and return where, or the numbers themselves."""
        if id(value) not in self._put:
            start = self._desk.put(tensor) if tensor.nbytes >= LEAST else None
            told = ("is", tensor.contiguous().numpy().tobytes()) if start is None else ("at", start)
            self._put[id(value)] = *told, tensor.dtype, tensor.shape
            self._held.append(value)
        return self._put[id(value)]


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, desk: Board, copy: bool) -> None:
        super().__init__(file)
        self._desk, self._copy = desk, copy
        self._taken: dict[int, Tensor] = {}

    def persistent_load(self, told: Any) -> Tensor | np.ndarray | bytes:
        if told[0] == "bytes":
            return self._desk.take_bytes(*told[1:])
        how, what, dtype, shape, is_array = told
        if how == "is":
            found = (
                torch.frombuffer(bytearray(what), dtype=dtype).view(shape)
                if what
                else torch.empty(shape, dtype=dtype)
            )
        elif what in self._taken:
            found = self._taken[what]
        else:
            found = self._desk.view(what, dtype, shape)
            self._taken[what] = found = found.clone() if self._copy else found
        return found.numpy() if is_array else found
