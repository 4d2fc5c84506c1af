"""Losses of outputs and targets of any shape, one number for each target.

A loss is a function of outputs, targets and its own parameters. It returns a number for each sample [B], or for each of
a sample's targets [B, …]. The mean over a batch is the mean over all targets that count, as torch's own losses have it:
with an ``ignore_index`` those with that label are padding, and count nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.errors import BadValue
from fedsim.parts import NotNegative, Positive, check, find

NO_LABEL = -100
"""The label that torch takes for padding where nobody says another."""


def cross_entropy(
    outputs: Tensor, y: Tensor, *, ignore_index: int = NO_LABEL, label_smoothing: NotNegative = 0.0
) -> Tensor:
    """Return the cross entropy of logits.

    Args:
        outputs: logits [B, classes], or [B, classes, …] for labels [B, …].
        y: labels.
        ignore_index: the label of padding.
        label_smoothing: the share of a label's weight that all classes get alike.

    >>> cross_entropy(torch.zeros(1, 4), torch.tensor([2])).item() == torch.tensor(4.0).log().item()
    True
    """
    return functional.cross_entropy(
        outputs, y, reduction="none", ignore_index=ignore_index, label_smoothing=label_smoothing
    )


def bce(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the binary cross entropy of logits and of targets between 0 and 1, for one or several labels.

    Args:
        outputs: logits [B, …].
        y: targets [B, …].
    """
    return functional.binary_cross_entropy_with_logits(outputs, y, reduction="none")


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the squared distance.

    Args:
        outputs: predictions [B, …].
        y: targets [B, …].
    """
    return (outputs - y) ** 2


def half_square(outputs: Tensor, y: Tensor) -> Tensor:
    """Return half the squared distance.

    Args:
        outputs: predictions [B, …].
        y: targets [B, …].
    """
    return 0.5 * (outputs - y) ** 2


def mae(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the distance.

    Args:
        outputs: predictions [B, …].
        y: targets [B, …].
    """
    return (outputs - y).abs()


def huber(outputs: Tensor, y: Tensor, *, delta: Positive = 1.0) -> Tensor:
    """Return half the squared distance where it is small, and what grows evenly where it is large (Huber, 1964).

    Args:
        outputs: predictions [B, …].
        y: targets [B, …].
        delta: the distance from which on it grows evenly.
    """
    return functional.huber_loss(outputs, y, reduction="none", delta=delta)


@dataclass(frozen=True)
class Loss:
    """A loss with its parameters.

    Args:
        name: what it is called in the experiment file.
        function: from outputs and targets to losses.
        params: its own.
        labels: whether targets are labels, and outputs have a number for each class.
    """

    name: str
    function: Callable[..., Tensor]
    params: Mapping[str, Any] = field(default_factory=dict)
    labels: bool = False

    @property
    def classifies(self) -> bool:
        """Whether targets are labels, and outputs the logits of classes."""
        return self.labels or self.function is cross_entropy

    @property
    def known(self) -> bool:
        """Whether it is one of those here."""
        return self.function.__module__ == __name__

    @property
    def plain(self) -> bool:
        """Whether it is one of those that have always been here, without parameters."""
        return self.function in (cross_entropy, half_square) and not self.params

    @property
    def ignored(self) -> int | None:
        """The label of padding, if there is one."""
        return self.params.get("ignore_index", NO_LABEL) if self.classifies else None

    def values(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return what the function says [B, …]."""
        return self.function(outputs, y, **self.params)

    def counts(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """Return how many targets of each sample count [B]."""
        valid = torch.ones_like(y, dtype=dtype) if self.ignored is None else (y != self.ignored).to(dtype)
        return valid.flatten(1).sum(1) if valid.dim() > 1 else valid

    def hits(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return how many targets of each sample are met by the largest logit [B]."""
        right = (outputs.argmax(1) == y) & (y != self.ignored)
        return right.flatten(1).sum(1) if right.dim() > 1 else right


def loss_of(name: str, params: Mapping[str, Any] | None = None, labels: bool = False) -> Loss:
    """Return a loss by name.

    Args:
        name: of one here, or a dotted path.
        params: its own parameters, by name.
        labels: whether targets are labels.

    Raises:
        BadValue: if there is no such loss, or it refuses a parameter; the key is ``name`` or the parameter.

    >>> loss_of("huber", {"delta": 2.0}).values(torch.tensor([5.0]), torch.tensor([0.0]))  # 2 (5 - 2 / 2)
    tensor([8.])
    """
    part = find("losses", name)
    known = check(part, params or {}, {"outputs": 0, "y": 0})
    smoothing = known.get("label_smoothing", 0.0)
    if smoothing > 1:
        raise BadValue("label_smoothing", smoothing, "must be at most 1")
    return Loss(name, part, known, labels)
