"""Layers whose gradients are written out: no graph of operations is recorded, and none is walked back.

Each layer returns what its backward pass needs beside its output. One with weights knows which of the model's
parameters are its own, and writes their gradient to the same place. All of this is the chain rule for one batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CUT_OFF = torch.ops.aten.threshold_backward.default
CONVOLVE, CONVOLVE_BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default

Kept = Any
Tensors = Sequence[Tensor]
"""A model's parameters, or what belongs to each of them."""


class Layer(ABC):
    """One step of a chain of layers."""

    @abstractmethod
    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output for a batch [B, …] with a model's parameters, and what :meth:`backward` needs."""

    @abstractmethod
    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Return the gradient of the input from that of the output.

        Args:
            weights: the model's parameters.
            kept: what :meth:`forward` returned.
            up: the gradient of the output.
            gradient: the gradient of each; the layer writes those of its own.
            first: nobody needs the gradient of the input, and anything may be returned.
        """


class Flat(Layer):
    """``nn.Flatten``; of several dimensions it makes one.

    Args:
        start: the first of them.
        end: the last of them.
    """

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Look at the same numbers in another shape."""
        return x.flatten(self.start, self.end), x.shape

    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Look at them in the former one."""
        return up.view(kept)


class Dense(Layer):
    """``nn.Linear``.

    Args:
        weight: which parameter has its weights [out, in].
        bias: which one is added [out], or None.
    """

    def __init__(self, weight: int, bias: int | None) -> None:
        self.weight, self.bias = weight, bias

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Return x W^T + b."""
        matrix = weights[self.weight].t()
        return torch.mm(x, matrix) if self.bias is None else torch.addmm(weights[self.bias], x, matrix), x

    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Write up^T x and the sum of up; return up W."""
        torch.mm(up.t(), kept, out=gradient[self.weight])
        if self.bias is not None:
            torch.sum(up, 0, out=gradient[self.bias])
        return up if first else torch.mm(up, weights[self.weight])


class Rectify(Layer):
    """``nn.ReLU``."""

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Cut off what is negative."""
        y = x.relu()
        return y, y

    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Let through what was let through."""
        down: Tensor = CUT_OFF(up, kept, 0)
        return down


class Convolve(Layer):
    """``nn.Conv2d``; torch's own kernels for both ways.

    Args:
        weight: which parameter has its weights [out, in / groups, height, width].
        bias: which one is added [out], or None.
        module: has strides, padding, dilation and groups.
    """

    def __init__(self, weight: int, bias: int | None, module: nn.Conv2d) -> None:
        self.weight, self.bias = weight, bias
        self._how = (module.stride, module.padding, module.dilation, False, (0, 0), module.groups)

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Convolve."""
        bias = None if self.bias is None else weights[self.bias]
        return CONVOLVE(x, weights[self.weight], bias, *self._how), x

    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Write the gradients of weight and bias; return that of the input."""
        bias = None if self.bias is None else weights[self.bias].shape
        wanted = (not first, True, bias is not None)
        down, weight, shift = CONVOLVE_BACKWARD(up, kept, weights[self.weight], bias, *self._how, wanted)
        gradient[self.weight].copy_(weight)
        if self.bias is not None:
            gradient[self.bias].copy_(shift)
        return up if first else down


class PoolPairs(Layer):
    """``nn.MaxPool2d(2)`` on even sides: the larger of two columns, then of two rows.

    Of equal numbers the first one counts, row by row, as in torch's kernel, which is several times slower on a CPU.
    """

    def forward(self, weights: Tensors, x: Tensor) -> tuple[Tensor, Kept]:
        """Take the largest of each four."""
        left, right = x[..., 0::2], x[..., 1::2]
        wide = torch.maximum(left, right)
        upper, lower = wide[..., 0::2, :], wide[..., 1::2, :]
        return torch.maximum(upper, lower), (left >= right, upper >= lower)

    def backward(self, weights: Tensors, kept: Kept, up: Tensor, gradient: Tensors, first: bool) -> Tensor:
        """Give it to where the largest came from."""
        is_left, is_upper = kept
        return _deal(_deal(up, is_upper, -2), is_left, -1)


def _deal(up: Tensor, to_first: Tensor, dim: int) -> Tensor:
    """Deal numbers out to the first or the second of the two that each has been taken from, along a dimension."""
    pairs = up.new_empty((*up.shape[: dim + up.dim() + 1], 2, *up.shape[dim + up.dim() + 1 :]))
    one, other = pairs.unbind(dim)
    torch.mul(up, to_first, out=one)
    torch.sub(up, one, out=other)
    return pairs.flatten(dim - 1, dim)
