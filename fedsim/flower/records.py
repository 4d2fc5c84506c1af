"""Flower records that keep their tensors, and count their bytes as Flower would send them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsim.flower.lazy import NUMPY, TensorArray
from fedsim.learn.codec import Codec
from fedsim.learn.deferred import Deferred, Inputs
from fedsim.running.wire import NUMBER_BYTES, encoded_bytes, npy_bytes, text_bytes

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}

Layout = list[tuple[str, tuple[int, ...]]]


def pack(vector: Deferred, layout: Layout, dtype: str = "float32", codec: Codec | None = None) -> ArrayRecord:
    """Return a vector as a Flower record with one array for each parameter.

    Args:
        vector: the vector [P].
        layout: names and shapes of the pieces, in order.
        dtype: their type.
        codec: how the vector is written when it is sent; receivers see what comes out of it.
    """
    record, start = ArrayRecord(), 0
    for index, (name, shape) in enumerate(layout, 1):
        record[name] = TensorArray(vector, start, shape, dtype, last=index == len(layout), codec=codec)
        start += int(np.prod(shape, dtype=np.int64))
    return record


def solid(record: ArrayRecord) -> ArrayRecord:
    """Return a record of ordinary arrays, computed, as it leaves a process."""
    return ArrayRecord({name: Array(array.numpy()) for name, array in record.items()})


def layout_of(record: ArrayRecord) -> tuple[Layout, str]:
    """Return names and shapes of a record's arrays, and their type."""
    first = next(iter(record.values()))
    return [(name, tuple(array.shape)) for name, array in record.items()], first.dtype


def unpack(
    record: ArrayRecord, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Deferred:
    """Return the vector [P] that a record holds; a record that :func:`pack` made gives its vector back.

    Args:
        record: floating-point arrays.
        device: where the vector is put if it has to be made.
        dtype: its type, or None for the record's own. Some of Flower's strategies turn float32 into float64.
    """
    arrays = list(record.values())
    first = arrays[0]
    if isinstance(first, TensorArray) and _is_whole(arrays, first.__dict__["vector"]):
        vector: Deferred = first.__dict__["vector"]
    else:
        flat = np.concatenate([array.numpy().reshape(-1) for array in arrays])
        vector = Deferred.known(torch.from_numpy(flat.astype(first.dtype, copy=False)).to(device))
    if dtype is None or DTYPES.get(first.dtype) is dtype:
        return vector
    return Deferred(_Cast(dtype), {"of": vector})


def lifted(record: ArrayRecord, own: Deferred) -> ArrayRecord:
    """Return a record of arrays that a strategy has made as pieces of one vector, which a run keeps count of.

    Args:
        record: floating-point arrays.
        own: the initial weights [P]; a record that holds them is returned as it is.
    """
    vector = unpack(record, own.value().device)
    if vector is own or own.book is None:
        return repack(vector, record)
    value = torch.zeros(0) if vector.is_gone else vector.value()
    return repack(Deferred.lifted(value, own.book), record)


@dataclass(frozen=True)
class _Cast:
    """Changes the type of a vector."""

    dtype: torch.dtype
    batch: None = None

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Any]:
        return [given["of"].to(call.dtype) for call, given in zip(calls, inputs, strict=True)]


def whole(record: ArrayRecord) -> bool:
    """Tell whether a record is one vector, whose numbers are there or can be computed.

    >>> vector = Deferred.known(torch.zeros(6))
    >>> record = pack(vector, [("a", (2, 2)), ("b", (2,))])
    >>> whole(record), whole(solid(record))
    (True, False)
    """
    arrays = list(record.values())
    vector = arrays[0].__dict__.get("vector") if arrays else None
    return vector is not None and not (vector.is_phantom or vector.is_gone) and _is_whole(arrays, vector)


def _is_whole(arrays: list[Array], vector: Deferred) -> bool:
    """Whether the arrays are the consecutive pieces of one vector, all of them."""
    start = 0
    for array in arrays:
        own = array.__dict__
        if own.get("vector") is not vector or own["start"] != start:
            return False
        start += int(np.prod(array.shape, dtype=np.int64))
    return bool(arrays[-1].__dict__["last"])


