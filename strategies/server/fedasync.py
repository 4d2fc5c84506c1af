"""FedAsync: every client's model is mixed in as it comes, the less the older the model that it began with.

C. Xie, S. Koyejo, I. Gupta: Asynchronous Federated Optimization. arXiv:1903.03934, 2019, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import LocalUpdate
from fedsim.methods.arrivals import Arrival, Arrivals, Progress
from fedsim.parts import NotNegative, Positive


@dataclass(kw_only=True, eq=False)
class FedAsync(FlowerFace, Arrivals):
    """Mix every model that arrives into the server's (Xie et al., 2019).

    A round is one arrival. Staleness counts how often the model has changed since it was sent: 0 is fresh.

    Args:
        alpha: share of a fresh model in the mixture (α).
        staleness: how that share falls with the staleness s: ``constant`` not at all, ``hinge`` by
            1 / (a (s - b) + 1) where s is above b, ``polynomial`` by (s + 1)^-a.
        a: how fast it falls.
        b: the staleness from which on the hinge falls.
        mu: weight of the proximal term that holds a client near the model it was sent (ρ).
    """

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    staleness: Literal["constant", "hinge", "polynomial"] = "polynomial"
    a: Positive = 0.5
    b: NotNegative = 4.0
    mu: NotNegative = 0.005

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": Progress(self.local, self.mu)}

    def share(self, age: int) -> float:
        """Return the share α s(age) of a model that is so stale.

        >>> from fedsim.spec.experiment import Local
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

    def share_taken(self) -> float:
        """Return α_s of the latest model: a model's running statistics are mixed in like its weights."""
        [arrival] = self.arrived
        return self.share(arrival.staleness)
