"""FedAvgM: federated averaging with momentum on the server.

T.-M. H. Hsu, H. Qi, M. Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification. arXiv:1909.06335, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, average
from fedsim.parts import Positive


@dataclass(kw_only=True, eq=False)
class FedAvgM(FlowerFace, Rounds):
    """Average the clients' models, and move with momentum towards the average (Hsu et al., 2019).

    Args:
        momentum: share of the last move that is added to the next (β).
        server_lr: server learning rate.
    """

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    server_lr: Positive = 1.0
    _velocity: Deferred | None = field(init=False, default=None)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """v ← β v + (x - mean of the clients' models), x ← x - η v."""
        step = model - average(replies)
        self._velocity = step if self._velocity is None else self.momentum * self._velocity + step
        return model - self.server_lr * self._velocity
