"""Calls that cost little: they are computed one by one, as soon as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Inputs = dict[str, Any]
"""The values that a call reads, by name."""


class Cheap:
    """A call that is computed alone."""

    batch = None

    def run(self, calls: Sequence[Any], inputs: Sequence[Inputs]) -> Sequence[Any]:
        """Compute one after the other."""
        return [call.one(given) for call, given in zip(calls, inputs, strict=True)]


class Pick(Cheap):
    """One entry of a dictionary."""

    def __init__(self, name: str) -> None:
        self.name = name

    def one(self, given: Inputs) -> Any:
        """Compute it."""
        return given["of"][self.name]


class Apply(Cheap):
    """What a function makes of a value."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def one(self, given: Inputs) -> Any:
        """Compute it."""
        return self.function(given["of"])


class Divide(Cheap):
    """A quotient."""

    def __init__(self, divisor: float) -> None:
        self.divisor = divisor

    def one(self, given: Inputs) -> Tensor:
        """Compute it."""
        result: Tensor = given["of"] / self.divisor
        return result


class Combine(Cheap):
    """A linear combination of vectors, summed in the order given."""

    def __init__(self, factors: tuple[float, ...]) -> None:
        self.factors = factors

    def one(self, given: Inputs) -> Tensor:
        """Compute it."""
        vectors = list(given.values())
        total: Tensor = vectors[0] * self.factors[0]
        for vector, factor in zip(vectors[1:], self.factors[1:], strict=True):
            total.add_(vector, alpha=factor)
        return total
