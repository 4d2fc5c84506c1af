"""Messages between processes: their arrays are laid on shared memory, each of them once."""

from __future__ import annotations

import io
from typing import Any

from flwr.app import ArrayRecord
from torch import Tensor

from fedsim.flower.records import Layout, layout_of, pack, unpack, whole
from fedsim.learn.deferred import Deferred
from fedsim.learn.engines.desk import LEAST, Desk, Writer, loads

__all__ = ["dumps", "loads"]


def dumps(value: Any, desk: Desk) -> bytes:
    """Pickle what may hold Flower's records; :func:`loads` returns it.

    Arrays that are the pieces of one vector are laid down as that vector, other arrays as their bytes; what finds no
    room on the desk is part of the pickle.

    Args:
        value: a message, a context or whatever has records in it.
        desk: shared memory, empty.

    >>> import torch
    >>> from fedsim.learn.engines.desk import reserve
    >>> path = reserve(4096)
    >>> desk, record = Desk(path, 0, 4096), pack(Deferred.known(torch.arange(500.0)), [("w", (500,))])
    >>> data = dumps(record, desk)
    >>> len(data) < 500, float(loads(data, desk)["w"].numpy().sum())
    (True, 124750.0)
    >>> import os
    >>> os.unlink(path)
    """
    written = io.BytesIO()
    _Writer(written, desk).dump(value)
    return written.getvalue()


class _Writer(Writer):
    def persistent_id(self, value: Any) -> Any:
        if type(value) is not bytes:
            return super().persistent_id(value)
        return self._kept(value) if len(value) >= LEAST else None

    def _kept(self, value: bytes) -> Any:
        """Lay bytes down, and return where; None if there is no room."""
        if id(value) not in self._put:
            start = self._desk.put_bytes(value)
            if start is None:
                return None
            self._put[id(value)] = "bytes", start, len(value)
            self._held.append(value)
        return self._put[id(value)]

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not ArrayRecord or not whole(value):
            return NotImplemented
        layout, dtype = layout_of(value)
        vector = unpack(value).value()
        # on a GPU, or with a history, it goes as ordinary arrays do
        plain = type(vector) is Tensor and vector.device.type == "cpu" and not vector.requires_grad
        return (_packed, (vector, layout, dtype)) if plain else NotImplemented


def _packed(vector: Tensor, layout: Layout, dtype: str) -> ArrayRecord:
    return pack(Deferred.known(vector), layout, dtype)
