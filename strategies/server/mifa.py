"""MIFA: the last update of every client stands in for those that cannot be reached.

X. Gu, K. Huang, J. Zhang, L. Huang: Fast Federated Learning in the Presence of Arbitrary Device Unavailability.
NeurIPS 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.schedules import Schedule, schedule
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply
from fedsim.parts import Positive

REFRESH = 50
"""How many changes of a running sum may pass before it is added up afresh, so that rounding does not pile up."""


@dataclass(kw_only=True, eq=False)
class MIFA(FlowerFace, Rounds):
    """Move by the mean of all clients' last updates, fresh or remembered (Gu et al., NeurIPS 2021).

    A client that has never answered counts as an update of zero; in the paper all answer in the first round. What is
    remembered are updates for a learning rate of 1: where a schedule changes that, older ones count at the new one.

    Args:
        server_lr: server learning rate.
    """

    weighted: ClassVar[bool] = False
    server_lr: Positive = 1.0
    memory: Memory = field(init=False, default_factory=lambda: Memory())
    _paced: Schedule | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._paced = schedule(self.local)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """G_i ← (x - y_i) / s for those that answered, x ← x - η s/N Σ G_i, where s is the schedule's factor."""
        moves = {reply.node: model - reply.vectors["arrays"] for reply in replies}
        if self._paced is not None:
            moves = {node: move / self._paced(round) for node, move in moves.items()}
        self.memory.store(moves)
        return self.missed(round, model)

    def missed(self, round: int, model: Deferred) -> Deferred:
        """Move by what is remembered, even if nobody has answered."""
        if self.memory.sum is None:
            return model
        factor = self.server_lr * (1.0 if self._paced is None else self._paced(round))
        return combine([model, self.memory.sum], [1.0, -factor / self.clients])

    def metrics(self, round: int) -> Iterable[Metric]:
        """Count the clients whose updates are remembered."""
        yield from super().metrics(round)
        yield Metric("remembered", len(self.memory.latest))


class Memory:
    """The last vector of every client and their running sum.

    >>> import torch
    >>> memory = Memory()
    >>> for one in ({0: 1.0, 2: 4.0}, {2: 8.0}):
    ...     memory.store({node: Deferred.known(torch.tensor([value])) for node, value in one.items()})
    >>> memory.sum.value()
    tensor([9.])
    """

    def __init__(self) -> None:
        self.latest: dict[int, Deferred] = {}
        self.sum: Deferred | None = None
        self._changes = 0

    def store(self, vectors: Mapping[int, Deferred]) -> None:
        """Replace the vectors [P] of some clients; every so often the sum is added up afresh."""
        pairs = [(new, self.latest.get(node)) for node, new in sorted(vectors.items())]
        self.latest.update(vectors)
        self._changes += 1
        if self.sum is None or self._changes % REFRESH == 0:
            self.sum = combine([self.latest[node] for node in sorted(self.latest)], [1.0] * len(self.latest))
            return
        terms = [(self.sum, 1.0)]
        for new, old in pairs:
            terms += [(new, 1.0)] if old is None else [(new, 1.0), (old, -1.0)]
        self.sum = combine([vector for vector, _ in terms], [factor for _, factor in terms])
