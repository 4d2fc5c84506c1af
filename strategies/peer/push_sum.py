"""Stochastic gradient push: decentralized SGD over links that only work one way.

M. Assran, N. Loizou, N. Ballas, M. Rabbat: Stochastic Gradient Push for Distributed Deep Learning. ICML 2019,
algorithm 1.
"""

from __future__ import annotations

import logging

from fedsim.learn.deferred import combine
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process

WEIGHT_BYTES = 8

log = logging.getLogger("fedsim")


class PushSum(PeerStrategy):
    """Train, share out vector and weight among those one sends to, add up what arrives (Assran et al., 2019).

    A node holds a vector x and a weight w, which start at the model and 1; its model is z = x / w. As all that it
    holds is shared out, sums over the nodes stay what they are even where nodes hear from more or fewer than they
    send to.

    What is lost on its way, or comes after the timeout, takes its weight with it, for good: the method assumes links
    that deliver everything. With lost messages, or nodes that come and go, the weights shrink from round to round
    while the change of each training keeps its size, so that z = x / w is moved further and further and in the end
    diverges, even if few messages are lost. The first message that is missing at a timeout is therefore warned of.

    Args:
        local: the local training of a round, from the model z; its change is added to x.
        timeout_s: how long to wait for those that send to a node, in seconds. None waits for all.
    """

    directed = True
    varying = True

    def __init__(self, *, local: Local, timeout_s: Positive | None = 3600.0) -> None:
        self.update, self.timeout_s = LocalSGD(local), timeout_s
        self.warned = False

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
            senders = node.senders(round)
            received = yield from node.receive_models(senders, round, self.timeout_s)
            if len(received) < len(senders) and not self.warned:
                self.warned = True
                log.warning(
                    "node %d lacks messages in round %d; push_sum diverges if they are lost", node.id, round
                )
            parts = [x, *(vector for vector, _ in received.values())]
            x = combine(parts, [share, *[1.0] * len(received)])
            w = share * w + sum(weight for _, weight in received.values())
            node.finish(round, x / w)
