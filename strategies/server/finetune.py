"""Fine-tuning: one model for all, which every client trains further for itself before it uses it.

K. Wang, R. Mathews, C. Kiddon, H. Eichner, F. Beaufays, D. Ramage: Federated Evaluation of On-device Personalization.
arXiv:1910.10252, 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.learn.deferred import Deferred
from fedsim.methods.client import Client
from fedsim.parts import Count
from strategies.server.fedavg import FedAvg


@dataclass(kw_only=True, eq=False)
class FineTune(FedAvg):
    """FedAvg, whose clients fine-tune the model that they use (Wang et al., 2019).

    What they train for themselves is measured with ``evaluate.personal``; it is sent to nobody and takes no time of a
    round.

    Args:
        steps: local steps with which a client makes its model of everybody's.
    """

    steps: Count = 10

    def personal(self, client: Client) -> Deferred:
        """v_i ← x after local steps."""
        return client.tune(client.model, self.steps)
