"""What a deployed client keeps from visit to visit, in its Context."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, RecordDict

from fedsim.flower.records import Layout, pack, solid, unpack
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import State

PREFIX = "kept."


def kept_in(state: RecordDict, names: Iterable[str], like: torch.Tensor) -> State:
    """Return what a deployed client has kept.

    Args:
        state: the client's ``Context.state``, in which :func:`keep_in` has put it.
        names: of the vectors.
        like: a vector [P] of the right type on the right device.

    Returns:
        Vectors by name, zeros [P] for those that are not there yet.
    """
    found = {}
    for name in names:
        record = state.get(PREFIX + name)
        whole = unpack(record, like.device, like.dtype).value() if isinstance(record, ArrayRecord) else None
        found[name] = torch.zeros_like(like) if whole is None else whole
    return found


def keep_in(state: RecordDict, kept: Mapping[str, torch.Tensor], layout: Layout) -> None:
    """Put what a deployed client keeps into its ``Context.state``.

    Args:
        state: the client's ``Context.state``.
        kept: vectors by name, [P], or of another length for what is not a whole model.
        layout: names and shapes of the model's parameters.
    """
    size = sum(math.prod(shape) for _, shape in layout)
    for name, vector in kept.items():
        dtype = str(vector.dtype).removeprefix("torch.")
        pieces = layout if len(vector) == size else [("own", tuple(vector.shape))]
        state[PREFIX + name] = solid(pack(Deferred.known(vector), pieces, dtype))
