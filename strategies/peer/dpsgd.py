"""D-PSGD: decentralized parallel stochastic gradient descent.

X. Lian, C. Zhang, H. Zhang, C.-J. Hsieh, W. Zhang, J. Liu: Can Decentralized Algorithms Outperform Centralized
Algorithms? A Case Study for Decentralized Parallel Stochastic Gradient Descent. NeurIPS 2017, algorithm 1.

As is usual since, the local steps come first and the average after them (adapt, then combine).
"""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph, rounds
from topologies.mixing import facts, neighbour_weights


class DPSGD(PeerStrategy):
    """Train, exchange models with all neighbours, average with Metropolis-Hastings weights (Lian et al., 2017).

    Args:
        local: the local training of a round.
        timeout_s: how long to wait for the neighbours' models, in seconds; the weight of a model that is not there in
            time goes to the node's own. None waits for all, and stalls when one is lost because either end of its
            way was offline.
    """

    varying = True

    def __init__(self, *, local: Local, timeout_s: Positive | None = 3600.0) -> None:
        self.update, self.timeout_s = LocalSGD(local), timeout_s

    def setup(self, graph: Graph) -> None:
        """Compute the mixing weights."""
        self.graph, self.mixing = graph, [neighbour_weights(one) for one in rounds(graph)]

    def facts(self) -> Mapping[str, float]:
        """Say how fast the topology mixes."""
        return facts(self.graph)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        for round in node.rounds():
            model = yield from node.train(self.update, model, round)
            node.send_model(node.receivers(round), model, round)
            received = yield from node.receive_models(node.senders(round), round, self.timeout_s)
            model = self.mix(node.id, model, received, round)
            node.finish(round, model)

    def mix(self, node: int, own: Deferred, received: Mapping[int, Deferred], round: int = 1) -> Deferred:
        """Average a node's own model with those that it received; a missing one's weight goes to its own."""
        return average(self.mixing[(round - 1) % len(self.mixing)][node], own, received)


def average(weights: Mapping[int, float], own: Deferred, received: Mapping[int, Deferred]) -> Deferred:
    """Average a node's own vector with those that it received; the weight of what is missing goes to its own.

    Args:
        weights: how much each neighbour's vector weighs, without unit.
        own: the node's own vector [P].
        received: the neighbours' vectors [P], in the order of ids.

    >>> import torch
    >>> one, two = (Deferred.known(torch.tensor([value])) for value in (1.0, 5.0))
    >>> average({0: 0.5, 1: 0.25, 2: 0.25}, one, {1: two}).value()
    tensor([2.])
    """
    shares = [weights[sender] for sender in received]
    return combine([own, *received.values()], [1.0 - sum(shares), *shares])
