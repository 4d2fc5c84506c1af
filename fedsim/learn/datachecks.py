"""What the parts of a dataset must be."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import BadValue


def check_samples(x_key: str, x: Tensor, y_key: str, y: Tensor) -> None:
    """Refuse inputs that are not finite numbers, or have not one label each."""
    if len(x) == 0:
        raise BadValue(x_key, tuple(x.shape), "there must be at least 1 sample")
    if not x.is_floating_point() or not x.isfinite().all():
        raise BadValue(x_key, str(x.dtype), "inputs must be finite floating-point numbers")
    if y.shape != x.shape[:1]:
        rule = f"there must be one for each of the {len(x)} samples of {x_key}"
        raise BadValue(y_key, tuple(y.shape), rule)


def check_targets(key: str, y: Tensor, classes: int) -> None:
    """Refuse targets that are not finite, or labels that are no classes."""
    if not classes:
        if not y.is_floating_point() or not y.isfinite().all():
            raise BadValue(key, str(y.dtype), "targets must be finite floating-point numbers")
        return
    if y.dtype != torch.int64:
        raise BadValue(key, str(y.dtype), "labels must be of type torch.int64")
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        rule = f"labels must be between 0 and {classes - 1}, for {classes} classes"
        raise BadValue(key, int(wrong[0]), rule)


def check_groups(groups: NDArray[np.int64], samples: int) -> None:
    """Refuse groups that are not numbered without a gap, or not one for each sample."""
    if groups.shape != (samples,):
        raise BadValue("groups", groups.shape, f"there must be one group for each of the {samples} samples")
    present = np.unique(groups)
    if not np.array_equal(present, np.arange(len(present))):
        raise BadValue("groups", present.tolist(), f"must be numbered 0 to {len(present) - 1} without a gap")
