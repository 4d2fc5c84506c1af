"""Client curriculum: easy clients first, and more of them as training goes on.

S. Vahidian, S. Kadaveru, W. Baek, W. Wang, V. Kungurtsev, C. Chen, M. Shah, B. Lin: When Do Curricula Work in Federated
Learning? ICCV 2023.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fedsim.learn.curriculum.pacing import pace
from fedsim.learn.curriculum.update import ClientScore
from fedsim.learn.deferred import Deferred
from fedsim.methods.metrics import Metric
from fedsim.methods.select import Selector, asked
from fedsim.methods.server import Server, ask_all
from fedsim.parts import Count, NotNegative, Positive
from fedsim.rng import stream
from fedsim.spec.local import Family, Ordering, Score, Start

QUERY_SCORE = "query.score"
"""The message type that sends a client the model and asks for the mean score of its samples."""


class ClientCurriculum(Selector):
    """Passes over a growing pool of the easiest clients (Vahidian et al., ICCV 2023).

    In a pass every client of the pool trains once, in groups of as many as the strategy asks for. When nobody of the
    pool is left who is online, all clients that are online are scored anew, and the pool is made of the easiest of all
    clients; one that is offline keeps its last score, and one that never had any comes last.

    Args:
        rounds: how many rounds the pace is made for; times the clients in a round, or the updates that make one, these
            are the updates after which the clock stands at its end. Passes over small pools leave small groups, which
            take more rounds.
        order: easy clients first, hard ones first (anti), by chance, or all of them in every pass (vanilla).
        score: which model says how hard a client's samples are, on average: the one received, its own of its last
            visit, the sum of both, or the expert.
        pacing: how the pool grows.
        a: share of all updates after which all clients are in the pool.
        b: share of the clients that are in the first pool.
        partial: whether the last group of a pass is kept where it is smaller than the others, or dropped.
        redrawn: whether a random order is drawn anew for every pass; else the first one stays, so that a pool holds
            whom the pools before it held, as where an expert orders the clients.
        seed: of the shuffles.
        timeout_s: how long to wait for the scores, in seconds; who has not answered by then keeps its last one.
    """

    def __init__(
        self,
        *,
        rounds: Count,
        order: Ordering = "curriculum",
        score: Score = "global",
        pacing: Family = "linear",
        a: NotNegative = 0.8,
        b: Start = 0.2,
        partial: Literal["keep", "drop"] = "keep",
        redrawn: bool = True,
        seed: int = 0,
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        self.rounds, self.order, self.score, self.partial = rounds, order, score, partial
        self.pacing, self.a, self.b, self.redrawn = pacing, a, b, redrawn
        self.seed, self.timeout_s = seed, timeout_s
        self.scored = order in ("curriculum", "anti")
        self.timing_depends_on_values = self.scored
        self.updates = {QUERY_SCORE: ClientScore(score)} if self.scored else {}
        self.pool: list[int] = []
        self.done = 0
        self._clients = 0
        self._queue: list[int] = []
        self._scores: dict[int, float] = {}
        self._scored: dict[int, int] = {}
        self._visits: Counter[int] = Counter()
        self._round = 0

    def check(self, clients: int) -> None:
        """Take note of the number of clients."""
        self._clients = clients

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Return the next group of the pass; begin another pass if nobody is left."""
        self._round = round
        ids = server.online()
        size = len(ids) if size is None else size
        group = self._next(ids, size, self.partial == "keep")
        if not group:
            if self.scored:
                self._ask(round, model, server, ids)
                ids = server.online()
            self._fill(round, ids, size)
            group = self._next(ids, size, True)
        return sorted(group)

    def heard(self, round: int, asked: Sequence[int], answered: Sequence[int]) -> None:
        """Let the clock go on by the updates that have come."""
        self.done += len(answered)
        self._visits.update(answered)

    def metrics(self, round: int) -> Iterable[Metric]:
        """Return the size of the pool, the clock, the mean age of the scores in choices; and each client's own."""
        yield Metric("pool", len(self.pool))
        yield Metric("pool_updates", self.done)
        if self._scored:
            yield Metric("score_age", float(np.mean([self._round - last for last in self._scored.values()])))
        for node, score in self._scores.items():
            yield Metric("score", score, node)
        for node, visits in self._visits.items():
            yield Metric("visits", visits, node)

    def _next(self, ids: Sequence[int], size: int, partial: bool) -> list[int]:
        here = set(ids)
        group = [node for node in self._queue if node in here][:size]
        if len(group) < size and not partial:
            return []
        self._queue = [node for node in self._queue if node not in group]
        return group

    def _ask(self, round: int, model: Deferred, server: Server, ids: Sequence[int]) -> None:
        """Ask who is online for its score; the expert's do not change."""
        nodes = [node for node in ids if self.score != "expert" or node not in self._scores]
        for reply in asked(server, round, ask_all(nodes, QUERY_SCORE, arrays=model), self.timeout_s):
            self._scores[reply.node] = float(reply.metrics["score"])
            self._scored[reply.node] = round

    def _fill(self, round: int, ids: Sequence[int], size: int) -> None:
        """Make the pool of a pass, and shuffle it."""
        ranked = self._ranked(round)
        count = len(ranked)
        if self.order != "vanilla":
            count = pace(
                self.done, self.rounds * (self.in_round or size), len(ranked), self.pacing, self.a, self.b
            )
        here = set(ids)
        if here.isdisjoint(ranked[:count]):  # a pool that is away would stop the run
            ranked = [node for node in ranked if node in here]
        self.pool = ranked[:count]
        rng = stream(self.seed, "pool", round=round)
        self._queue = [self.pool[place] for place in rng.permutation(len(self.pool))]

    def _ranked(self, round: int) -> list[int]:
        """Return all clients, the first to be learned from first."""
        if not self.scored:
            rng = stream(self.seed, "order", round=round if self.redrawn else 0)
            return [int(node) for node in rng.permutation(self._clients)]
        known = sorted(self._scores, key=lambda node: (self._scores[node], node))
        unknown = [node for node in range(self._clients) if node not in self._scores]
        return (known[::-1] if self.order == "anti" else known) + unknown
