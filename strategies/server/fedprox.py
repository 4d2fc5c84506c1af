"""FedProx: local training that is held near the weights received.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks.
MLSys 2020, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.flower.select import Selector
from fedsim.flower.strategy import Reply, Rounds, average
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD
from fedsim.parts import Count, NotNegative
from fedsim.spec.experiment import Local


class FedProx(Rounds):
    """Average models trained with a proximal term (Li et al., MLSys 2020).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training.
        mu: weight of the term 0.5 μ |w - w_received|².
        select: chooses the participants.
        seed: of the cohorts.
    """

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        mu: NotNegative,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": LocalSGD(local, proximal=mu)}, participants, select, seed)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Average the models."""
        return average(replies)
