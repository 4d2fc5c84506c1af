"""MoDeST in a Flower deployment: the clients' part of it on SuperNodes, with a server that only passes messages on.

A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma, M. de Vos: Practical Federated Learning without a
Server (Plexus). EuroMLSys 2025. Preprint: arXiv 2302.13837, 2023.

SuperNodes cannot talk to each other. So the server finds the samples that the nodes of ``strategies/modest/modest.py``
find for themselves, in the same order, and every message of theirs goes through it: a round moves 3s + 1 models instead
of at most 2s, for a sample of s.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

from fedsim.errors import BadValue, RunError
from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, mean
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.select import Selector, asked
from fedsim.methods.server import Ask, Query, Reply, Server, Vectors, ask_all, nothing
from fedsim.parts import Count, Positive, Share
from fedsim.spec.experiment import Local
from strategies.modest.sampling import order

PING, AVERAGE = "query.ping", "query.average"
TRIES = 100
"""How often in a row all that are known may leave their pings unanswered before the run is given up."""

log = logging.getLogger("fedsim")


def averaged(vectors: Vectors) -> Vectors:
    """Average the models [P] of a message, all counted the same, in the order of their names.

    >>> import torch
    >>> models = {name: Deferred.known(torch.tensor([value])) for name, value in (("b", 1.0), ("a", 2.0))}
    >>> averaged(models)["arrays"].value()
    tensor([1.5000])
    """
    return {"arrays": mean([vectors[name] for name in sorted(vectors)])}


class MoDeSTRelay(FlowerFace, Rounds):
    """Train a small sample of nodes found by hashing, and average on the first node of the next sample (2023).

    Nodes that do not answer a ping are replaced by the next ones in the round's order. The average is made by a
    client, of the models that the server passes on to it; if that one fails, the next one in the order is asked.

    Args:
        local: the local training of a round.
        sample_size: s, the number of nodes that train in a round.
        success_fraction: sf, which share of the sample's models makes an average; above 0. Later ones are dropped.
        ping_timeout_s: how long a node has to answer before the next one is asked, in seconds; a SuperNode starts a
            process for every message, so it needs a minute.
        timeout_s: how long to wait for an average, in seconds.
    """

    weighted: ClassVar[bool] = False
    queries: ClassVar[Mapping[str, Query]] = {PING: nothing, AVERAGE: averaged}

    def __init__(
        self,
        *,
        local: Local,
        sample_size: Count = 10,
        success_fraction: Share = 1.0,
        ping_timeout_s: Positive = 60.0,
        timeout_s: Positive | None = 3600.0,
    ) -> None:
        if not success_fraction > 0:
            raise BadValue("success_fraction", success_fraction, "must be above 0 and at most 1")
        self.nodes = LiveNodes(ping_timeout_s)
        super().__init__(participants=sample_size, local=local, select=self.nodes, timeout_s=timeout_s)
        self.enough = success_fraction
        self.aggregator = -1

    def check(self, clients: int) -> None:
        """Refuse a sample that is larger than the network."""
        if self.participants > clients:
            raise BadValue(
                "sample_size", self.participants, f"must be at most {clients}, the number of clients"
            )
        super().check(clients)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Have the models averaged by the first node of the next sample that does it."""
        models = {f"model-{reply.node:06}": reply.vectors["arrays"] for reply in replies}
        failed: set[int] = set()
        while first := self.nodes.live(round + 1, self.server, 1, failed):
            for answer in self.exchange([Ask(first[0], AVERAGE, models)]):
                self.aggregator = answer.node
                return answer.vectors["arrays"]
            failed.update(first)
        log.warning("round %d is lost: nobody has averaged its models, asked were %s", round, sorted(failed))
        return self.missed(round, model)

    def missed(self, round: int, model: Deferred) -> Deferred:
        """Go on with the old model."""
        self.aggregator = -1
        return model

    def metrics(self, round: int) -> Iterable[Metric]:
        """Say who made the average; -1 is nobody."""
        yield from super().metrics(round)
        yield Metric("aggregator", self.aggregator)


class LiveNodes(Selector):
    """The first nodes of a round's order that answer a ping.

    All nodes that have ever been online are candidates.

    Args:
        ping_timeout_s: how long a node has to answer, in seconds.
    """

    def __init__(self, ping_timeout_s: float) -> None:
        self.ping_timeout_s = ping_timeout_s
        self._known: set[int] = set()

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Return the live sample of a round, sorted; wait until there is one.

        Raises:
            RunError: if nobody answers, again and again.
        """
        for _ in range(TRIES):
            found = self.live(round, server, len(server.online()) if size is None else size)
            if found:
                return sorted(found)
        reason = f"no node has answered a ping within {self.ping_timeout_s:g} s, {TRIES} times in a row"
        raise RunError(reason, round=round, phase=PING)

    def live(self, round: int, server: Server, size: int, passed_over: Collection[int] = ()) -> list[int]:
        """Ask nodes in the order of a round until so many have answered, or nobody is left.

        Args:
            round: its number, from 1.
            server: the pings go through it.
            size: how many are wanted.
            passed_over: who is not asked.

        Returns:
            Those that have answered, in the round's order.
        """
        self._known.update(server.online())
        known = sorted(self._known)
        waiting = [known[at] for at in order([str(node) for node in known], round)]
        waiting = [node for node in waiting if node not in passed_over]
        found: list[int] = []
        while waiting and len(found) < size:
            missing = size - len(found)
            first, waiting = waiting[:missing], waiting[missing:]
            replies = asked(server, round, ask_all(first, PING), self.ping_timeout_s)
            here = {reply.node for reply in replies}
            found += [node for node in first if node in here]
        return found
