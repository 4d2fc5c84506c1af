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
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, strategy_utils

from fedsim.errors import BadValue, RunError
from fedsim.flower.cohort import online
from fedsim.flower.gridview import Shown
from fedsim.flower.select import Selector, ask
from fedsim.flower.simulate.instruction import Query, Vectors, nothing, trains
from fedsim.flower.strategy import Ask, Reply, Rounds
from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalSGD
from fedsim.parts import Count, Positive, Share
from fedsim.spec.experiment import Local
from strategies.modest.sampling import order, quorum

PING, AVERAGE = "query.ping", "query.average"
TRIES = 100
"""How often in a row all that are known may leave their pings unanswered before the run is given up."""

POLL_S = 1.0
"""How long to wait before a SuperLink is asked again; a simulated grid waits for the next reply by itself."""

log = logging.getLogger("fedsim")


def averaged(vectors: Vectors) -> Vectors:
    """Average the models [P] of a message, all counted the same, in the order of their names.

    >>> import torch
    >>> models = {name: Deferred.known(torch.tensor([value])) for name, value in (("b", 1.0), ("a", 2.0))}
    >>> averaged(models)["arrays"].value()
    tensor([1.5000])
    """
    return {"arrays": mean([vectors[name] for name in sorted(vectors)])}


class MoDeSTRelay(Rounds):
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

    weighted = False
    queries: Mapping[str, Query] = {PING: nothing, AVERAGE: averaged}

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
        super().__init__({"train": LocalSGD(local)}, sample_size, self.nodes, timeout_s=timeout_s)
        self.success_fraction = success_fraction
        self.aggregator = -1

    def check(self, clients: int) -> None:
        """Refuse a sample that is larger than the network."""
        if self.participants > clients:
            raise BadValue(
                "sample_size", self.participants, f"must be at most {clients}, the number of clients"
            )
        super().check(clients)

    def pooled(self, grid: Grid) -> Grid:
        """Return a grid that waits for no more models than make an average."""
        return Hasty(grid, self.success_fraction)

    def start(self, grid: Grid, *args: Any, **more: Any) -> Result:
        """Run Flower's loop."""
        return super().start(self.pooled(grid), *args, **more)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Have the models averaged by the first node of the next sample that does it."""
        models = {f"model-{reply.node:06}": reply.vectors["arrays"] for reply in replies}
        failed: set[int] = set()
        while first := self.nodes.live(round + 1, self._grid, 1, failed):
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

    def facts(self, replies: Sequence[Reply]) -> dict[str, int | float]:
        """Say who made the average; -1 is nobody."""
        return {**super().facts(replies), "aggregator": self.aggregator}


class LiveNodes(Selector):
    """The first nodes of a round's order that answer a ping.

    All nodes that have ever been online are candidates.

    Args:
        ping_timeout_s: how long a node has to answer, in seconds.
    """

    def __init__(self, ping_timeout_s: float) -> None:
        self.ping_timeout_s = ping_timeout_s
        self._known: set[int] = set()

    def choose(self, round: int, arrays: ArrayRecord, grid: Grid, size: int | None) -> list[int]:
        """Return the live sample of a round, sorted; wait until there is one.

        Raises:
            RunError: if nobody answers, again and again.
        """
        for _ in range(TRIES):
            found = self.live(round, grid, len(online(grid)) if size is None else size)
            if found:
                return sorted(found)
        reason = f"no node has answered a ping within {self.ping_timeout_s:g} s, {TRIES} times in a row"
        raise RunError(reason, round=round, phase=PING)

    def live(self, round: int, grid: Grid, size: int, passed_over: Collection[int] = ()) -> list[int]:
        """Ask nodes in the order of a round until so many have answered, or nobody is left.

        Args:
            round: its number, from 1.
            grid: the pings go through it.
            size: how many are wanted.
            passed_over: who is not asked.

        Returns:
            Those that have answered, in the round's order.
        """
        self._known.update(online(grid))
        known = sorted(self._known)
        waiting = [known[at] for at in order([str(node) for node in known], round)]
        waiting = [node for node in waiting if node not in passed_over]
        content = RecordDict({"config": ConfigRecord({"server-round": round})})
        found: list[int] = []
        while waiting and len(found) < size:
            missing = size - len(found)
            asked, waiting = waiting[:missing], waiting[missing:]
            answers = ask(grid, asked, PING, content, self.ping_timeout_s)
            found += [node for node in asked if node in answers]
        return found


class Hasty(Shown):
    """A grid on which waiting for trained models ends with a share of them; those that come later are dropped.

    Args:
        grid: a simulated or a real one.
        share: above 0, at most 1.
    """

    def __init__(self, grid: Grid, share: float) -> None:
        super().__init__(grid)
        self._share = share
        self._open: set[str] = set()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for enough replies, or until nobody can answer any more.

        A message that gets no reply in time comes back as an error, for its time to live is over.
        """
        sent = list(messages)
        if not sent or not all(trains(message.metadata.message_type) for message in sent):
            return self.grid.send_and_receive(sent, timeout=timeout)
        for message in sent:
            message.metadata.ttl = min(message.metadata.ttl, timeout or message.metadata.ttl)
        missing = quorum(self._share, len(sent), len(sent))
        # a SuperLink gives no id to a message that it could not take
        fresh = {id for id in self.grid.push_messages(sent) if id is not None}
        self._open |= fresh
        came: list[Message] = []
        while len(came) < missing and fresh & self._open:
            replies = [one for one in self._pull() if one.metadata.reply_to_message_id in fresh]
            came += [reply for reply in replies if reply.has_content()]
        return came[:missing]

    def _pull(self) -> list[Message]:
        replies = list(self.grid.pull_messages(sorted(self._open)))
        self._open -= {reply.metadata.reply_to_message_id for reply in replies}
        if not replies:
            # looked up where Flower's own strategies do, because there a simulation replaces it
            vars(strategy_utils)["sleep"](POLL_S)
        return replies
