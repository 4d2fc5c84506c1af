"""FedProx: local training that is held near the weights received.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous Networks.
MLSys 2020, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.parts import NotNegative
from strategies.server.fedavg import FedAvg


@dataclass(kw_only=True, eq=False)
class FedProx(FedAvg):
    """Average models trained with a proximal term (Li et al., MLSys 2020).

    Args:
        mu: weight of the term 0.5 μ |w - w_received|².
    """

    mu: NotNegative

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Train with the term."""
        return {"train": LocalSGD(self.local, proximal=self.mu)}
