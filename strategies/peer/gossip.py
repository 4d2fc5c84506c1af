"""Gossip learning: models walk at random through the network and learn where they arrive.

R. Ormándi, I. Hegedűs, M. Jelasity: Gossip Learning with Linear Models on Fully Distributed Data. Concurrency and
Computation: Practice and Experience 25(4), 2013.
I. Hegedűs, G. Danner, M. Jelasity: Decentralized Learning Works: An Empirical Comparison of Gossip Learning and
Federated Learning. Journal of Parallel and Distributed Computing 148, 2021, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process

AGE_BYTES = 8


@dataclass
class Aged:
    """A model and its age: how many samples it has been trained on, with repetition."""

    model: Deferred
    age: int

    def merge(self, other: Aged) -> Aged:
        """Average two models, weighted by their ages; the older age stays.

        >>> import torch
        >>> young, old = (Aged(Deferred.known(torch.tensor([float(age)])), age) for age in (1, 3))
        >>> merged = young.merge(old)
        >>> merged.model.value(), merged.age
        (tensor([2.5000]), 3)
        """
        ages = [self.age, other.age]
        weights = [float(age) for age in ages] if any(ages) else [1.0, 1.0]
        return Aged(mean([self.model, other.model], weights), max(ages))


class Gossip(PeerStrategy):
    """Send the model to a random neighbour once in a period; merge what arrives and train it (Hegedűs et al., 2021).

    A node learns whenever a model arrives; those that arrive while it trains wait for their turn, so that the period
    should be longer than a training takes. A node without neighbours trains its own model once in a period. A round is
    a period, in which a node may train many times, or never; each training is a client update.

    Args:
        local: the local training after each merge.
        seed: the experiment's seed.
        period_s: the time between two messages of a node, in seconds; each node begins at a random moment of the
            first period.
    """

    def __init__(self, *, local: Local, seed: int, period_s: Positive = 60.0) -> None:
        self.update, self.seed, self.period_s = LocalSGD(local), seed, period_s

    def run(self, node: Peer) -> Process:
        """One node's life: the part that sends."""
        held = [Aged(node.initial_model, 0)]
        node.start(self.learn(node, held))
        yield from node.sleep(self.period_s * float(stream(self.seed, "gossip phase", node.id).random()))
        for round in node.rounds():
            yield node.node.back()
            others = node.neighbours or [node.id]
            peer = int(stream(self.seed, "gossip", node.id, round).choice(others))
            node.send([peer], (held[0].model, held[0].age), node.model_bytes + AGE_BYTES, round)
            yield from node.sleep(self.period_s)
            node.finish(round, held[0].model, updates=0)

    def learn(self, node: Peer, held: list[Aged]) -> Process:
        """One node's life: the part that receives."""
        while True:
            message = yield from node.receive()
            merged, round = held[0].merge(Aged(*message.payload)), node.round
            model = yield from node.train(self.update, merged.model, round)
            held[0] = Aged(model, merged.age + self.update.at(round).sampling.size(node.samples))
            node.count(updates=1)
