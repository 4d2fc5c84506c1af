"""Asynchronous methods with a server: some clients are at work all the time, and nobody waits for the slow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD, LocalUpdate, State
from fedsim.methods.around import Central, changed
from fedsim.methods.metrics import Metric
from fedsim.methods.select import Selector, Uniform
from fedsim.methods.server import Answer, Ask, Query, Reply, Server
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local, Weighting


class Progress(LocalSGD):
    """Local SGD that sends how far it has come, y - x, because the server's model has moved on meanwhile."""

    models = ()
    moved = 1.0

    def init(self, given: State) -> State:
        """Start at the weights received."""
        return {**super().init(given), "start": given["arrays"]}

    def final(self, state: State) -> State:
        """Send y - x and the mean loss over the steps."""
        return {**super().final(state), "arrays": state["weights"] - state["start"]}


@dataclass(frozen=True)
class Arrival:
    """What one client has sent, and what it began with.

    Args:
        reply: the client's answer.
        sent: the weights [P] that it was sent.
        staleness: how often the model has changed since then.
    """

    reply: Reply
    sent: Deferred
    staleness: int


@dataclass(kw_only=True, eq=False)
class Arrivals(ABC):
    """A method with a server and without rounds: the model changes whenever enough replies are in.

    What counts as a round is a change of the model. In each the clients that have answered, have failed, or are too
    slow are replaced by others that are online; the rest goes on working.

    A method is a keyword dataclass that says how to :meth:`merge`.

    Args:
        concurrency: clients at work at a time; fewer if fewer are online.
        local: local training.
        select: chooses among the clients that are online and not at work; by default uniformly.
        timeout_s: how long a client may take before another one takes its place, in seconds; None waits for ever.
        seed: of everything that the method draws.

    Attributes:
        updates: what clients do, by message type; ``train`` must be one.
        buffer: replies in a change of the model.
        central: what the server does to replies and models, the first one first.
        arrived: what the latest change was made of.
    """

    concurrency: Count
    local: Local
    select: Selector = None  # type: ignore[assignment]  # the default needs the seed
    timeout_s: Positive | None = 3600.0
    seed: int = 0

    timing_depends_on_values: ClassVar[bool] = False
    weighted: ClassVar[bool] = False
    queries: ClassVar[Mapping[str, Query]] = {}
    buffer = 1

    def __post_init__(self) -> None:
        self.select = self.select or Uniform(seed=self.seed)
        self.select.in_round = self.buffer
        self.updates = {**self.local_updates(), **self.select.updates}
        self.central: Sequence[Central] = ()
        self.weighting: Weighting = "samples"
        self.arrived: Sequence[Arrival] = ()
        self._sent: dict[int, Deferred] = {}
        self._busy: dict[int, int] = {}
        self._waiting: deque[Answer] = deque()
        self._draws = 0

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do, by message type: by default they send how far local SGD has brought them."""
        return {"train": Progress(self.local)}

    @abstractmethod
    def merge(self, model: Deferred, arrivals: Sequence[Arrival]) -> Deferred:
        """Return the new weights [P].

        Args:
            model: the weights [P] as they are now.
            arrivals: as many as the buffer holds, in the order of node ids, in which everything is to be summed.
        """

    def share_taken(self) -> float:
        """Return what part of a new model is what has just arrived, for what is averaged beside the weights.

        By default all of it: methods that add differences to a model say nothing of averages.
        """
        return 1.0

    def check(self, clients: int) -> None:
        """Check the parameters against the number of clients."""
        if self.concurrency > clients:
            raise BadValue("concurrency", self.concurrency, f"at most {clients}, the number of clients")
        self.select.check(clients)

    def check_around(self, transforms: Sequence[Any]) -> None:  # noqa: B027 - most take everything
        """Refuse what cannot go around this method; nothing by default.

        Args:
            transforms: what the experiment puts around it, in order.
        """

    def metrics(self, round: int) -> Iterable[Metric]:
        """Return what there is to record of a change that has just been made."""
        del round
        ages = [arrival.staleness for arrival in self.arrived]
        if ages:
            yield Metric("staleness", sum(ages) / len(ages))
            yield Metric("staleness_max", max(ages))

    @property
    def came(self) -> list[Reply]:
        """The replies of the latest change."""
        return [arrival.reply for arrival in self.arrived]

    def step(self, server: Server, round: int, model: Deferred, timeout_s: float | None = None) -> Deferred:
        """Return the weights [P] that the next full buffer makes of others.

        Args:
            server: what to speak through.
            round: how often the model has changed, with this time.
            model: the weights [P].
            timeout_s: has no meaning here; every client has a time limit of its own.
        """
        del timeout_s
        self._sent[round] = model
        if not self._is_full():
            self._fill(server, round, model)
        while not self._is_full():
            self._take(server.receive())
            if not self._is_full():
                self._fill(server, round, model)
        came = sorted((self._waiting.popleft() for _ in range(self.buffer)), key=lambda one: one.ask.node)
        self.arrived = [self._arrival(one, round) for one in came]
        new = self.merge(model, self.arrived)
        for central in self.central:
            new = central.model(round, new)
        oldest = min((*self._busy.values(), *(one.round for one in self._waiting)), default=round + 1)
        self._sent = {made: sent for made, sent in self._sent.items() if made >= oldest}
        return new

    def _is_full(self) -> bool:
        return len(self._waiting) >= self.buffer

    def _fill(self, server: Server, round: int, model: Deferred) -> None:
        """Write to new clients, as many as there are places and clients for them."""
        places = self.concurrency - len(self._busy)
        here = server.online(0 if self._busy else 1)
        idle = [node for node in here if node not in self._busy]
        chosen: list[int] = []
        if places > 0 and idle:
            self._draws += 1
            chosen = self.select.choose(self._draws, model, Among(server, idle, round), places)
        self._busy.update(dict.fromkeys(chosen, round))
        server.send(round, [Ask(node, "train", {"arrays": model}) for node in chosen], self.timeout_s)

    def _take(self, answers: Iterable[Answer]) -> None:
        """Take note of who is not at work any more, and keep what has come."""
        for one in answers:
            node = one.ask.node
            del self._busy[node]
            self.select.heard(self._draws, [node], [] if one.reply is None else [node])
            if one.reply is not None:
                self._waiting.append(one)

    def _arrival(self, answer: Answer, round: int) -> Arrival:
        sent = self._sent[answer.round]
        assert answer.reply is not None  # the others are not kept
        return Arrival(changed(self.central, answer.reply, self.updates, sent), sent, round - answer.round)


class Among(Server):
    """A server with fewer clients to choose from; choices have numbers of their own, and messages the round's.

    Args:
        server: what is spoken through.
        nodes: who can be chosen, sorted.
        round: the round that messages belong to.
    """

    def __init__(self, server: Server, nodes: list[int], round: int) -> None:
        self.server, self.nodes, self.clients, self.round = server, nodes, server.clients, round

    def online(self, at_least: int = 1) -> list[int]:
        """Return who can be chosen."""
        return list(self.nodes)

    def exchange(
        self, round: int, asks: Iterable[Ask], timeout_s: float | None = None, share: float | None = None
    ) -> list[Reply]:
        """Send messages and wait for the replies."""
        return self.server.exchange(self.round, asks, timeout_s, share)

    def send(self, round: int, asks: Iterable[Ask], timeout_s: float | None = None) -> None:
        """Send messages and go on."""
        self.server.send(self.round, asks, timeout_s)

    def receive(self) -> list[Answer]:
        """Wait for the next end of something sent."""
        return self.server.receive()
