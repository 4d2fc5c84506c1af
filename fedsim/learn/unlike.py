"""In what two things differ whose identities differ, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel
from torch import Tensor, nn

from fedsim.errors import short
from fedsim.learn.identity import Unnamed, attributes, identity

PLAIN = (type(None), bool, int, float, complex, str, bytes)
DEPTH = 6
"""How deep two things are looked into."""


def unlike(one: Any, two: Any, path: str = "", depth: int = DEPTH) -> Iterator[str]:
    """Yield in what two things differ, one line for each part of them; nothing if they are the same.

    Args:
        one, two: what is compared.
        path: what they are called.
        depth: how many steps into them the lines go.

    >>> list(unlike({"lr": 0.1, "mu": [1, 2]}, {"lr": 0.2, "mu": [1, 3]}, "local"))
    ['local.lr: 0.1 | 0.2', 'local.mu.1: 2 | 3']
    >>> list(unlike((1, 2), (1, 2, 3), "steps"))
    ['steps: (1, 2) | (1, 2, 3)']
    """
    if _named(one) == _named(two):
        return
    inner = [_inside(one), _inside(two)] if type(one) is type(two) and depth else [{}, {}]
    found = False
    if inner[0].keys() == inner[1].keys():
        for name in inner[0]:
            for line in unlike(inner[0][name], inner[1][name], f"{path}.{name}".lstrip("."), depth - 1):
                found = True
                yield line
    if not found:
        shown = _shown(one), _shown(two)
        said = "not the same" if shown[0] == shown[1] else f"{shown[0]} | {shown[1]}"
        yield f"{path}: {said}" if path else said


def _named(value: Any) -> bytes:
    """Return the identity of a value, or what comes next to it."""
    try:
        return identity(value)
    except Exception:  # what is named may be anybody's, and break while it is asked
        return repr(value).encode()


def _inside(value: Any) -> Mapping[str, Any]:
    """Return the parts of a value by name; nothing of one that is looked at as a whole."""
    if isinstance(value, (*PLAIN, Tensor, np.ndarray, np.generic, nn.Module, type)) or callable(value):
        return {}
    if isinstance(value, BaseModel):
        return dict(value)
    if isinstance(value, Mapping):
        return {str(key): inner for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return {str(place): inner for place, inner in enumerate(value)}
    try:
        return attributes(value)
    except Unnamed:
        return {}


def _shown(value: Any) -> str:
    if isinstance(value, PLAIN) or (isinstance(value, list | tuple) and all(map(_is_plain, value))):
        return short(value)
    if isinstance(value, Tensor | np.ndarray):
        return f"numbers of shape {list(value.shape)}"
    named: Callable[[Any], str] = lambda one: getattr(one, "__name__", type(one).__name__)  # noqa: E731
    return named(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN)
