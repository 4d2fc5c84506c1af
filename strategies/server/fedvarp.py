"""FedVARP: remembered updates take the noise out of who takes part.

D. Jhunjhunwala, P. Sharma, A. Nagarkatti, G. Joshi: FedVARP: Tackling the Variance Due to Partial Client
Participation in Federated Learning. UAI 2022, PMLR 180:906-916, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine, mean
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply
from fedsim.parts import Positive
from strategies.server.mifa import Memory


@dataclass(kw_only=True, eq=False)
class FedVARP(FlowerFace, Rounds):
    """Correct the mean of all remembered updates by how much those that answered have changed (UAI 2022).

    A client that has never answered is remembered with an update of zero.

    Args:
        server_lr: server learning rate.
    """

    weighted: ClassVar[bool] = False
    server_lr: Positive = 1.0
    memory: Memory = field(init=False, default_factory=lambda: Memory())

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← x - η (mean of Δ_i - y_i over those that answered + 1/N Σ y_j), then y_i ← Δ_i."""
        updates = {reply.node: model - reply.vectors["arrays"] for reply in replies}
        known = self.memory.latest
        change = mean([new - known[node] if node in known else new for node, new in updates.items()])
        new = self.missed(round, model) - self.server_lr * change
        self.memory.store(updates)
        return new

    def missed(self, round: int, model: Deferred) -> Deferred:
        """Move by the mean of what is remembered."""
        if self.memory.sum is None:
            return model
        return combine([model, self.memory.sum], [1.0, -self.server_lr / self.clients])

    def metrics(self, round: int) -> Iterable[Metric]:
        """Count the clients whose updates are remembered."""
        yield from super().metrics(round)
        yield Metric("remembered", len(self.memory.latest))
