"""What the clients of a simulation keep from visit to visit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.local import LocalUpdate

PENDING = 256
"""How many visits may wait for their numbers; each keeps the weights alive that it began with."""


class Kept:
    """The vectors that the clients of a simulation keep, deferred like all others.

    Args:
        zeros: what a client has before its first visit [P].
        always: what it keeps whatever it does, by name.
    """

    def __init__(self, zeros: Deferred, always: tuple[str, ...] = ()) -> None:
        self._zeros, self._always = zeros, always
        self._vectors: dict[int, dict[str, Deferred]] = defaultdict(dict)
        self._pending: list[tuple[int, tuple[str, ...], Deferred]] = []

    def of(self, client: int, update: LocalUpdate | None = None) -> dict[str, Deferred]:
        """Return what a client has kept for an update, or whatever it does, by name."""
        own, names = self._vectors[client], () if update is None else update.keeps
        return {name: own.get(name, self._zeros) for name in (*names, *self._always)}

    def held(self, client: int) -> Mapping[str, Deferred]:
        """Return all that a client has kept so far, by name."""
        return self._vectors.get(client, {})

    def all(self) -> list[dict[str, Deferred]]:
        """Return what each client keeps, in the order of ids."""
        return [self._vectors[client] for client in sorted(self._vectors)]

    def put(self, client: int, update: LocalUpdate | None, result: Deferred) -> None:
        """Take over what a client keeps of the result of a visit."""
        names = (*(() if update is None else update.keeps), *self._always)
        if not names:
            return
        self._vectors[client].update((name, result.pick(name)) for name in names)
        if result.is_phantom:
            return
        self._pending.append((client, names, result))
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
            elif not result.is_gone:  # what is gone was there before the run was killed
                waiting.append((client, names, result))
        newer = {(client, name) for client, names, _ in waiting for name in names}
        for (client, name), result in latest.items():
            if (client, name) not in newer:
                self._vectors[client][name] = self._vectors[client][name].moved(result.value()[name])
        self._pending = waiting
