"""Epidemic learning: in every round, models go to nodes that are chosen anew at random.

M. de Vos, S. Farhadkhani, R. Guerraoui, A.-M. Kermarrec, R. Pires, R. Sharma: Epidemic Learning: Boosting
Decentralized Learning with Randomized Communication. NeurIPS 2023, algorithm 1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import networkx as nx

from fedsim.errors import BadValue
from fedsim.learn.deferred import mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Count, Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph


class Epidemic(PeerStrategy):
    """Train, send to a few nodes drawn at random for the round, average all that arrives (de Vos et al., 2023).

    Who sends to whom follows from the experiment's seed and the round, so that a node knows whom to wait for.

    Args:
        local: the local training of a round.
        seed: the experiment's seed.
        receivers: nodes that a node sends its model to in a round.
        variant: oracle, where a new random regular graph is drawn in each round and models go both ways; or local,
            where every node draws its receivers alone, and so may hear from none or from many.
        timeout_s: how long to wait for the models of a round, in seconds; those that come later do not count. None
            waits for all.
    """

    def __init__(
        self,
        *,
        local: Local,
        seed: int,
        receivers: Count = 4,
        variant: Literal["oracle", "local"] = "local",
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        self.update, self.seed, self.timeout_s = LocalSGD(local), seed, timeout_s
        self.degree, self.variant = receivers, variant

    def check(self, clients: int) -> None:
        """Refuse to draw more receivers than there are, or a regular graph that does not exist."""
        n = clients
        if n > 1 and self.degree >= n:
            rule = f"must be at most {n - 1}: {n} nodes have {n - 1} others each"
            raise BadValue("receivers", self.degree, rule)
        if n > 1 and self.variant == "oracle" and n * self.degree % 2:
            rule = f"nodes x receivers must be even for the oracle's regular graphs ({n} x {self.degree})"
            raise BadValue("receivers", self.degree, rule, "take another number, or variant: local")

    def setup(self, graph: Graph) -> None:
        """Count the nodes."""
        self.n = len(graph)
        self.plan = lru_cache(maxsize=16)(self._plan)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model = node.initial_model
        for round in node.rounds(every=True):
            model = yield from node.train(self.update, model, round)
            plan = self.plan(round)
            node.send_model(sorted(plan.successors(node.id)), model, round)
            received = yield from node.receive_models(plan.predecessors(node.id), round, self.timeout_s)
            model = mean([model, *received.values()])
            node.finish(round, model)

    def _plan(self, round: int) -> nx.DiGraph[int]:
        """Return who sends to whom in a round."""
        n, degree = self.n, self.degree
        plan: nx.DiGraph[int] = nx.empty_graph(n, create_using=nx.DiGraph)
        if n == 1:
            return plan
        if self.variant == "oracle":
            sparse = min(degree, n - 1 - degree)  # the generator takes minutes for dense graphs
            graph = nx.random_regular_graph(sparse, n, seed=stream(self.seed, "epidemic", round=round))
            plan.add_edges_from((graph if sparse == degree else nx.complement(graph)).to_directed().edges)
            return plan
        for node in range(n):
            chosen = stream(self.seed, "epidemic", node, round).choice(n - 1, degree, replace=False)
            plan.add_edges_from((node, int(other) + (other >= node)) for other in chosen)
        return plan
