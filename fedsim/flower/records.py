"""Flower records that keep their tensors, and count their bytes as Flower would send them."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, ItemsView, Iterable, Iterator, Sequence, ValuesView
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedsim.learn.book import Mismatch
from fedsim.learn.codec import Codec
from fedsim.learn.deferred import Deferred, Inputs, compute
from fedsim.running.wire import encoded_bytes, npy_bytes, text_bytes

NUMPY = "numpy.ndarray"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
LAZY = ("deferred", "names", "beside")
FIELDS = ("dtype", "shape", "stype", "data")

Layout = list[tuple[str, tuple[int, ...]]]


class TensorArray(Array):
    """A piece of a deferred vector, as a Flower array.

    Nothing is turned into bytes unless foreign code asks for ``data``; nothing is computed unless somebody asks for
    ``data`` or ``numpy()``. In a timing-only run the numbers do not exist, nor do those that were computed before a run
    was killed: zeros stand for them. It never changes; pickled or copied, it becomes an ordinary array.

    Args:
        vector: the whole vector [P].
        start: where the piece begins.
        shape: its shape.
        dtype: its type, such as ``"float32"``.
        last: whether the vector ends with this piece.
        codec: how the vector is written when it is sent; None writes every number.
    """

    def __init__(
        self,
        vector: Deferred,
        start: int,
        shape: tuple[int, ...],
        dtype: str,
        last: bool = False,
        codec: Codec | None = None,
    ) -> None:
        self.__dict__.update(vector=vector, start=start, dtype=dtype, shape=shape, stype=NUMPY)
        self.__dict__.update(last=last, codec=codec)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to change what receivers of one message share."""
        if name in FIELDS:
            raise TypeError("an array of a simulation cannot be changed in place; make a new flwr.app.Array")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)

    def deflate(self) -> bytes:
        """Return what Flower sends for an ordinary array; the class's name is part of it."""
        return Array(self.dtype, self.shape, self.stype, self.data).deflate()

    def numpy(self) -> np.ndarray:
        """Return the numbers, as an array of their own."""
        vector: Deferred = self.__dict__["vector"]
        start = self.__dict__["start"]
        whole = None if vector.is_phantom else _value(vector, self.__dict__)
        if whole is None:
            return np.zeros(self.shape, self.dtype)
        piece = whole[start : start + int(np.prod(self.shape, dtype=np.int64))]
        return np.array(piece.detach().cpu().numpy().reshape(self.shape))

    @property
    def data(self) -> bytes:  # type: ignore[override]  # read-only on purpose
        """The numbers as Flower serialises them."""
        if "_bytes" not in self.__dict__:
            buffer = io.BytesIO()
            np.save(buffer, self.numpy(), allow_pickle=False)
            self.__dict__["_bytes"] = buffer.getvalue()
        return bytes(self.__dict__["_bytes"])


