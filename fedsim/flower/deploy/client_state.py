"""What a deployed client keeps from visit to visit, in its Context."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, RecordDict

from fedsim.flower.records import Layout, pack, solid, unpack
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, State

PREFIX = "kept."


def kept_in(state: RecordDict, update: LocalUpdate, like: torch.Tensor) -> State:
    """Return what a deployed client has kept for an update.

    Args:
        state: the client's ``Context.state``, in which :func:`keep_in` has put it.
        update: the update; its ``keeps`` name the vectors.
        like: a vector [P] of the right type on the right device.

    Returns:
        Vectors [P] by name, zeros for those that are not there yet.
    """
    found = {}
    for name in update.keeps:
        record = state.get(PREFIX + name)
        whole = unpack(record, like.device, like.dtype).value() if isinstance(record, ArrayRecord) else None
        found[name] = torch.zeros_like(like) if whole is None else whole
    return found


def keep_in(
    state: RecordDict, update: LocalUpdate, result: Mapping[str, torch.Tensor], layout: Layout
) -> None:
    """Put what a deployed client keeps of a result into its ``Context.state``.

    Args:
        state: the client's ``Context.state``.
        update: the update; its ``keeps`` name the vectors.
        result: what the engine returned for it.
        layout: names and shapes of the model's parameters.
    """
    for name in update.keeps:
        vector = result[name]
        dtype = str(vector.dtype).removeprefix("torch.")
        state[PREFIX + name] = solid(pack(Deferred.known(vector), layout, dtype))
