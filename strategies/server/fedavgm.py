"""FedAvgM: federated averaging with momentum on the server.

T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification. arXiv:1909.06335, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from fedsim.flower.select import Selector
from fedsim.flower.strategy import Reply, Rounds, average
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local


class FedAvgM(Rounds):
    """Average the clients' models, and move with momentum towards the average (Hsu et al., 2019).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training.
        momentum: share of the last move that is added to the next (β).
        server_lr: server learning rate.
        select: chooses the participants.
        seed: of the cohorts.
    """

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        server_lr: Positive = 1.0,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": LocalSGD(local)}, participants, select, seed)
        self.momentum, self.server_lr = momentum, server_lr
        self._velocity: Deferred | None = None

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """v ← β v + (x - mean of the clients' models), x ← x - η v."""
        step = model - average(replies)
        self._velocity = step if self._velocity is None else self.momentum * self._velocity + step
        return model - self.server_lr * self._velocity
