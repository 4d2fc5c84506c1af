"""FedBuff: clients work asynchronously, and the server moves whenever its buffer of updates is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba: Federated Learning with Buffered
Asynchronous Aggregation. AISTATS 2022, PMLR 151:3581-3607, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine
from fedsim.methods.arrivals import Arrival, Arrivals
from fedsim.parts import Count, NotNegative, Positive


@dataclass(kw_only=True, eq=False)
class FedBuff(FlowerFace, Arrivals):
    """Collect the progress of K clients, whatever models they began with, then move by its mean (Nguyen et al., 2022).

    A round is one move of the server. Staleness counts how often the model has moved since it was sent: 0 is fresh.

    Args:
        buffer: updates in a move (K); a fast client may be there more than once.
        server_lr: server learning rate (η_g).
        damping: an update of staleness s counts (1 + s)^-damping; 0 counts all the same.
    """

    buffer: Count = 10
    server_lr: Positive = 1.0
    damping: NotNegative = 0.5

    def merge(self, model: Deferred, arrivals: Sequence[Arrival]) -> Deferred:
        """x ← x + η_g / K Σ (1 + s_i)^-damping Δ_i."""
        step = self.server_lr / len(arrivals)
        factors = [step * (1.0 + arrival.staleness) ** -self.damping for arrival in arrivals]
        return combine([model, *(one.reply.vectors["arrays"] for one in arrivals)], [1.0, *factors])
