"""All that a module holds, so that what its forward changes can be seen."""

from __future__ import annotations

import random
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Kind = Literal["weights", "buffer", "number", "tensor"]

MACHINERY = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that every module has: its parts, which are walked through anyway, and hooks."""

DEPTH = 6
"""How deep containers and objects inside of a module are looked into."""


@dataclass(frozen=True)
class Leaf:
    """A value somewhere in a module.

    Args:
        kind: of a plain attribute, ``"tensor"`` if it holds more than one number, and ``"number"`` otherwise.
        value: a copy.
    """

    kind: Kind
    value: Any

    def same(self, other: Leaf) -> bool:
        """Tell whether two values are equal; NaN is equal to NaN."""
        return equal(self.value, other.value)


def contents(module: nn.Module) -> dict[str, Leaf]:
    """Return weights, buffers and plain attributes of a module and of its parts, by path, as copies.

    >>> found = contents(nn.BatchNorm1d(2))
    >>> found["running_mean"].kind, found["momentum"].value
    ('buffer', 0.1)
    """
    found: dict[str, Leaf] = {}
    for path, part in module.named_modules():
        place = f"{path}." if path else ""
        for kind, tensors in (("weights", part._parameters), ("buffer", part._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    found[place + name] = Leaf(kind, _copy(tensor))  # type: ignore[arg-type]
        for name, value in vars(part).items():
            if name not in MACHINERY:
                found.update(_leaves(place + name, value, (id(part),)))
    return found


def changes(before: Mapping[str, Leaf], after: Mapping[str, Leaf]) -> list[tuple[Kind, str]]:
    """Return what has changed, as pairs of kind and path: what is worse first."""
    found: list[tuple[Kind, str]] = []
    for path in {**before, **after}:
        old, new = before.get(path), after.get(path)
        if old is None or new is None or not old.same(new):
            leaf = new if new is not None else old
            assert leaf is not None
            found.append((leaf.kind, path))
    order = ("weights", "buffer", "number", "tensor")
    return sorted(found, key=lambda one: order.index(one[0]))


def equal(a: Any, b: Any) -> bool:
    """Tell whether two copies are equal; NaN is equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    return bool(a == b) or bool(a != a and b != b)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _leaves(path: str, value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Leaf]]:
    """Yield the values in an attribute; what cannot be seen into yields nothing."""
    if isinstance(value, Tensor):
        if value.layout is torch.strided:
            yield path, Leaf("number" if value.numel() == 1 else "tensor", _copy(value))
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        yield path, Leaf("number", value)
    elif isinstance(value, np.ndarray):
        yield path, Leaf("number" if value.size == 1 else "tensor", value.copy())
    elif isinstance(value, torch.Generator | random.Random | np.random.Generator | np.random.RandomState):
        yield path, Leaf("number", _state(value))
    elif id(value) not in above and len(above) < DEPTH:
        for name, inner in _inside(value):
            yield from _leaves(f"{path}{name}", inner, (*above, id(value)))


def _state(generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return str(generator.get_state().tolist())
    if isinstance(generator, random.Random):
        return str(generator.getstate())
    held = (
        generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()
    )
    with np.printoptions(threshold=10**6):
        return str(held)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple | deque):
        yield from ((f"[{index}]", inner) for index, inner in enumerate(value))
    elif isinstance(value, set | frozenset):
        yield from ((f"{{{key}}}", True) for key in sorted(map(repr, value)))
    elif hasattr(value, "__dict__") and not isinstance(
        value, type | types.FunctionType | types.ModuleType | types.MethodType | torch.dtype | torch.device
    ):
        yield from ((f".{name}", inner) for name, inner in vars(value).items())
