"""The building blocks of an experiment file: strict blocks, parts with parameters, and draws.

A *part* is something found by name (a topology, a model …) with its parameters. A *draw* is a number, or a
distribution to draw one from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fedsim.errors import BadValue
from fedsim.ranges import Deviation, NonNegative, Positive, within


def matching(pattern: str, rule: str) -> AfterValidator:
    """Return a validator for text that must match a regular expression as a whole; ``rule`` says so."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


Name = Annotated[
    str,
    matching(
        r"\.*[A-Za-z0-9_-][A-Za-z0-9_.-]*", "may only contain letters, digits, dots, dashes and underscores"
    ),
]
"""A name that is that of a folder, too."""


def _bounded(value: Any, info: ValidationInfo) -> Any:
    rule = within(value, info.field_name or "")
    if rule:
        raise ValueError(rule)
    return value


Parameter = Annotated[Any, AfterValidator(_bounded)]


class Block(BaseModel):
    """A block of the experiment file: frozen, strict, without unknown keys."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


class OpenBlock(Block):
    """A block whose unknown keys are the parameters of the part that it names; just the name will do, too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Parameter] = Field(init=False)

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the part, by name."""
        return dict(self.__pydantic_extra__)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_serializer(mode="wrap")
    def _written(self, write_block: SerializerFunctionWrapHandler) -> Any:
        block = write_block(self)
        return {**{key: block[key] for key in type(self).model_fields}, **dict(sorted(block.items()))}


class Part(OpenBlock):
    """A part by name with its parameters.

    >>> Part.model_validate({"name": "random_regular", "degree": 4}).params
    {'degree': 4}
    >>> Part.model_validate("ring").name
    'ring'
    """

    name: str = Field(description="an entry point's name or a dotted path")

    @model_serializer(mode="wrap")
    def _written(self, write_block: SerializerFunctionWrapHandler) -> Any:
        return dict(sorted(write_block(self).items())) if self.params else self.name


class Constant(Block):
    """Always the same number; it may also be written as just the number."""

    distribution: Literal["constant"] = Field(default="constant", description="the distribution's name")
    value: NonNegative = Field(description="the number, in the unit of the key")

    @model_validator(mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        return given if isinstance(given, dict) else {"value": given}

    @model_serializer
    def _short(self) -> float:
        return self.value

    @property
    def least(self) -> tuple[str, float]:
        """The key and the value that bound the numbers from below."""
        return "value", self.value

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw ``size`` numbers (float64, shape ``[size]``)."""
        return np.full(size, self.value)


class Uniform(Block):
    """Numbers between two bounds, all equally likely.

    >>> rng = np.random.Generator(np.random.Philox(key=1))
    >>> Uniform(distribution="uniform", low=2, high=2).sample(rng, 3)
    array([2., 2., 2.])
    """

    distribution: Literal["uniform"] = Field(description="the distribution's name")
    low: NonNegative = Field(description="the lower bound, in the unit of the key")
    high: NonNegative = Field(description="the upper bound, in the unit of the key")

    @field_validator("high")
    @classmethod
    def _ordered(cls, high: float, info: ValidationInfo) -> float:
        if high < info.data.get("low", 0):
            raise ValueError(f"must be at least low ({info.data['low']:g})")
        return high

    @property
    def least(self) -> tuple[str, float]:
        """The key and the value that bound the numbers from below."""
        return "low", self.low

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw ``size`` numbers (float64, shape ``[size]``)."""
        return rng.uniform(self.low, self.high, size)


class Lognormal(Block):
    """Numbers whose logarithm is normal."""

    distribution: Literal["lognormal"] = Field(description="the distribution's name")
    median: Positive = Field(description="the median, in the unit of the key")
    sigma: Deviation = Field(description="the standard deviation of the natural logarithm")

    @property
    def least(self) -> tuple[str, float]:
        """The key and the value that bound the numbers from below."""
        return "median", self.median

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw ``size`` numbers (float64, shape ``[size]``)."""
        return rng.lognormal(math.log(self.median), self.sigma, size)


class Exponential(Block):
    """Exponentially distributed numbers."""

    distribution: Literal["exponential"] = Field(description="the distribution's name")
    mean: NonNegative = Field(description="the mean, in the unit of the key")

    @property
    def least(self) -> tuple[str, float]:
        """The key and the value that bound the numbers from below."""
        return "mean", self.mean

    def sample(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Draw ``size`` numbers (float64, shape ``[size]``)."""
        return rng.exponential(self.mean, size)


def _distribution(given: Any) -> str | None:
    if isinstance(given, Mapping):
        return f"<{given['distribution']}>" if "distribution" in given else None
    return f"<{type(given).__name__.lower()}>" if isinstance(given, Block) else "<constant>"


Draw = Annotated[
    Annotated[Constant, Tag("<constant>")]
    | Annotated[Uniform, Tag("<uniform>")]
    | Annotated[Lognormal, Tag("<lognormal>")]
    | Annotated[Exponential, Tag("<exponential>")],
    Discriminator(_distribution),
]
"""A number, or a distribution to draw one from for each node or link; ``.sample(rng, size)`` draws."""


def _above_zero(draw: Constant | Uniform | Lognormal | Exponential) -> Any:
    key, least = draw.least
    if least <= 0:
        raise BadValue(key, int(least) if least == int(least) else least, "must be greater than 0")
    return draw


PositiveDraw = Annotated[Draw, AfterValidator(_above_zero)]
