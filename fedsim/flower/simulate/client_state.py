"""What clients keep from visit to visit: in a simulation, and on a device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, RecordDict

from fedsim.flower.records import Layout, pack, solid, unpack
from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.local import LocalUpdate, State

PENDING = 256
"""How many visits may wait for their numbers; each keeps the weights alive that it began with."""

PREFIX = "kept."


class Kept:
    """The vectors that the clients of a simulation keep, deferred like all others.

    Args:
        zeros: what a client has before its first visit [P].
    """

    def __init__(self, zeros: Deferred) -> None:
        self._zeros = zeros
        self._vectors: dict[int, dict[str, Deferred]] = defaultdict(dict)
        self._pending: list[tuple[int, tuple[str, ...], Deferred]] = []

    def of(self, client: int, update: LocalUpdate) -> dict[str, Deferred]:
        """Return what a client has kept for an update, by name."""
        own = self._vectors[client]
        return {name: own.get(name, self._zeros) for name in update.keeps}

    def put(self, client: int, update: LocalUpdate, result: Deferred) -> None:
        """Take over what a client keeps of the result of a visit."""
        if not update.keeps:
            return
        self._vectors[client].update((name, result.pick(name)) for name in update.keeps)
        if result.is_phantom:
            return
        self._pending.append((client, update.keeps, result))
        if len(self._pending) > PENDING:
            compute(one for *_, one in self._pending)
        self._settle()

    def _settle(self) -> None:
        """Let go of results that are there: a client keeps its own vectors, not all that it sent beside them."""
        waiting = []
        latest: dict[tuple[int, str], Deferred] = {}
        for client, names, result in self._pending:
            if result.done:
                latest.update(((client, name), result) for name in names)
            else:
                waiting.append((client, names, result))
        newer = {(client, name) for client, names, _ in waiting for name in names}
        for (client, name), result in latest.items():
            if (client, name) not in newer:
                self._vectors[client][name] = Deferred.known(result.value()[name])
        self._pending = waiting


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
