"""Flower records that keep their tensors, and count their bytes as Flower would send them."""

from __future__ import annotations

import functools
import io
from collections.abc import ItemsView, ValuesView
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedsim.learn.deferred import Deferred

NUMPY = "numpy.ndarray"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}

Layout = list[tuple[str, tuple[int, ...]]]


class TensorArray(Array):
    """A piece of a deferred vector, as a Flower array.

    Nothing is turned into bytes unless foreign code asks for ``data``; nothing is computed unless somebody asks for
    ``data`` or ``numpy()``. In a timing-only run the numbers do not exist: zeros stand for them.

    Args:
        vector: the whole vector [P].
        start: where the piece begins.
        shape: its shape.
        dtype: its type, such as ``"float32"``.
    """

    def __init__(self, vector: Deferred, start: int, shape: tuple[int, ...], dtype: str) -> None:
        self.__dict__.update(vector=vector, start=start, dtype=dtype, shape=shape, stype=NUMPY)

    def numpy(self) -> np.ndarray:
        """Return the numbers, as an array of their own."""
        vector: Deferred = self.__dict__["vector"]
        if vector.is_phantom:
            return np.zeros(self.shape, self.dtype)
        start = self.__dict__["start"]
        piece = vector.value()[start : start + int(np.prod(self.shape, dtype=np.int64))]
        return np.array(piece.detach().cpu().numpy().reshape(self.shape))

    @property
    def data(self) -> bytes:
        """The numbers as Flower serialises them."""
        if "_bytes" not in self.__dict__:
            buffer = io.BytesIO()
            np.save(buffer, self.numpy(), allow_pickle=False)
            self.__dict__["_bytes"] = buffer.getvalue()
        return bytes(self.__dict__["_bytes"])

    @data.setter
    def data(self, value: bytes) -> None:
        raise TypeError("an array of a simulation cannot be changed in place; make a new flwr.app.Array")


class LazyMetrics(MetricRecord):
    """Metrics of which some are known and others are computed when they are read.

    Args:
        known: numbers that are there.
        values: a deferred dictionary of numbers.
        names: which of its entries belong to the record.
    """

    def __init__(self, known: dict[str, int | float], values: Deferred, names: tuple[str, ...]) -> None:
        super().__init__({**dict.fromkeys(names, 0.0), **known})
        self.__dict__.update(deferred=values, names=names)

    def _read(self) -> None:
        values: Deferred = self.__dict__["deferred"]
        names, self.__dict__["names"] = self.__dict__["names"], ()
        if names and not values.is_phantom:
            self.__dict__["_data"].update({name: float(values.value()[name]) for name in names})

    def __getitem__(self, key: str) -> Any:
        if key in self.__dict__["names"]:
            self._read()
        return super().__getitem__(key)

    def values(self) -> ValuesView[Any]:
        """Return the numbers, computed."""
        self._read()
        return super().values()

    def items(self) -> ItemsView[str, Any]:
        """Return names and numbers, computed."""
        self._read()
        return super().items()

    def copy(self) -> LazyMetrics:
        """Return a copy that is as lazy."""
        twin = super().copy()
        twin.__dict__.update(deferred=self.__dict__["deferred"], names=self.__dict__["names"])
        return twin

    def count_bytes(self) -> int:
        """Return the size on the wire, which does not depend on the numbers."""
        return sum(8 + len(name) for name in self)


def pack(vector: Deferred, layout: Layout, dtype: str = "float32") -> ArrayRecord:
    """Return a vector as a Flower record with one array for each parameter.

    Args:
        vector: the vector [P].
        layout: names and shapes of the pieces, in order.
        dtype: their type.
    """
    record, start = ArrayRecord(), 0
    for name, shape in layout:
        record[name] = TensorArray(vector, start, shape, dtype)
        start += int(np.prod(shape, dtype=np.int64))
    return record


def layout_of(record: ArrayRecord) -> tuple[Layout, str]:
    """Return names and shapes of a record's arrays, and their type."""
    first = next(iter(record.values()))
    return [(name, tuple(array.shape)) for name, array in record.items()], first.dtype


def unpack(record: ArrayRecord, device: torch.device | str = "cpu") -> Deferred:
    """Return the vector [P] that a record holds; a record that :func:`pack` made gives its vector back.

    Args:
        record: floating-point arrays.
        device: where the vector is put if it has to be made.
    """
    arrays = list(record.values())
    first = arrays[0]
    if isinstance(first, TensorArray) and _is_whole(arrays, first.__dict__["vector"]):
        vector: Deferred = first.__dict__["vector"]
        return vector
    flat = np.concatenate([array.numpy().reshape(-1) for array in arrays])
    return Deferred.known(torch.from_numpy(flat.astype(first.dtype, copy=False)).to(device))


def _is_whole(arrays: list[Array], vector: Deferred) -> bool:
    """Whether the arrays are the consecutive pieces of one vector."""
    start = 0
    for array in arrays:
        own = array.__dict__
        if own.get("vector") is not vector or own["start"] != start:
            return False
        start += int(np.prod(array.shape, dtype=np.int64))
    return True


def isolate(content: RecordDict, lifted: dict[int, ArrayRecord] | None = None) -> RecordDict:
    """Copy a message's content, so that one side cannot change what the other side holds.

    Args:
        content: the records.
        lifted: copies made before, by the id of the original: messages of one round share their arrays.

    Returns:
        New records. Arrays of one floating-point type become pieces of one vector, which never changes.
    """
    lifted = {} if lifted is None else lifted
    copy = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in lifted:
                lifted[id(record)] = _lift(record)
            copy[name] = lifted[id(record)].copy()
        else:
            copy[name] = record.copy()
    return copy


def _lift(record: ArrayRecord) -> ArrayRecord:
    types = {array.dtype for array in record.values()}
    if len(types) == 1 and types <= DTYPES.keys() and all(a.stype == NUMPY for a in record.values()):
        layout, dtype = layout_of(record)
        return pack(unpack(record), layout, dtype)
    return ArrayRecord({name: Array(a.dtype, tuple(a.shape), a.stype, a.data) for name, a in record.items()})


def wire_bytes(content: RecordDict) -> int:
    """Return how many bytes Flower would send for this content."""
    return sum(_record_bytes(record) + len(name) for name, record in content.items())


def _record_bytes(record: Any) -> int:
    if isinstance(record, ArrayRecord):
        return sum(len(name) + _array_bytes(array) for name, array in record.items())
    return int(record.count_bytes())


def _array_bytes(array: Array) -> int:
    return npy_bytes(array.shape, array.dtype) if isinstance(array, TensorArray) else len(array.data)


@functools.cache
def npy_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size of an array in NumPy's file format, header included.

    >>> npy_bytes((10, 5), "float32")
    328
    """
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )
    return len(buffer.getvalue()) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
