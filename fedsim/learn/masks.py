"""Random numbers that follow from a key and a place: the same in every engine, slot and process.

torch's generators give numbers by the order of the calls, so that clients in a stack would share them. Here a number is
a hash of the job's key, the step, the call in that step, and the place in the tensor: all of these are known to
a client alone, and the hash is made of operations that can be mapped over a stack of clients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

GOLDEN, FIRST, SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The constants of SplitMix64, as signed numbers."""

BITS = 53
"""So many bits of a hash are used: what a float64 between 0 and 1 can hold."""

Shape = tuple[int, ...]


def hashed(key: Tensor, counter: Tensor | int) -> Tensor:
    """Return 64 random bits for each place of a counter.

    Args:
        key: whose numbers these are, int64 [].
        counter: places, int64.

    References:
        Steele, Lea, Flood: Fast splittable pseudorandom number generators. OOPSLA 2014 (SplitMix64).

    >>> hashed(torch.tensor(0), torch.arange(2) + 1).tolist()  # 0xe220a8397b1dcdaf, 0x6e789e6aa1b965f4
    [-2152535657050944081, 7960286522194355700]
    """
    places = torch.as_tensor(counter, device=key.device)  # Python's own whole numbers do not wrap around
    bits = key + places * GOLDEN
    bits = (bits ^ _down(bits, 30)) * FIRST
    bits = (bits ^ _down(bits, 27)) * SECOND
    return bits ^ _down(bits, 31)


def _down(bits: Tensor, by: int) -> Tensor:
    """Shift right, filling up with zeros, which torch does for no signed type."""
    shifted: Tensor = (bits >> by) & (2 ** (64 - by) - 1)
    return shifted


class Draws:
    """What one job draws, call by call.

    Args:
        key: of the job, int64 [].
        step: the number of the step, from 0.

    >>> Draws(torch.tensor(7), 0).uniform((2,)).tolist() == Draws(torch.tensor(7), 0).uniform((2,)).tolist()
    True
    """

    def __init__(self, key: Tensor, step: int = 0) -> None:
        self._key, self._step, self.calls = key, step, 0

    def bits(self, shape: Shape) -> Tensor:
        """Return whole numbers from 0 to 2^53 - 1 of a shape; the first samples have the same in any batch."""
        stream = hashed(hashed(self._key, self._step + 1), self.calls + 1)
        self.calls += 1
        places = torch.arange(1, 1 + torch.Size(shape).numel(), device=self._key.device).view(shape)
        bits: Tensor = hashed(stream, places) & (2**BITS - 1)
        return bits

    def uniform(self, shape: Shape, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return numbers between 0 and 1, 1 excluded in float64."""
        return (self.bits(shape).double() * 2.0**-BITS).to(dtype)

    def normal(self, shape: Shape, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return standard normal numbers (Box and Muller, 1958)."""
        radius = (-2.0 * torch.log1p(-self.uniform(shape))).sqrt()
        return (radius * torch.cos(2.0 * torch.pi * self.uniform(shape))).to(dtype)


class Masked(TorchFunctionMode):
    """Lets ``F.dropout`` and its kin, wherever they are called, take their masks from a job's draws.

    That includes ``nn.Dropout`` and ``nn.Dropout1d`` to ``3d``; everything else draws from torch as ever.

    Args:
        draws: of the job.

    >>> def drop():
    ...     with Masked(Draws(torch.tensor(3))):
    ...         return functional.dropout(torch.ones(6), 0.5)
    >>> drop().tolist() == drop().tolist()
    True
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Drop by the job's own mask."""
        if func not in SIDES:
            return func(*args, **(kwargs or {}))
        return self._drop(SIDES[func], *args, **(kwargs or {}))

    def _drop(
        self, sides: int | None, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if not training:
            return input
        shape = tuple(input.shape)
        if sides is not None:
            kept = _kept(shape, sides)
            shape = shape[:kept] + (1,) * (len(shape) - kept)
        keep = self.draws.bits(shape) >= round(p * 2**BITS)
        scale = keep.to(input.dtype) * (1.0 / (1.0 - p) if p < 1.0 else 0.0)
        return input.mul_(scale) if inplace else input * scale


def _kept(shape: Shape, sides: int) -> int:
    """Return how many of the first dimensions have masks of their own, as torch has it.

    Those are samples and channels, or the channels alone of one sample without a batch. ``F.dropout2d`` takes three
    dimensions for samples and channels of one side, and any other number for samples and channels, too.
    """
    if sides == 1 and len(shape) > 3:
        raise RuntimeError(f"dropout1d: Expected 2D or 3D input, but received a {len(shape)}D input.")
    alone = (sides == 1 and len(shape) == 2) or (sides == 3 and len(shape) != 5)
    return 1 if alone else 2


SIDES: dict[Any, int | None] = {
    functional.dropout: None,
    functional.dropout1d: 1,
    functional.dropout2d: 2,
    functional.dropout3d: 3,
}
"""How many sides the channels have that a function drops as a whole; None drops number by number."""
