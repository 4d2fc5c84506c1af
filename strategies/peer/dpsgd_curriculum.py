"""D-PSGD in which a node averages with its easiest neighbours first, and with more of them as training goes on.

The decentralized analogue of the client curriculum of S. Vahidian, S. Kadaveru, W. Baek, W. Wang, V. Kungurtsev,
C. Chen, M. Shah, B. Lin: When Do Curricula Work in Federated Learning? ICCV 2023. The paper needs a server that ranks
its clients; ranking neighbours by the losses that they report is fedsim's own, and has no paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.learn.curriculum.order import Order
from fedsim.learn.curriculum.pacing import pace
from fedsim.learn.curriculum.update import ClientScore
from fedsim.learn.deferred import Deferred, Inputs
from fedsim.methods.peer import Peer
from fedsim.parts import Count, NotNegative, Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.spec.local import Family, Ordering, Start
from fedsim.world.clock import Process
from strategies.peer.dpsgd import DPSGD, average

LOSS_BYTES = 8
"""The size of the loss that travels with a model."""


class DPSGDCurriculum(DPSGD):
    """D-PSGD over a growing pool of the neighbours with the lowest losses; ours, after Vahidian et al. (ICCV 2023).

    A node sends with its model the mean loss of its own samples under the model that it has trained from; these forward
    passes take time on its device. Of the neighbours that it hears from, it averages with as many as the pace says,
    those that rank first; of equal losses, that of the smaller id is the lower one. The weights are those of D-PSGD,
    and the weight of a neighbour outside the pool goes to the node's own model. So they sum to one at every node
    (row-stochastic). They are not symmetric: a node may be in the pool of one that is not in its own. Until all take
    part, the mean over the nodes therefore moves towards the models of those that are often chosen.

    Args:
        local: the local training of a round.
        rounds: how many rounds the pace is made for.
        order: low losses first, high ones first (anti), neighbours by chance, or all of them in every round (vanilla,
            which is D-PSGD). Only the first two need losses: without them, nothing is scored or sent beside the model.
        pacing: how the pool grows.
        a: share of the rounds after which all neighbours are in the pool.
        b: share of a node's neighbours that are in the first pool; at least one is.
        seed: of the random order.
        timeout_s: how long to wait for the neighbours' models, in seconds; those that are not there in time are in no
            pool. None waits for all, and stalls when one is lost because either end of its way was offline.
    """

    def __init__(
        self,
        *,
        local: Local,
        rounds: Count,
        order: Ordering = "curriculum",
        pacing: Family = "linear",
        a: NotNegative = 0.8,
        b: Start = 0.2,
        seed: int = 0,
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        super().__init__(local=local, timeout_s=timeout_s)
        self.rounds, self.order, self.seed = rounds, order, seed
        self.pacing, self.a, self.b = pacing, a, b
        self.scored = order in ("curriculum", "anti")
        self.scoring, self.ranking = ClientScore(), Order(reverse=order == "anti")

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        for round in node.rounds():
            start, model = model, (yield from node.train(self.update, model, round))
            yield from self.tell(node, start, model, round)
            received = yield from node.receive_models(node.senders(round), round, self.timeout_s)
            model = self.mix_pool(node.id, model, received, round, self.size(len(node.senders(round)), round))
            node.finish(round, model)

    def tell(self, node: Peer, start: Deferred, model: Deferred, round: int) -> Process:
        """Send the trained model, and what the loss was before it was trained, if that is asked for."""
        if not self.scored:
            node.send_model(node.receivers(round), model, round)
            return
        scores = yield from node.visit(self.scoring, {"arrays": start}, round)
        payload = model, scores.pick("score")
        node.send(node.receivers(round), payload, node.model_bytes + LOSS_BYTES, round)

    def size(self, neighbours: int, round: int) -> int:
        """Return how many of so many neighbours are in the pool of a round.

        >>> strategy = DPSGDCurriculum(local=Local(), rounds=10, b=0.5)
        >>> [strategy.size(4, round) for round in (1, 5, 9)]
        [2, 3, 4]
        """
        if self.order == "vanilla":
            return neighbours
        return pace(round - 1, self.rounds, neighbours, self.pacing, self.a, self.b)

    def mix_pool(
        self, node: int, own: Deferred, received: Mapping[int, Any], round: int, size: int
    ) -> Deferred:
        """Average a node's own model with those of the first neighbours, at most ``size`` of them, as D-PSGD does."""
        if not self.scored:
            drawn = stream(self.seed, "neighbours", node, round).permutation(list(received))[:size]
            return self.mix(node, own, {sender: received[sender] for sender in sorted(drawn.tolist())}, round)
        if not received:
            return self.mix(node, own, {}, round)
        inputs = {"own": own}
        for sender, (model, loss) in received.items():
            inputs |= {f"model {sender}": model, f"loss {sender}": loss}
        weights = self.mixing[(round - 1) % len(self.mixing)][node]
        heard = {sender: weights[sender] for sender in received}
        return Deferred(Pool(heard, size, self.ranking), inputs)


@dataclass(frozen=True)
class Pool:
    """The average with those who rank first by their losses, as a call.

    Args:
        weights: how much the model of each neighbour that was heard weighs, without unit.
        size: how many of them are in the pool, if there are so many.
        ranking: which loss comes first.
    """

    weights: Mapping[int, float]
    size: int
    ranking: Order
    batch: None = None

    def run(self, calls: Sequence[Pool], inputs: Sequence[Inputs]) -> Sequence[Tensor]:
        """Choose and average."""
        return [call._one(given) for call, given in zip(calls, inputs, strict=True)]

    def _one(self, given: Inputs) -> Tensor:
        losses = torch.stack([given[f"loss {sender}"] for sender in self.weights])
        first = self.ranking.arrange(losses)[: self.size].tolist()
        pool = {
            sender: Deferred.known(given[f"model {sender}"])
            for place, sender in enumerate(self.weights)
            if place in first
        }
        mixed: Tensor = average(self.weights, Deferred.known(given["own"]), pool).value()
        return mixed
