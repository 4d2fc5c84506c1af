"""Values that are computed when somebody needs them, together with all that is ready beside them.

The event plane hands values around without looking at them: the weights that a client trains, the average that a
server makes of them. Each is a :class:`Deferred`: a call and the deferred values it reads. When a number is needed,
everything it depends on is computed, batch by batch; what nobody needs is not computed, unless it becomes a long chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from fedsim.errors import ValueNeeded
from fedsim.learn.book import Book, Mismatch, Numbers
from fedsim.learn.cheap import Apply, Combine, Divide, Inputs, Pick
from fedsim.learn.identity import identity
from fedsim.pulse import beat

GONE: Any = type("Gone", (), {"__repr__": lambda _: "(gone)"})()
"""Stands for a value that was computed before the run was killed, and was not kept."""

__all__ = ["Call", "Deferred", "Inputs", "apply", "combine", "compute", "mean", "noted"]

DEEP = 1000
"""How long a chain of values that wait for each other may become; then it is computed, lest memory grows."""


class Assumed(dict[str, float]):
    """Numbers that stand in for computed ones; one that nobody has given is asked for by name."""

    def __missing__(self, name: str) -> float:
        """Refuse to make a number up."""
        known = ", ".join(self) or "nothing"
        raise ValueNeeded(f"the strategy reads {name}, and assume has only {known}; add {name} to assume")


class Call(Protocol):
    """A computation that can be done for many at once."""

    @property
    def batch(self) -> Hashable | None:
        """Calls with equal keys may be computed together; None is computed alone, as soon as possible."""

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Any]:
        """Compute several calls of this batch, given the values of their inputs by name."""


class Deferred:
    """A value that is computed when it is needed.

    Vectors can be added, subtracted and scaled; the result is deferred too.

    >>> import torch
    >>> x, y = Deferred.known(torch.tensor([1.0, 2.0])), Deferred.known(torch.tensor([3.0, 4.0]))
    >>> z = x - 0.5 * y
    >>> z.done
    False
    >>> z.value()
    tensor([-0.5000,  0.0000])
    """

    __slots__ = ("__weakref__", "_book", "_call", "_depth", "_identity", "_inputs", "_phantom", "_value")

    def __init__(self, call: Call, inputs: Mapping[str, Deferred], book: Book | None = None) -> None:
        self._call: Call | None = call
        self._inputs: dict[str, Deferred] = dict(inputs)
        self._value: Any = None
        self._phantom: bool = any(value._phantom for value in self._inputs.values())
        self._depth: int = 1 + max((value._depth for value in self._inputs.values()), default=0)
        self._book, self._identity = book, b""
        if self._phantom:
            self._call, self._inputs, self._depth = None, NONE, 0
            return
        if book is None:
            self._book = next(filter(None, (value._book for value in self._inputs.values())), None)
        if self._book is not None:
            self._identity = self._book.call(*self._parts())
            self._book.take(self)
        if self._depth > DEEP:
            compute([self])

    @classmethod
    def known(cls, value: Any, book: Book | None = None) -> Deferred:
        """Return a deferred value that is there already.

        Args:
            value: what it is.
            book: keeps count of what is made of it; None keeps none.
        """
        deferred = cls.__new__(cls)
        deferred._call, deferred._inputs, deferred._value, deferred._phantom = None, NONE, value, False
        deferred._depth, deferred._book, deferred._identity = 0, book, b""
        return deferred

    @classmethod
    def lifted(cls, value: Any, book: Book) -> Deferred:
        """Return a value that foreign code has made, which is another one where that only repeats what it has done."""
        deferred = cls.known(value, book)
        deferred._identity = book.lift(lambda: identity(value))
        book.take(deferred)
        return deferred

    @classmethod
    def phantom(cls, assumed: Mapping[str, float] | None = None) -> Deferred:
        """Return a value that will never be there; all that depends on it will not be there either.

        Args:
            assumed: numbers of a deferred dictionary that can be read as if they had been computed; None has none.

        >>> result = Deferred.phantom({"train_loss": 0.5})
        >>> result.pick("train_loss").value(), result.pick("arrays").is_phantom
        (0.5, True)
        """
        deferred = cls.known(None if assumed is None else Assumed(assumed))
        deferred._phantom = True
        return deferred

    @property
    def done(self) -> bool:
        """Whether the value is there."""
        return self._call is None and not self._phantom and self._value is not GONE

    @property
    def book(self) -> Book | None:
        """What keeps count of it."""
        return self._book

    @property
    def is_gone(self) -> bool:
        """Whether the value was computed before the run was killed, and was not kept."""
        return self._value is GONE

    @property
    def identity(self) -> bytes:
        """What the value is, as 32 bytes that follow from its call and from the identities of what it reads."""
        if not self._identity:
            parts = (self._value,) if self._call is None else self._parts()
            self._identity = identity(*parts) if self._book is None else self._book.name(*parts)
        return self._identity

    @property
    def made_of(self) -> tuple[Call | None, Mapping[str, Deferred]]:
        """The call and the values that it reads, by name; none once the value is there."""
        return self._call, self._inputs

    @property
    def is_phantom(self) -> bool:
        """Whether the value will never be there, as in a timing-only run."""
        return self._phantom

    @property
    def assumed(self) -> Assumed | None:
        """The numbers that stand in for those of a phantom, or None."""
        return self._value if self._phantom else None

    def value(self) -> Any:
        """Compute the value if need be, and return it.

        Raises:
            ValueNeeded: if it is a phantom.
            Mismatch: if it was computed before the run was killed, and was not kept.
        """
        compute([self])
        if self.is_gone:
            raise Mismatch("a value is asked for that was not kept")
        return self._value

    def read(self, name: str = "") -> Any:
        """Return numbers, as every decision has to read them: they are kept, and are there when a run is repeated.

        Args:
            name: the entry of a deferred dictionary; nothing for all of the value, which must be numbers, then.

        >>> Deferred.known({"loss": 0.5}).read("loss")
        0.5
        """
        return noted([self], name, lambda: _numbers(self.value(), name))

    def moved(self, value: Any) -> Deferred:
        """Return the same value, held in another place."""
        twin = Deferred.known(value, self._book)
        twin._identity = self.identity
        if self._book is not None:
            self._book.alive.add(twin)
        return twin

    def settle(self, value: Any) -> None:
        """Be there, without having been computed."""
        self._value, self._call, self._inputs, self._depth = value, None, NONE, 0

    def forget(self) -> None:
        """Be neither there nor ever computed: it was, and nobody will need it again."""
        self.settle(GONE)

    def _parts(self) -> tuple[Any, ...]:
        return self._call, {name: value.identity for name, value in self._inputs.items()}

    def pick(self, name: str) -> Deferred:
        """Return one entry of a deferred dictionary."""
        if self._phantom:
            known = self._value or {}
            return Deferred.known(known[name]) if name in known else Deferred.phantom()
        return Deferred(Pick(name), {"of": self})

    def __add__(self, other: Deferred) -> Deferred:
        return combine([self, other], [1.0, 1.0])

    def __sub__(self, other: Deferred) -> Deferred:
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, factor: float) -> Deferred:
        return combine([self], [factor])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Deferred:
        return Deferred(Divide(divisor), {"of": self})


NONE: dict[str, Deferred] = {}
"""What a value reads that is there: nothing, and nobody may add to it."""


def noted(values: Sequence[Deferred], name: str, make: Callable[[], Numbers]) -> Any:
    """Return numbers that are made of values, and keep them; where the values are gone, return what was kept.

    Args:
        values: at least one.
        name: tells these numbers from others that are made of the same values.
        make: returns them.
    """
    book = next(filter(None, (value._book for value in values)), None)
    if book is None or any(value.is_phantom for value in values):
        return make()
    named = [value.identity for value in values]
    key = f"{(named[0] if len(named) == 1 else identity(*named)).hex()} {name}".rstrip()
    if any(value.is_gone for value in values):
        return book.recall(key)
    return book.note(key, make())


def combine(vectors: Sequence[Deferred], factors: Sequence[float]) -> Deferred:
    """Return the linear combination of vectors, summed in the order given.

    Args:
        vectors: at least one deferred vector, all of one length.
        factors: one number for each.
    """
    if len(vectors) != len(factors) or not vectors:
        raise ValueError(f"{len(vectors)} vectors and {len(factors)} factors")
    for vector in vectors:
        if (
            vector.is_phantom
        ):  # a new one, as without phantoms: who tells vectors apart must not see a difference
            return Deferred.phantom()
    return Deferred(Combine(tuple(factors)), {str(i): vector for i, vector in enumerate(vectors)})


def mean(vectors: Sequence[Deferred], weights: Sequence[float] | None = None) -> Deferred:
    """Return the mean of vectors, summed in the order given.

    Args:
        vectors: at least one deferred vector, all of one length.
        weights: one number for each, not all 0; None counts all the same.
    """
    weights = [1.0] * len(vectors) if weights is None else weights
    return combine(vectors, weights) / sum(weights)


def apply(function: Callable[[Any], Any], to: Deferred) -> Deferred:
    """Return what a function makes of a deferred value.

    >>> apply(len, Deferred.known([3, 1])).value()
    2
    """
    return Deferred(Apply(function), {"of": to})


def compute(wanted: Iterable[Deferred]) -> None:
    """Compute values and all that they depend on.

    Cheap calls run as soon as they can; calls that can be batched wait until nothing cheap is left, so that as
    many as possible run together.

    Raises:
        ValueNeeded: if one of them is a phantom.
    """
    waiting, readers = _closure(wanted)
    _check_reuse(waiting)
    ready = [value for value, missing in waiting.items() if missing == 0]
    batches: dict[Hashable, list[Deferred]] = defaultdict(list)
    while ready or batches:
        finished: list[Deferred] = []
        for value in ready:
            assert value._call is not None
            if value._call.batch is None:
                _run([value])
                finished.append(value)
            else:
                batches[value._call.batch].append(value)
        if not finished and batches:
            finished = batches.pop(next(iter(batches)))
            _run(finished)
            if finished[0].book is not None:
                finished[0].book.pause()
        ready = []
        for value in finished:
            del waiting[value]  # or a long chain would keep every value that it went through
            for reader in readers.pop(value, ()):
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    ready.append(reader)


def _closure(wanted: Iterable[Deferred]) -> tuple[dict[Deferred, int], dict[Deferred, list[Deferred]]]:
    """Return, of all that is needed and not there, how many inputs are missing and who reads what."""
    waiting: dict[Deferred, int] = {}
    readers: dict[Deferred, list[Deferred]] = defaultdict(list)
    stack = list(wanted)
    while stack:
        value = stack.pop()
        if value._phantom and value.assumed is None:
            raise ValueNeeded("a timing-only run has no values; this choice depends on one")
        if value._call is None or value in waiting or _found(value):
            continue
        if any(source.is_gone for source in value._inputs.values()):
            raise Mismatch("a value has to be computed of one that was not kept")
        missing = [one for one in dict.fromkeys(value._inputs.values()) if not (one.done or _found(one))]
        waiting[value] = len(missing)
        for source in missing:
            readers[source].append(value)
        stack.extend(missing)
    return dict(reversed(waiting.items())), readers


def _found(value: Deferred) -> bool:
    """Take a value from the store of what other runs have computed, if it is there."""
    book, call = value._book, value._call
    if book is None or book.store is None or call is None or call.batch is None or book.unnamed:
        return False
    found = book.store.get(value.identity)
    if found is not None:
        book.reused += hasattr(call, "gradients")
        book.gradients_saved += getattr(call, "gradients", 0)
        value.settle(found)
    return found is not None


def _check_reuse(waiting: Iterable[Deferred]) -> None:
    """Refuse to compute local updates where all of them are to be taken from a store; name the first of them."""
    missing: list[Any] = [
        value._call for value in waiting if value._book is not None and value._book.only_reuses
    ]
    updates = [call for call in missing if hasattr(call, "missing")]
    if updates:
        raise min(updates, key=lambda call: (call.place.sim_time_s, call.place.node)).missing()


def _numbers(value: Any, name: str) -> Numbers:
    """Return numbers, or one entry of them, as plain ones."""
    chosen = value[name] if name else value
    if isinstance(chosen, Mapping):
        return {key: float(one) for key, one in chosen.items()}
    return float(chosen)


def _run(values: Sequence[Deferred]) -> None:
    calls = [value._call for value in values]
    inputs = [{name: source._value for name, source in value._inputs.items()} for value in values]
    assert calls[0] is not None
    results = calls[0].run(calls, inputs)
    beat()
    for value, result in zip(values, results, strict=True):
        if value._book is not None:
            value._book.computed(value.identity, value._call, result)
        value.settle(result)
