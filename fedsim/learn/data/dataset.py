"""What a dataset is: samples for training and test, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import BadValue, did_you_mean

LOSSES = ("cross_entropy", "half_square", "mse", "mae", "huber", "bce")


PADDING = -100
"""The label of what is no target, where a sample has several."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples; checked when it is made.

    Args:
        name: what reports call it.
        x: [N, *shape] the training inputs: floating-point numbers, or whole ones such as words.
        y: [N, …] the training labels, int64 in 0..classes-1 (or -100 as padding, where a sample has several), or
            floating-point targets.
        x_test: [T, *shape] the test inputs.
        y_test: [T, …] the test labels or targets.
        classes: how many classes there are, 0 for regression and for labels that are targets of 0 and 1.
        groups: [N] the natural client of each training sample, numbered 0..G-1, or None if there is none.
        loss: ``"cross_entropy"`` of logits, ``"half_square"``, that is 0.5 (prediction - target)^2, or another one of
            :mod:`fedsim.learn.losses`, unless the experiment says another.
        optimum: [d] the exact minimiser of the unweighted mean of the natural clients' mean losses, if known.
        difficulty: [N] how hard each training sample is known to be, or None.
        note: what whoever reads its results must know, as one sentence; check, run, summary and report say it.

    Raises:
        BadValue: if the fields do not fit together; the key is the field.

    >>> line = torch.tensor([[0.0], [1.0]])
    >>> Dataset("two", line, torch.tensor([0, 2]), line, torch.tensor([0, 1]), classes=2)
    Traceback (most recent call last):
    fedsim.errors.BadValue: y: 2: labels must be between 0 and 1, for 2 classes
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    groups: NDArray[np.int64] | None = None
    loss: str = "cross_entropy"
    optimum: Tensor | None = None
    difficulty: NDArray[np.float64] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadValue("loss", self.loss, "unknown loss", did_you_mean(self.loss, LOSSES))
        if not (self.classes > 1 if self.loss == "cross_entropy" else self.classes == 0):
            rule = f"cross_entropy needs at least 2 classes, all others need 0; the loss is {self.loss}"
            raise BadValue("classes", self.classes, rule)
        _check_samples("x", self.x, "y", self.y)
        _check_samples("x_test", self.x_test, "y_test", self.y_test)
        if self.x_test.shape[1:] != self.x.shape[1:]:
            raise BadValue("x_test", tuple(self.x_test.shape[1:]), f"must have the shape of x, {self.shape}")
        _check_targets("y", self.y, self.classes)
        _check_targets("y_test", self.y_test, self.classes)
        if self.groups is not None:
            _check_groups(self.groups, len(self.x))
        if self.optimum is not None and (self.optimum.dim() != 1 or not self.optimum.isfinite().all()):
            raise BadValue("optimum", self.optimum.tolist(), "must be a flat vector of finite numbers")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])


def _check_samples(x_key: str, x: Tensor, y_key: str, y: Tensor) -> None:
    if len(x) == 0:
        raise BadValue(x_key, tuple(x.shape), "there must be at least 1 sample")
    if x.is_complex() or not x.isfinite().all():
        rule = f"inputs must be finite real numbers; sample {_first_bad(x)} has others"
        raise BadValue(x_key, str(x.dtype), rule)
    if y.shape[:1] != x.shape[:1]:
        raise BadValue(
            y_key, tuple(y.shape), f"there must be one for each of the {len(x)} samples of {x_key}"
        )


def _first_bad(x: Tensor) -> int:
    """Return the position of the first sample with NaN or infinity."""
    bad = ~x.isfinite().reshape(len(x), -1).all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else 0


def _check_targets(key: str, y: Tensor, classes: int) -> None:
    if not classes:
        if not y.is_floating_point() or not y.isfinite().all():
            raise BadValue(key, str(y.dtype), "targets must be finite floating-point numbers")
        return
    if y.dtype != torch.int64:
        raise BadValue(key, str(y.dtype), "labels must be of type torch.int64")
    padding = (y == PADDING) if y.dim() > 1 else torch.zeros_like(y, dtype=torch.bool)
    wrong = y[((y < 0) | (y >= classes)) & ~padding]
    if len(wrong):
        raise BadValue(
            key, int(wrong[0]), f"labels must be between 0 and {classes - 1}, for {classes} classes"
        )


def _check_groups(groups: NDArray[np.int64], samples: int) -> None:
    if groups.shape != (samples,):
        raise BadValue("groups", groups.shape, f"there must be one group for each of the {samples} samples")
    present = np.unique(groups)
    if not np.array_equal(present, np.arange(len(present))):
        raise BadValue("groups", present.tolist(), f"must be numbered 0 to {len(present) - 1} without a gap")
