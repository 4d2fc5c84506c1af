"""Training alone: what a federation has to be better than. Nobody sends anything."""

from __future__ import annotations

from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process


class LocalOnly(PeerStrategy):
    """Every node trains a model of its own on its own data, and none talks to another.

    Args:
        local: the local training of a round.
    """

    directed = True
    varying = True

    def __init__(self, *, local: Local) -> None:
        self.update = LocalSGD(local)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        for round in node.rounds():
            model = yield from node.train(self.update, model, round)
            node.finish(round, model)
