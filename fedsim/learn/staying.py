"""Which part of a model stays with each client, where a strategy shares only the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.errors import MISSING, BadValue, did_you_mean
from fedsim.learn.deferred import Deferred, apply
from fedsim.learn.task import Task


def staying(task: Task, kept: Sequence[str | int] | None) -> tuple[str, ...]:
    """Return the names of the weights that stay with each client.

    Args:
        task: has the model.
        kept: layers or blocks of it, or single weights, by name; None is its last layer, and nothing is nothing.

    Raises:
        BadValue: with the key ``kept``, if a name is that of no part, or nothing would be shared.

    >>> from torch import nn
    >>> task = Task(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> staying(task, None), staying(task, ["0.bias"])
    (('2.weight', '2.bias'), ('0.bias',))
    >>> staying(task, ["0", "2"])
    Traceback (most recent call last):
    fedsim.errors.BadValue: kept: ['0', '2']: leaves nothing of the model to be shared; name less of it, or take \
local_only
    """
    weights = [name for name, _ in task.layout[: len(task.layout) - len(task.buffers)]]
    last = weights[-1].rpartition(".")[0] or weights[-1]
    parts = [last] if kept is None else [str(part) for part in kept]
    for part in parts:
        if not any(_belongs(name, part) for name in weights):
            tops = dict.fromkeys(end for name in weights for end in _ends(name))
            hint = did_you_mean(part, list(tops)) or f"its parts are {', '.join(tops)}"
            raise BadValue("kept", part, "is no part of the model that is trained", hint)
    if kept is not None and not parts and kept != ():
        raise BadValue(
            "kept", parts, "must name at least one part of the model", "take fedavg to share all of it"
        )
    found = tuple(name for name in weights if any(_belongs(name, part) for part in parts))
    if len(found) == len(weights):
        if kept is None:
            rule = f"{last}, the last layer, is all of the model, and nothing of it would be shared"
            raise BadValue("kept", MISSING, rule, "take a model with more layers")
        rule = "leaves nothing of the model to be shared"
        raise BadValue("kept", parts, rule, "name less of it, or take local_only")
    return found


def filled(task: Task, vector: Deferred) -> Deferred:
    """Return a whole vector [P] of what is shared [S], with the first weights where the clients' own stand."""
    return apply(_Filled(task.initial, _shared(task)), vector)


def shared(task: Task, vector: Deferred) -> Deferred:
    """Return what is shared [S] of a whole vector [P]."""
    return apply(_Taken(_shared(task)), vector)


@dataclass(frozen=True)
class _Filled:
    initial: Tensor
    places: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        return self.initial.index_copy(0, self.places, vector)


@dataclass(frozen=True)
class _Taken:
    places: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        return vector[self.places]


def _shared(task: Task) -> Tensor:
    """Return where in a vector what is shared stands [S], int64."""
    rest = torch.ones_like(task.initial, dtype=torch.bool)
    rest[task.own] = False
    return rest.nonzero()[:, 0]


def _belongs(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part.rstrip('.')}.")


def _ends(name: str) -> list[str]:
    """Return the names of what a weight is a part of, the largest first."""
    steps = name.split(".")
    return [".".join(steps[:end]) for end in range(1, max(2, len(steps)))]