class LazyMetrics(MetricRecord):
    """Metrics of which some are known and others are computed when they are read.

    Args:
        known: numbers that are there.
        values: a deferred dictionary of numbers.
        names: which of its entries belong to the record.
    """

    def __init__(self, known: dict[str, int | float], values: Deferred, names: tuple[str, ...]) -> None:
        self.__dict__.update(deferred=values, names=())
        super().__init__({**dict.fromkeys(names, 0.0), **known})
        self.__dict__["names"] = names

    def _read(self) -> None:
        names, values = self.__dict__["names"], self.__dict__["deferred"]
        if values.is_phantom:
            self.__dict__["invented"] = self.__dict__.get("invented", False) or bool(names)
        numbers = values.assumed
        if numbers is None and names and not values.is_phantom:
            _value(values, self.__dict__)
            numbers = {name: _number(values, name) for name in names}
        if numbers is not None:
            self.__dict__["_data"].update({name: float(numbers[name]) for name in names})
        if not values.is_phantom:
            self.__dict__["names"] = ()

    def _forget(self, key: str) -> None:
        """A value that its owner has changed is not computed any more."""
        self.__dict__["names"] = tuple(name for name in self.__dict__["names"] if name != key)

    def __getitem__(self, key: str) -> Any:
        if key in self.__dict__["names"]:
            values = self.__dict__["deferred"]
            if values.is_phantom and values.assumed is not None:
                self.__dict__["invented"] = True
                return float(values.assumed[key])  # whoever reads one number need not assume the others
            self._read()
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._forget(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self._forget(key)
        super().__delitem__(key)

    def __eq__(self, other: object) -> bool:
        self._read()
        if isinstance(other, LazyMetrics):
            other._read()
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self._read()
        return super().__repr__()

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
        twin.__dict__.update({key: self.__dict__[key] for key in LAZY if key in self.__dict__})
        return twin

    def deflate(self) -> bytes:
        """Return what Flower sends for an ordinary record; the class's name is part of it."""
        return MetricRecord(dict(self.items())).deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        return MetricRecord, (dict(self.items()),)


@contextlib.contextmanager
def real(records: Iterable[MetricRecord]) -> Iterator[Callable[[], bool]]:
    """Watch whether anything is read of some metrics that nobody has computed, but that was assumed or is zero.

    Args:
        records: any metrics.

    >>> record = LazyMetrics({"num-examples": 3}, Deferred.phantom(), ("train_loss",))
    >>> with real([record]) as is_real:
    ...     record["num-examples"], is_real(), record["train_loss"], is_real()
    (3, True, 0.0, False)
    """
    lazy = [record.__dict__ for record in records if isinstance(record, LazyMetrics)]
    for one in lazy:
        one["invented"] = False
    yield lambda: not any(one["invented"] for one in lazy)


def _number(values: Deferred, name: str) -> float:
    """Return a number; where a strategy that only repeats what it did chooses others than then, zero stands for it."""
    try:
        number: float = values.read(name)
    except Mismatch:
        if values.book is None or not values.book.repeats:
            raise
        return 0.0
    return number


def _value(wanted: Deferred, own: dict[str, Any]) -> Any:
    """Return a value, computed together with those beside it; None if it was computed before the run was killed."""
    beside: list[Deferred] = own.get("beside", [])
    compute([wanted, *beside])
    beside.clear()
    return None if wanted.is_gone else wanted.value()


def together(contents: Iterable[RecordDict]) -> None:
    """Let the values of several messages be computed all at once, as soon as one of them is read."""
    beside: list[Deferred] = []
    for record in (record for content in contents for record in content.values()):
        if isinstance(record, LazyMetrics):
            record.__dict__["beside"] = beside
            beside.append(record.__dict__["deferred"])
        for array in record.values() if isinstance(record, ArrayRecord) else ():
            if isinstance(array, TensorArray):
                array.__dict__["beside"] = beside
                beside.append(array.__dict__["vector"])


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
    copy = content.copy()
    held = copy.__dict__["_data"]  # what is in it has been checked before, which takes long
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            if id(record) not in lifted:
                lifted[id(record)] = _lift(record, lift)
            held[name] = _twin(lifted[id(record)])
        else:
            held[name] = record.copy()
            inner = held[name].__dict__["_data"]
            inner.update({key: list(value) for key, value in inner.items() if isinstance(value, list)})
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
    return sum(_record_bytes(record) + text_bytes(name) for name, record in content.items())


def _record_bytes(record: Any) -> int:
    if isinstance(record, ArrayRecord):
        codec = _codec(record)
        if codec is not None:
            layout, dtype = layout_of(record)
            return encoded_bytes(codec, sum(math.prod(shape) for _, shape in layout), dtype)
        return sum(text_bytes(name) + _array_bytes(array) for name, array in record.items())
    known = record.__dict__["_data"]  # sizes do not depend on numbers that are not computed yet
    return sum(text_bytes(name) + _value_bytes(value) for name, value in known.items())


def _value_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(one) for one in value)
    if isinstance(value, str):
        return text_bytes(value)
    if isinstance(value, bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def _array_bytes(array: Array) -> int:
    return npy_bytes(array.shape, array.dtype) if isinstance(array, TensorArray) else len(array.data)
