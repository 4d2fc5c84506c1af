"""FedAvg: every client trains on its own data, and the server averages what comes of it.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data. AISTATS 2017, PMLR 54:1273-1282, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, average


@dataclass(kw_only=True, eq=False)
class FedAvg(FlowerFace, Rounds):
    """Average the clients' models, weighted by their numbers of samples (McMahan et al., AISTATS 2017)."""

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← Σ n_i y_i / Σ n_i."""
        return average(replies)
