"""Flower arrays and metrics whose numbers are computed when somebody reads them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, ItemsView, Iterable, Iterator, ValuesView
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from fedsim.learn.book import Mismatch
from fedsim.learn.codec import Codec
from fedsim.learn.deferred import Deferred, compute

NUMPY = "numpy.ndarray"
LAZY = ("deferred", "names", "beside")
FIELDS = ("dtype", "shape", "stype", "data")


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
    for record in (record for content in contents for record in content.__dict__["_data"].values()):
        kind = type(record)
        if kind is LazyMetrics:
            record.__dict__["beside"] = beside
            beside.append(record.__dict__["deferred"])
        for array in record.values() if kind is ArrayRecord else ():
            if isinstance(array, TensorArray):
                array.__dict__["beside"] = beside
                beside.append(array.__dict__["vector"])
