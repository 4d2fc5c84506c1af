"""One-peer exponential D-SGD: every node sends to one node and hears from one node in each round.

B. Ying, K. Yuan, Y. Chen, H. Hu, P. Pan, W. Yin: Exponential Graph is Provably Efficient for Decentralized Deep
Training. NeurIPS 2021, section 4.
"""

from __future__ import annotations

from fedsim.learn.deferred import mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph


class OnePeer(PeerStrategy):
    """Train, send to the node 1, 2, 4, 8 … further on in turn, average with the one received (Ying et al., 2021).

    With n nodes, log2(n) rounds without training give everybody the exact average if n is a power of two. The nodes
    speak to each other wherever they are in the topology; what is not linked is reached over others.

    Args:
        local: the local training of a round.
        timeout_s: how long to wait for the other's model, in seconds; a node that hears nothing keeps its own. None
            waits for ever.
    """

    def __init__(self, *, local: Local, timeout_s: Positive | None = 3600.0) -> None:
        self.update, self.timeout_s = LocalSGD(local), timeout_s

    def setup(self, graph: Graph) -> None:
        """Count the nodes."""
        self.n = len(graph)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        for round in node.rounds(every=True):
            model = yield from node.train(self.update, model, round)
            offset = self.offset(round)
            if offset:
                node.send_model([(node.id + offset) % self.n], model, round)
                sender = (node.id - offset) % self.n
                received = yield from node.receive_models([sender], round, self.timeout_s)
                model = mean([model, *received.values()])
            node.finish(round, model)

    def offset(self, round: int) -> int:
        """Return how much further on the receiver of a round is, or 0 for a node that is alone."""
        hops = (self.n - 1).bit_length()
        return 2 ** ((round - 1) % hops) if hops else 0
