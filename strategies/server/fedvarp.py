"""FedVARP: remembered updates take the noise out of who takes part.

D. Jhunjhunwala, P. Sharma, A. Nagarkatti, G. Joshi: FedVARP: Tackling the Variance Due to Partial Client
Participation in Federated Learning. UAI 2022, PMLR 180:906-916, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.flower.select import Selector
from fedsim.flower.strategy import Reply, Rounds
from fedsim.learn.deferred import Deferred, combine, mean
from fedsim.learn.local import LocalSGD
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local
from strategies.server.mifa import Memory


class FedVARP(Rounds):
    """Correct the mean of all remembered updates by how much those that answered have changed (UAI 2022).

    A client that has never answered is remembered with an update of zero.

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training.
        server_lr: server learning rate.
        select: chooses the participants.
        seed: of the cohorts.
    """

    weighted = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        server_lr: Positive = 1.0,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": LocalSGD(local)}, participants, select, seed)
        self.server_lr = server_lr
        self.memory = Memory()

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

    def facts(self, replies: Sequence[Reply]) -> dict[str, int | float]:
        """Count the clients whose updates are remembered."""
        return {**super().facts(replies), "remembered": len(self.memory.latest)}
