"""FedAsync: every client's model is mixed in as it comes, the less the older the model that it began with.

C. Xie, S. Koyejo, I. Gupta: Asynchronous Federated Optimization. arXiv:1903.03934, 2019, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from fedsim.flower.arrivals import Arrival, Arrivals, Progress
from fedsim.flower.select import Selector
from fedsim.learn.deferred import Deferred, combine
from fedsim.parts import Count, NotNegative, Positive
from fedsim.spec.experiment import Local


class FedAsync(Arrivals):
    """Mix every model that arrives into the server's (Xie et al., 2019).

    A round is one arrival. Staleness counts how often the model has changed since it was sent: 0 is fresh.

    Args:
        concurrency: clients at work at a time; fewer if fewer are online.
        local: local training.
        alpha: share of a fresh model in the mixture (α).
        staleness: how that share falls with the staleness s: ``constant`` not at all, ``hinge`` by
            1 / (a (s - b) + 1) where s is above b, ``polynomial`` by (s + 1)^-a.
        a: how fast it falls.
        b: the staleness from which on the hinge falls.
        mu: weight of the proximal term that holds a client near the model it was sent (ρ).
        select: chooses among the clients that are online and not at work.
        timeout_s: how long a client may take before another one takes its place, in seconds.
        seed: of the choice of clients.
    """

    def __init__(
        self,
        *,
        concurrency: Count,
        local: Local,
        alpha: Annotated[float, Field(gt=0, le=1)] = 0.6,
        staleness: Literal["constant", "hinge", "polynomial"] = "polynomial",
        a: Positive = 0.5,
        b: NotNegative = 4.0,
        mu: NotNegative = 0.005,
        select: Selector | None = None,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        updates = {"train": Progress(local, mu)}
        super().__init__(updates, concurrency, select=select, seed=seed, timeout_s=timeout_s)
        self.alpha, self.staleness, self.a, self.b = alpha, staleness, a, b

    def share(self, age: int) -> float:
        """Return the share α s(age) of a model that is so stale.

        >>> hinge = FedAsync(concurrency=1, local=Local(), alpha=0.5, staleness="hinge", a=1.0, b=2.0)
        >>> [hinge.share(age) for age in (0, 2, 3)]
        [0.5, 0.5, 0.25]
        """
        if self.staleness == "polynomial":
            return float(self.alpha * (age + 1) ** -self.a)
        if self.staleness == "hinge" and age > self.b:
            return self.alpha / (self.a * (age - self.b) + 1)
        return self.alpha

    def merge(self, model: Deferred, arrivals: Sequence[Arrival]) -> Deferred:
        """x ← (1 - α_s) x + α_s y, where y is the client's model."""
        [arrival] = arrivals
        share = self.share(arrival.staleness)
        return combine([model, arrival.sent, arrival.reply.vectors["arrays"]], [1 - share, share, share])
