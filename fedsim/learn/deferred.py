"""Values that are computed when somebody needs them, together with all that is ready beside them.

The event plane hands values around without looking at them: the weights that a client trains, the average that a
server makes of them. Each is a :class:`Deferred`: a call and the deferred values it reads. When a number is needed,
everything it depends on is computed, batch by batch; what nobody needs is not computed, unless it becomes a long chain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from fedsim.errors import ValueNeeded
from fedsim.pulse import beat

Inputs = dict[str, Any]

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

    __slots__ = ("_call", "_depth", "_inputs", "_phantom", "_value")

    def __init__(self, call: Call, inputs: Mapping[str, Deferred]) -> None:
        self._call: Call | None = call
        self._inputs: dict[str, Deferred] = dict(inputs)
        self._value: Any = None
        self._phantom: bool = any(value._phantom for value in self._inputs.values())
        self._depth: int = 1 + max((value._depth for value in self._inputs.values()), default=0)
        if self._phantom:
            self._call, self._inputs, self._depth = None, {}, 0
        elif self._depth > DEEP:
            compute([self])

    @classmethod
    def known(cls, value: Any) -> Deferred:
        """Return a deferred value that is there already."""
        deferred = cls.__new__(cls)
        deferred._call, deferred._inputs, deferred._value, deferred._phantom = None, {}, value, False
        deferred._depth = 0
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
        return self._call is None and not self._phantom

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
        """
        compute([self])
        return self._value

    def pick(self, name: str) -> Deferred:
        """Return one entry of a deferred dictionary."""
        if self._phantom:
            known = self._value or {}
            return Deferred.known(known[name]) if name in known else Deferred.phantom()
        return Deferred(_Pick(name), {"of": self})

    def __add__(self, other: Deferred) -> Deferred:
        return combine([self, other], [1.0, 1.0])

    def __sub__(self, other: Deferred) -> Deferred:
        return combine([self, other], [1.0, -1.0])

    def __mul__(self, factor: float) -> Deferred:
        return combine([self], [factor])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Deferred:
        return Deferred(_Divide(divisor), {"of": self})


def combine(vectors: Sequence[Deferred], factors: Sequence[float]) -> Deferred:
    """Return the linear combination of vectors, summed in the order given.

    Args:
        vectors: at least one deferred vector, all of one length.
        factors: one number for each.
    """
    if len(vectors) != len(factors) or not vectors:
        raise ValueError(f"{len(vectors)} vectors and {len(factors)} factors")
    if any(vector.is_phantom for vector in vectors):
        return (
            Deferred.phantom()
        )  # a new one, as without phantoms: who tells vectors apart must not see a difference
    return Deferred(_Combine(tuple(factors)), {str(i): vector for i, vector in enumerate(vectors)})


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
    return Deferred(_Apply(function), {"of": to})


def compute(wanted: Iterable[Deferred]) -> None:
    """Compute values and all that they depend on.

    Cheap calls run as soon as they can; calls that can be batched wait until nothing cheap is left, so that as
    many as possible run together.

    Raises:
        ValueNeeded: if one of them is a phantom.
    """
    waiting, readers = _closure(wanted)
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
        if value._call is None or value in waiting:
            continue
        missing = [source for source in dict.fromkeys(value._inputs.values()) if not source.done]
        waiting[value] = len(missing)
        for source in missing:
            readers[source].append(value)
        stack.extend(missing)
    return dict(reversed(waiting.items())), readers


def _run(values: Sequence[Deferred]) -> None:
    calls = [value._call for value in values]
    inputs = [{name: source._value for name, source in value._inputs.items()} for value in values]
    assert calls[0] is not None
    results = calls[0].run(calls, inputs)
    beat()
    for value, result in zip(values, results, strict=True):
        value._value, value._call, value._inputs, value._depth = result, None, {}, 0


class _Cheap:
    batch = None

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Any]:
        return [call.one(given) for call, given in zip(calls, inputs, strict=True)]


class _Pick(_Cheap):
    def __init__(self, name: str) -> None:
        self.name = name

    def one(self, given: Inputs) -> Any:
        return given["of"][self.name]


class _Apply(_Cheap):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def one(self, given: Inputs) -> Any:
        return self.function(given["of"])


class _Divide(_Cheap):
    def __init__(self, divisor: float) -> None:
        self.divisor = divisor

    def one(self, given: Inputs) -> Tensor:
        result: Tensor = given["of"] / self.divisor
        return result


class _Combine(_Cheap):
    def __init__(self, factors: tuple[float, ...]) -> None:
        self.factors = factors

    def one(self, given: Inputs) -> Tensor:
        vectors = list(given.values())
        total: Tensor = vectors[0] * self.factors[0]
        for vector, factor in zip(vectors[1:], self.factors[1:], strict=True):
            total.add_(vector, alpha=factor)
        return total
