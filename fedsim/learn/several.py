"""Several inputs of one model: what a sample is where it is more than one tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

Shape = tuple[Any, ...] | dict[str, Any]
"""Of one sample: numbers; or of several inputs their shapes, in order or by name."""


class Several:
    """Arrays or tensors that belong together, each with one row for each sample.

    It is indexed and cut like one tensor, all parts alike. A model's forward gets them one after the other, or by their
    names where they have some.

    Args:
        parts: in order, or by name.

    >>> both = Several({"ids": torch.arange(6).view(3, 2), "mask": torch.ones(3, 2)})
    >>> len(both), both.shape, both[1:].kwargs["ids"].tolist()
    (3, {'ids': (2,), 'mask': (2,)}, [[2, 3], [4, 5]])
    """

    def __init__(self, parts: Sequence[Any] | Mapping[str, Any]) -> None:
        self.names = tuple(parts) if isinstance(parts, Mapping) else ()
        self.parts = tuple(parts.values() if isinstance(parts, Mapping) else parts)

    @property
    def args(self) -> tuple[Any, ...]:
        """Those without a name."""
        return () if self.names else self.parts

    @property
    def kwargs(self) -> dict[str, Any]:
        """Those with one."""
        return dict(zip(self.names, self.parts, strict=True)) if self.names else {}

    @property
    def shape(self) -> Shape:
        """The shapes of one sample."""
        found = self.map(lambda part: tuple(part.shape[1:]))
        return found.kwargs or found.args

    @property
    def nbytes(self) -> int:
        """The size of all of them."""
        return sum(part.nbytes for part in self.parts)

    def map(self, function: Callable[[Any], Any]) -> Several:
        """Return what a function makes of each."""
        made = [function(part) for part in self.parts]
        return Several(dict(zip(self.names, made, strict=True)) if self.names else made)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: Any) -> Several:
        return self.map(lambda part: part[index])

    def index_select(self, dim: int, index: Tensor) -> Several:
        """Return some samples."""
        return self.map(lambda part: part.index_select(dim, index))

    def split(self, size: int | list[int]) -> list[Several]:
        """Cut into pieces of so many samples."""
        rows = zip(*(torch.split(part, size) for part in self.parts), strict=True)
        return [Several(dict(zip(self.names, row, strict=True)) if self.names else row) for row in rows]


FEW = 16
"""Whole numbers in up to so many places may be of different things, such as users and items."""

X = Tensor | Several
"""Inputs [N, …]."""

_pytree.register_pytree_node(
    Several,
    lambda one: (list(one.parts), one.names),
    lambda parts, names: Several(dict(zip(names, parts, strict=True)) if names else list(parts)),
    serialized_type_name="fedsim.learn.several.Several",
)


def leaves(x: X) -> list[Tensor]:
    """Return the tensors in inputs."""
    return list(x.parts) if isinstance(x, Several) else [x]


def cast(x: X, device: torch.device | str, dtype: torch.dtype) -> X:
    """Return inputs on a device; floating-point numbers get a type, all others keep theirs."""

    def one(part: Tensor) -> Tensor:
        return part.to(device, dtype if part.is_floating_point() else part.dtype)

    return x.map(one) if isinstance(x, Several) else one(x)


def shape_of(x: X) -> Shape:
    """Return the shape of one sample."""
    return x.shape if isinstance(x, Several) else tuple(x.shape[1:])


def extremes(x: X) -> list[int]:
    """Return the rows in which whole numbers are the least and the largest: of few places, those of each.

    >>> extremes(torch.tensor([[3, 5], [4, 4], [9, 4]])), extremes(torch.ones(3))
    ([0, 1, 2], [])
    """
    rows = set[int]()
    for part in leaves(x):
        if part.is_floating_point() or part.dtype == torch.bool or not part.numel():
            continue
        flat = part.reshape(len(part), -1)
        width = flat.shape[1]
        if width > FEW:
            rows |= {int(flat.argmin()) // width, int(flat.argmax()) // width}
        else:
            rows |= {*flat.argmin(0).tolist(), *flat.argmax(0).tolist()}
    return sorted(rows)


def joined(some: Sequence[X]) -> X:
    """Return samples one behind the other."""
    first = some[0]
    if not isinstance(first, Several):
        return torch.cat([one for one in some if isinstance(one, Tensor)])
    rows = zip(*map(leaves, some), strict=True)
    made = [torch.cat(row) for row in rows]
    return Several(dict(zip(first.names, made, strict=True)) if first.names else made)


def called(module: nn.Module, x: X) -> Tensor:
    """Return what a module makes of inputs."""
    outputs: Tensor = module(*x.args, **x.kwargs) if isinstance(x, Several) else module(x)
    return outputs
