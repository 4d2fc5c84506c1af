"""Stochastic gradient push: decentralized SGD over links that only work one way.

M. Assran, N. Loizou, N. Ballas, M. Rabbat: Stochastic Gradient Push for Distributed Deep Learning. ICML 2019,
algorithm 1.
"""

from __future__ import annotations

from fedsim.config import Local
from fedsim.learn.deferred import combine
from fedsim.learn.local import LocalSGD
from fedsim.parts import Positive
from fedsim.peer import Peer, PeerStrategy
from fedsim.world.clock import Process

WEIGHT_BYTES = 8


class PushSum(PeerStrategy):
    """Train, share out vector and weight among those one sends to, add up what arrives (Assran et al., 2019).

    A node holds a vector x and a weight w, which start at the model and 1; its model is z = x / w. As all that it
    holds is shared out, sums over the nodes stay what they are even where nodes hear from more or fewer than they
    send to. What is lost on its way, or comes too late, takes its weight with it.

    Args:
        local: the local training of a round, from the model z; its change is added to x.
        timeout_s: how long to wait for those that send to a node, in seconds. None waits for all.
    """

    directed = True
    varying = True

    def __init__(self, *, local: Local, timeout_s: Positive | None = 3600.0) -> None:
        self.update, self.timeout_s = LocalSGD(local), timeout_s

    def run(self, node: Peer) -> Process:
        """One node's life."""
        x, w = node.initial_model, 1.0
        for round in node.rounds(every=True):
            z = x / w
            trained = yield from node.train(self.update, z, round)
            x = x + trained - z
            receivers = node.receivers(round)
            share = 1.0 / (len(receivers) + 1)
            node.send(receivers, (share * x, share * w), node.model_bytes + WEIGHT_BYTES, round)
            received = yield from node.receive_models(node.senders(round), round, self.timeout_s)
            parts = [x, *(vector for vector, _ in received.values())]
            x = combine(parts, [share, *[1.0] * len(received)])
            w = share * w + sum(weight for _, weight in received.values())
            node.finish(round, x / w)
