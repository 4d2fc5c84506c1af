"""FedPer: all clients share the base of a model, and each has personal layers of its own, which it never sends.

M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary: Federated Learning with Personalization Layers.
arXiv:1912.00818, 2019, algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.errors import MISSING, BadValue
from strategies.server.fedavg import FedAvg


@dataclass(kw_only=True, eq=False)
class FedPer(FedAvg):
    """Average the base layers, and leave the personal layers with the clients (Arivazhagan et al., 2019).

    A client trains both together. Its personal layers are those of the beginning until its first visit, and are neither
    sent nor counted in bytes. A model of the server's is judged with their mean.

    Args:
        kept: the layers, blocks or single weights of the model that stay with each client, by name; None is the layer
            that the model names last.
    """

    kept: list[str | int] | None = None

    def check_around(self, transforms: Sequence[object]) -> None:
        """Refuse what would count weights that are not sent."""
        if transforms:
            rule = "changes what clients send, and would count the part of the model that stays with them"
            raise BadValue("around", MISSING, rule, "leave it out")