Lift = Callable[[ArrayRecord], ArrayRecord]
_BLANK: dict[type, dict[str, Any]] = {kind: vars(kind()) for kind in (RecordDict, MetricRecord, ConfigRecord)}


def isolate(
    content: RecordDict, lifted: dict[int, ArrayRecord] | None = None, lift: Lift | None = None
) -> RecordDict:
    """Copy a message's content, so that one side cannot change what the other side holds.

    Args:
        content: the records.
        lifted: copies made before, by the id of the original: messages of one round share their arrays.
        lift: makes pieces of one vector of them; None is the usual way.

    Returns:
        New records. Arrays of one floating-point type become pieces of one vector, which never changes.
    """
    lifted = {} if lifted is None else lifted
    held = {name: _own(record, lifted, lift) for name, record in content.__dict__["_data"].items()}
    copy: RecordDict = _like(content, held)
    return copy


def _own(record: Any, lifted: dict[int, ArrayRecord], lift: Lift | None) -> Any:
    if type(record) not in _BLANK and isinstance(record, ArrayRecord):
        if id(record) not in lifted:
            lifted[id(record)] = _lift(record, lift)
        return _twin(lifted[id(record)])
    held = record.__dict__["_data"]
    return _like(record, {key: list(one) if isinstance(one, list) else one for key, one in held.items()})


def _like(record: Any, held: dict[str, Any]) -> Any:
    """Return a copy that holds something else, which has been checked before: that takes long."""
    blank = _BLANK.get(type(record))
    if blank is None:  # a class of somebody else's
        copy = record.copy()
    else:  # as its own method does it, in a third of the time
        copy = object.__new__(type(record))
        copy.__dict__.update(blank)
    copy.__dict__["_data"] = held
    return copy


def _twin(record: ArrayRecord) -> ArrayRecord:
    """Return a record of its own; arrays that can change are copied, too."""
    twin = record.copy()
    for name, a in record.items():
        if not isinstance(a, TensorArray):
            twin[name] = Array(a.dtype, tuple(a.shape), a.stype, a.data)
    return twin


def _lift(record: ArrayRecord, lift: Lift | None) -> ArrayRecord:
    types = {array.dtype for array in record.values()}
    if len(types) == 1 and types <= DTYPES.keys() and all(a.stype == NUMPY for a in record.values()):
        return repack(unpack(record), record) if lift is None else lift(record)
    return ArrayRecord(dict(record))


def repack(vector: Deferred, record: ArrayRecord) -> ArrayRecord:
    """Return another vector [P] in the form of a record: its names and shapes, its type, its codec."""
    layout, dtype = layout_of(record)
    return pack(vector, layout, dtype, _codec(record))


def _codec(record: ArrayRecord) -> Codec | None:
    first = next(iter(record.values()), None)
    return first.__dict__["codec"] if isinstance(first, TensorArray) else None


def wire_bytes(content: RecordDict) -> int:
    """Return how many bytes Flower would send for this content."""
    size = 0
    for name, record in content.items():
        size += _record_bytes(record) + text_bytes(name)
    return size


def _record_bytes(record: Any) -> int:
    if type(record) not in _BLANK and isinstance(record, ArrayRecord):
        codec = _codec(record)
        if codec is not None:
            layout, dtype = layout_of(record)
            return encoded_bytes(codec, sum(math.prod(shape) for _, shape in layout), dtype)
        return sum(text_bytes(name) + _array_bytes(array) for name, array in record.items())
    known, size = record.__dict__["_data"], 0  # sizes do not depend on numbers that are not computed yet
    for name, value in known.items():
        size += text_bytes(name) + _value_bytes(value)
    return size


def _value_bytes(value: Any) -> int:
    if type(value) in (int, float):  # most are, so this comes first
        return NUMBER_BYTES
    if isinstance(value, list):
        return sum(_value_bytes(one) for one in value)
    if isinstance(value, str):
        return text_bytes(value)
    if isinstance(value, bytes):
        return len(value)
    return 1 if isinstance(value, bool) else NUMBER_BYTES


def _array_bytes(array: Array) -> int:
    return npy_bytes(array.shape, array.dtype) if isinstance(array, TensorArray) else len(array.data)
