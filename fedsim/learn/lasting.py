"""What a model has beside its vector, and must not change: frozen weights, and buffers that training leaves alone.

All clients share one module. A model that changes such a buffer only now and then cannot be known by trying it out a
few times; so what it has is looked at after every piece of work.
"""

from __future__ import annotations

from contextlib import suppress

import torch

from fedsim.learn.contents import Leaf, changes, contents
from fedsim.learn.task import Task

SHARED = "all clients share the module, so it must keep nothing from one call to the next"
HINT = "a buffer that each step in training writes, if only the same numbers, is part of a client's state"


class Changed(Exception):
    """A model has changed what it must not; the text says what."""


def lasting(task: Task) -> dict[str, Leaf]:
    """Return frozen weights and buffers; all others are in a vector, whatever the module itself holds."""
    trained = {name for name, _ in task.layout}
    return {
        path: leaf
        for path, leaf in contents(task.module).items()
        if leaf.kind == "buffer" or (leaf.kind == "weights" and path not in trained)
    }


def stamps(task: Task) -> list[tuple[str, int, int]]:
    """Return what shows whether these tensors have been written since; their numbers are not looked at."""
    trained = {name for name, _ in task.layout}
    held = (*task.module.named_parameters(), *task.module.named_buffers())
    return [(name, id(tensor), tensor._version) for name, tensor in held if name not in trained]


def check_lasting(task: Task, before: list[tuple[str, int, int]]) -> None:
    """Refuse a model that has changed what it must not, and put that back.

    Args:
        task: was tried out.
        before: its stamps before it was used.

    Raises:
        Changed: naming the buffer or the frozen weights.
    """
    if not task.fixed or stamps(task) == before:
        return
    found = changes(task.fixed, lasting(task))
    if not found:
        return
    for _, path in found:
        with suppress(AttributeError, RuntimeError, KeyError), torch.no_grad():
            parent, _, name = path.rpartition(".")
            held = task.module.get_submodule(parent)._buffers
            tensors = held if name in held else task.module.get_submodule(parent)._parameters
            tensors[name].copy_(task.fixed[path].value)  # type: ignore[union-attr]
    kind, path = found[0]
    text = f"the model has changed its {kind} in forward ({path}), which it left alone when it was tried out"
    raise Changed(f"{text}; {HINT if kind == 'buffer' else SHARED}")
