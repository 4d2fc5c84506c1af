"""Ways to write a vector in fewer bytes: what is lost is lost before, so that reading gives back what was written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Pieces = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type of each array that a vector is written as, by name."""


class Codec(ABC):
    """Writes vectors as smaller arrays.

    A vector that :meth:`decode` returned, encoded and decoded again, is the same to the bit.
    """

    @abstractmethod
    def pieces(self, size: int, dtype: str) -> Pieces:
        """Return what a vector of ``size`` numbers is written as; the same for every vector of that size."""

    @abstractmethod
    def encode(self, vector: Tensor) -> dict[str, Tensor]:
        """Write a vector [P], as :meth:`pieces` says."""

    @abstractmethod
    def decode(self, pieces: Mapping[str, Tensor], size: int) -> Tensor:
        """Read a vector [P] of ``size`` numbers."""


class Sparse(Codec):
    """The largest numbers and where they stand; the others are zero.

    Args:
        share: the share of the numbers that is written, rounded up.

    >>> codec = Sparse(0.5)
    >>> written = codec.encode(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    >>> written["indices"].tolist(), codec.decode(written, 4).tolist()
    ([1, 3], [0.0, -2.0, 0.0, 1.0])
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def count(self, size: int) -> int:
        """Return how many of ``size`` numbers are written."""
        return max(1, math.ceil(self.share * size - 1e-9))

    def pieces(self, size: int, dtype: str) -> Pieces:
        """Return positions and values."""
        count = (self.count(size),)
        return {"indices": (count, "int32"), "values": (count, dtype)}

    def encode(self, vector: Tensor) -> dict[str, Tensor]:
        """Write the largest numbers; of equal ones, the first."""
        order = torch.argsort(vector.abs(), descending=True, stable=True)
        indices = order[: self.count(len(vector))].sort().values
        return {"indices": indices.to(torch.int32), "values": vector[indices]}

    def decode(self, pieces: Mapping[str, Tensor], size: int) -> Tensor:
        """Put the numbers where they stood."""
        values = pieces["values"]
        zeros = torch.zeros(size, dtype=values.dtype, device=values.device)
        return zeros.scatter(0, pieces["indices"].long(), values)


class Quantised(Codec):
    """Whole numbers between two bounds, and the largest absolute value.

    Args:
        bits: the size of a whole number.

    >>> codec = Quantised(8)
    >>> written = codec.encode(torch.tensor([127.0, -3.2, 0.0]))
    >>> written["codes"].tolist(), codec.decode(written, 3).tolist()
    ([127, -3, 0], [127.0, -3.0, 0.0])
    """

    def __init__(self, bits: Literal[8, 16] = 8) -> None:
        self.bits = bits
        self.levels = 2 ** (bits - 1) - 1

    def pieces(self, size: int, dtype: str) -> Pieces:
        """Return codes and scale."""
        return {"codes": ((size,), f"int{self.bits}"), "scale": ((1,), dtype)}

    def encode(self, vector: Tensor, up: Tensor | None = None) -> dict[str, Tensor]:
        """Write the nearest level.

        Args:
            vector: the numbers [P].
            up: numbers between 0 and 1 [P]; round up where they are below the distance to the level beneath.
        """
        scale = vector.abs().amax().reshape(1)
        exact = vector / torch.where(scale > 0, scale, torch.ones_like(scale)) * self.levels
        codes = exact.round() if up is None else exact.floor() + (up < exact - exact.floor())
        whole = torch.int8 if self.bits == 8 else torch.int16
        return {"codes": codes.clamp(-self.levels, self.levels).to(whole), "scale": scale}

    def decode(self, pieces: Mapping[str, Tensor], size: int) -> Tensor:
        """Return the levels."""
        scale = pieces["scale"]
        # First the quotient: the largest one is then exactly the scale, and writing it again changes nothing.
        levels: Tensor = pieces["codes"].to(scale.dtype) / self.levels
        return levels * scale
