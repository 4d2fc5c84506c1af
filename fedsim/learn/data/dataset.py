"""What a dataset is: samples for training and test, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import MISSING, BadValue, did_you_mean
from fedsim.learn.several import Several, X, leaves, shape_of

LOSSES = ("cross_entropy", "half_square", "mse", "mae", "huber", "bce")

PADDING = -100
"""The label of what is no target, where a sample has several."""

PIECE = 4096
"""So many samples are looked at together: of what is mapped from a disk, no more comes into memory."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test samples; checked when it is made.

    Args:
        name: what reports call it.
        x: [N, *shape] the training inputs, floating-point, or whole numbers such as tokens; or several such tensors, as
            a tuple, which a model takes one after the other, or as a dictionary, which it takes by name.
        y: [N, …] the training labels, int64 in 0..classes-1, or floating-point targets; one for each sample, or one
            for each step of a sequence, where :data:`PADDING` stands for padding.
        x_test: [T, *shape] the test inputs, as many as x has.
        y_test: [T, …] the test labels or targets.
        classes: how many classes there are, 0 for regression.
        groups: [N] the natural client of each training sample, numbered 0..G-1, or None if there is none.
        loss: ``"cross_entropy"`` of logits, ``"half_square"``, that is 0.5 (prediction - target)^2, or another one of
            :mod:`fedsim.learn.losses`, unless the experiment says another.
        optimum: [d] the exact minimiser of the unweighted mean of the natural clients' mean losses, if known.
        difficulty: [N] how hard each training sample is known to be, or None.
        note: what whoever reads its results must know, as one sentence; check, run, summary and report say it.
        counts: how many values each number of an input can have, if that is known: users and items, of pairs of them.
        test_groups: [T] the natural client of each test sample, or -1 for one that no training sample is of; None if
            there is none.

    Raises:
        BadValue: if the fields do not fit together; the key is the field.

    >>> line = torch.tensor([[0.0], [1.0]])
    >>> Dataset("two", line, torch.tensor([0, 2]), line, torch.tensor([0, 1]), classes=2)
    Traceback (most recent call last):
    fedsim.errors.BadValue: y: 2: labels must be between 0 and 1, for 2 classes
    """

    name: str
    x: X
    y: Tensor
    x_test: X
    y_test: Tensor
    classes: int
    groups: NDArray[np.int64] | None = None
    loss: str = "cross_entropy"
    optimum: Tensor | None = None
    difficulty: NDArray[np.float64] | None = None
    note: str = ""
    counts: tuple[int, ...] = ()
    test_groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        for key in ("x", "x_test"):
            given = getattr(self, key)
            if isinstance(given, list | tuple | dict):
                object.__setattr__(self, key, _together(key, given))
        if self.loss not in LOSSES:
            raise BadValue("loss", self.loss, "unknown loss", did_you_mean(self.loss, LOSSES))
        if not (self.classes > 1 if self.loss == "cross_entropy" else self.classes == 0):
            rule = f"cross_entropy needs at least 2 classes, all others need 0; the loss is {self.loss}"
            raise BadValue("classes", self.classes, rule)
        _check_samples("x", self.x, "y", self.y)
        _check_samples("x_test", self.x_test, "y_test", self.y_test)
        if shape_of(self.x_test) != self.shape:
            raise BadValue("x_test", shape_of(self.x_test), f"must have the shape of x, {self.shape}")
        _check_targets("y", self.y, self.classes)
        _check_targets("y_test", self.y_test, self.classes)
        if self.loss == "bce":
            check_shares("y", self.y)
            check_shares("y_test", self.y_test)
        if self.groups is not None:
            _check_groups(self.groups, len(self.x))
        if self.test_groups is not None and self.test_groups.shape != (len(self.x_test),):
            rule = f"there must be one group for each of the {len(self.x_test)} test samples"
            raise BadValue("test_groups", self.test_groups.shape, rule)
        if self.optimum is not None and (self.optimum.dim() != 1 or not self.optimum.isfinite().all()):
            raise BadValue("optimum", self.optimum.tolist(), "must be a flat vector of finite numbers")

    @property
    def shape(self) -> Any:
        """The shape of one sample; of several inputs their shapes, in order or by name."""
        return shape_of(self.x)


def _together(key: str, given: Any) -> Several:
    """Return several inputs as one thing, or refuse what is no such thing."""
    several = Several(given)
    if not several.parts or not all(isinstance(part, Tensor) and part.dim() for part in several.parts):
        raise BadValue(key, MISSING, "must be a tensor, or a tuple or dictionary of tensors")
    if any(not isinstance(name, str) or not name.isidentifier() for name in several.names):
        raise BadValue(key, list(several.names), "must have names that a model can take")
    lengths = [len(part) for part in several.parts]
    if len(set(lengths)) > 1:
        raise BadValue(key, lengths, "all inputs must have as many samples")
    return several


def _check_samples(x_key: str, x: X, y_key: str, y: Tensor) -> None:
    if len(x) == 0:
        raise BadValue(x_key, 0, "there must be at least 1 sample")
    names = x.names or range(len(x.parts)) if isinstance(x, Several) else ()
    for name, part in zip([f"{x_key}.{name}" for name in names] or [x_key], leaves(x), strict=True):
        if part.is_complex() or (part.dtype == torch.bool and part is x):
            raise BadValue(name, str(part.dtype), "inputs must be floating-point or whole numbers")
        check_finite(name, part, "inputs")
    if y.shape[:1] != (len(x),):
        raise BadValue(
            y_key, tuple(y.shape), f"there must be one for each of the {len(x)} samples of {x_key}"
        )


def check_finite(key: str, values: Tensor | NDArray[Any], what: str) -> None:
    """Refuse NaN and infinity, and say in which sample of those given they are.

    Args:
        key: what is to be blamed.
        values: [N, …], in memory or mapped from a disk.
        what: what they are, in the plural.

    Raises:
        BadValue: naming the first one.
    """
    if not (values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"):
        return
    for start in range(0, len(values), PIECE):
        given = values[start : start + PIECE]
        piece = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given, np.float64))
        fine = piece.reshape(len(piece), -1).isfinite().all(1)
        if not fine.all():
            sample = start + int((~fine).nonzero()[0, 0])
            raise BadValue(
                key, MISSING, f"{what} must be finite numbers, and sample {sample} has NaN or infinity"
            )


def _check_targets(key: str, y: Tensor, classes: int) -> None:
    if not classes:
        if not y.is_floating_point():
            raise BadValue(key, str(y.dtype), "targets must be finite floating-point numbers")
        check_finite(key, y, "targets")
        return
    if y.dtype != torch.int64:
        raise BadValue(key, str(y.dtype), "labels must be of type torch.int64")
    outside = (y < 0) | (y >= classes)
    if y.dim() > 1:
        outside &= y != PADDING
    wrong = y[outside]
    if len(wrong):
        raise BadValue(
            key, int(wrong[0]), f"labels must be between 0 and {classes - 1}, for {classes} classes"
        )


def check_shares(key: str, y: Tensor) -> None:
    """Refuse targets that are no shares, of which a binary cross entropy would be below 0.

    Raises:
        BadValue: naming the first one.
    """
    wrong = y[(y < 0) | (y > 1)]
    if len(wrong):
        raise BadValue(key, float(wrong[0]), "targets of the loss bce must be between 0 and 1")


def _check_groups(groups: NDArray[np.int64], samples: int) -> None:
    if groups.shape != (samples,):
        raise BadValue("groups", groups.shape, f"there must be one group for each of the {samples} samples")
    present = np.unique(groups)
    if not np.array_equal(present, np.arange(len(present))):
        raise BadValue("groups", present.tolist(), f"must be numbered 0 to {len(present) - 1} without a gap")
