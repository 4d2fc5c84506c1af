"""FedBuff: clients work asynchronously, and the server moves whenever its buffer of updates is full.

J. Nguyen, K. Malik, H. Zhan, A. Yousefpour, M. Rabbat, M. Malek, D. Huba: Federated Learning with Buffered
Asynchronous Aggregation. AISTATS 2022, PMLR 151:3581-3607, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.flower.arrivals import Arrival, Arrivals, Progress
from fedsim.flower.select import Selector
from fedsim.learn.deferred import Deferred, combine
from fedsim.parts import Count, NotNegative, Positive
from fedsim.spec.experiment import Local


class FedBuff(Arrivals):
    """Collect the progress of K clients, whatever models they began with, then move by its mean (Nguyen et al., 2022).

    A round is one move of the server. Staleness counts how often the model has moved since it was sent: 0 is fresh.

    Args:
        concurrency: clients at work at a time; fewer if fewer are online.
        local: local training.
        buffer: updates in a move (K); a fast client may be there more than once.
        server_lr: server learning rate (η_g).
        damping: an update of staleness s counts (1 + s)^-damping; 0 counts all the same.
        select: chooses among the clients that are online and not at work.
        timeout_s: how long a client may take before another one takes its place, in seconds.
        seed: of the choice of clients.
    """

    def __init__(
        self,
        *,
        concurrency: Count,
        local: Local,
        buffer: Count = 10,
        server_lr: Positive = 1.0,
        damping: NotNegative = 0.5,
        select: Selector | None = None,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": Progress(local)}, concurrency, buffer, select, seed, timeout_s)
        self.server_lr, self.damping = server_lr, damping

    def merge(self, model: Deferred, arrivals: Sequence[Arrival]) -> Deferred:
        """x ← x + η_g / K Σ (1 + s_i)^-damping Δ_i."""
        step = self.server_lr / len(arrivals)
        factors = [step * (1.0 + arrival.staleness) ** -self.damping for arrival in arrivals]
        return combine([model, *(one.reply.vectors["arrays"] for one in arrivals)], [1.0, *factors])
