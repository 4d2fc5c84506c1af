"""Teleportation: a few nodes are active in a round, average over a small topology, and hand over to the next ones.

Y. Takezawa, S. U. Stich: Scalable Decentralized Learning with Teleportation. ICLR 2025, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Container
from functools import lru_cache

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Count, Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph
from topologies.mixing import neighbour_weights
from topologies.sequences import base_graph


class Teleportation(PeerStrategy):
    """Average with the models handed over by the last active nodes, train, hand over (Takezawa and Stich, 2025).

    The active nodes of a round follow from the experiment's seed and the round, and stand in the places of a small
    Base-(k+1) graph. The node in a place hears from those that stood in it, and beside it, in the round before.
    What counts at the end of a round are the models of its active nodes, after their training.

    Args:
        local: the local training of a round.
        seed: the experiment's seed.
        participants: the number of active nodes, at most all.
        degree: largest number of neighbours in the small graph (its k).
        timeout_s: how long to wait for models, in seconds for each round since the node was last active; the others
            take the weight of what is not there, and where nothing is, the node trains what it has. None waits for
            all.
    """

    def __init__(
        self,
        *,
        local: Local,
        seed: int,
        participants: Count = 8,
        degree: Count = 1,
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        self.update, self.seed, self.timeout_s = LocalSGD(local), seed, timeout_s
        self.participants, self.degree = participants, degree

    def check(self, clients: int) -> None:
        """Refuse more active nodes than there are nodes."""
        if self.participants > clients:
            rule = f"at most {clients}, the number of clients"
            raise BadValue("participants", self.participants, rule)

    def setup(self, graph: Graph) -> None:
        """Count the nodes, and link the places of the active ones."""
        self.n = len(graph)
        small = base_graph(self.participants, degree=self.degree) if self.participants > 1 else []
        self.weights = [neighbour_weights(graph) for graph in small] or [{0: {0: 1.0}}]
        ahead = self.n // self.participants  # a node goes on to its next active round, on average so far away
        self.order = lru_cache(maxsize=max(64, 16 * ahead))(self._order)

    def holders(self, round: int) -> Container[int]:
        """Return the active nodes of a round."""
        return self.order(round)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model, active = node.initial_model, 0
        for round in node.rounds(every=True):
            if node.id not in self.order(round):
                node.finish(round, model, updates=0)
                continue
            patience_s = None if self.timeout_s is None else self.timeout_s * (round - active)
            model = yield from self.take_over(node, model, round, patience_s)
            model = yield from node.train(self.update, model, round)
            active = round
            node.send_model(sorted(self.heirs(node.id, round) - {node.id}), model, round + 1)
            node.finish(round, model)

    def take_over(self, node: Peer, own: Deferred, round: int, patience_s: float | None) -> Process:
        """Average the models that the round before left for a node's place."""
        givers = self.givers(node.id, round)
        received = yield from node.receive_models(set(givers) - {node.id}, round, patience_s)
        if node.id in givers:
            received = {**received, node.id: own}
        present = sorted(received)
        return mean([received[i] for i in present], [givers[i] for i in present]) if present else own

    def givers(self, node: int, round: int) -> dict[int, float]:
        """Return whose models an active node averages at the start of a round, and how much each weighs."""
        if round == 1:
            return {}
        before, weights = self.order(round - 1), self.weights[(round - 2) % len(self.weights)]
        return {before[place]: weight for place, weight in weights[self.order(round).index(node)].items()}

    def heirs(self, node: int, round: int) -> set[int]:
        """Return to whom an active node hands over at the end of a round."""
        after, weights = self.order(round + 1), self.weights[(round - 1) % len(self.weights)]
        return {after[place] for place in weights[self.order(round).index(node)]}

    def _order(self, round: int) -> list[int]:
        """Return the active nodes of a round in the order of their places."""
        drawn = stream(self.seed, "teleportation", round=round).permutation(self.n)
        return [int(node) for node in drawn[: self.participants]]
