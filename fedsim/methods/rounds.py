"""Methods in rounds: choose clients, ask them, merge what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.methods.around import Central, changed
from fedsim.methods.client import Client
from fedsim.methods.metrics import Metric
from fedsim.methods.select import Selector, Uniform
from fedsim.methods.server import Ask, Query, Reply, Server, ask_all
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local, Weighting


@dataclass(kw_only=True, eq=False)
class Rounds(ABC):
    """A method in rounds: choose clients, ask them, merge their replies into the model.

    A method is a keyword dataclass that says how to :meth:`merge`; what to :meth:`ask`, if that is more than to train;
    and what clients do, if that is more than local SGD.

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training.
        select: chooses the participants; by default uniformly.
        timeout_s: how long an exchange of its own waits, in seconds; None waits for all.
        seed: of everything that the method draws.

    Attributes:
        updates: what clients do, by message type.
        queries: what clients answer without their data, by message type, such as ``query.average``.
        weighted: whether the method averages by :attr:`Reply.weight`; False counts all replies alike, whatever the
            experiment says.
        two_models: whether each client has a model of its own beside the one that it trains for the server.
        pooled: whether all data lie with the server, which trains on them itself.
        weighting: how replies are weighted, where they are.
        central: what the server does to replies and models, the first one first.
        enough: which share of the replies ends a round; None is the server's own rule.
        server: what it speaks through while it runs.
        came: the replies of the latest round.
    """

    participants: Count
    local: Local
    select: Selector = None  # type: ignore[assignment]  # the default needs the seed
    timeout_s: Positive | None = 3600.0
    seed: int = 0

    timing_depends_on_values: ClassVar[bool] = False
    weighted: ClassVar[bool] = True
    two_models: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    queries: ClassVar[Mapping[str, Query]] = {}

    def __post_init__(self) -> None:
        self.select = self.select or Uniform(seed=self.seed)
        self.updates = {**self.local_updates(), **self.select.updates}
        self.central: Sequence[Central] = ()
        self.weighting: Weighting = "samples"
        self.enough: float | None = None
        self.clients = 0
        self.came: Sequence[Reply] = ()
        self.server: Server
        self._round = 0
        self._asked: list[int] = []

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do, by message type: by default they train by local SGD."""
        return {"train": LocalSGD(self.local)}

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Return what to ask of whom; by default all of the cohort train from the model.

        Args:
            round: its number, from 1.
            model: the weights [P].
            cohort: the clients chosen, sorted.
        """
        return ask_all(cohort, "train", arrays=model)

    @abstractmethod
    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Return the new weights [P].

        Args:
            round: its number, from 1.
            model: the weights [P] that were sent.
            replies: those that came, at least one, in the order of node ids, in which everything is to be summed.
        """

    def begin(self, model: Deferred) -> None:  # noqa: B027 - most methods have nothing to do
        """Do what comes before the first round, with :meth:`online` and :meth:`exchange`; nothing by default."""

    def missed(self, round: int, model: Deferred) -> Deferred:
        """Return the new weights [P] after a round without any reply; the old ones by default."""
        return model

    def size(self, round: int) -> int | None:
        """Return how many clients take part in a round, or None for all that are online."""
        return self.participants

    def metrics(self, round: int) -> Iterable[Metric]:
        """Return what there is to record of a round that has just ended; nothing that has to be computed first."""
        del round
        yield Metric("replies", len(self.came))

    def personal(self, client: Client) -> Deferred:
        """Return the model [P] that a client uses itself; by default the server's, with what of it is the client's own.

        Args:
            client: what it has.
        """
        return client.model

    def check(self, clients: int) -> None:
        """Take note of the number of clients, and check the parameters against it."""
        if self.participants > clients:
            raise BadValue("participants", self.participants, f"at most {clients}, the number of clients")
        self.select.check(clients)
        self.clients = clients

    def check_around(self, transforms: Sequence[Any]) -> None:  # noqa: B027 - most take everything
        """Refuse what cannot go around this method; nothing by default.

        Args:
            transforms: what the experiment puts around it, in order.
        """

    def online(self) -> list[int]:
        """Return the clients that are online, sorted; wait for one if there is none."""
        return self.server.online()

    def exchange(self, asks: Iterable[Ask]) -> list[Reply]:
        """Send messages besides those of :meth:`ask` and wait for the replies.

        Returns:
            The replies that came, in the order of node ids.
        """
        return self._changed(self.server.exchange(self._round, asks, self.timeout_s))

    def open(self, server: Server, round: int, model: Deferred) -> list[Ask]:
        """Begin a round: choose its clients, and return what to ask of them.

        Args:
            server: what to speak through.
            round: its number, from 1.
            model: the weights [P].
        """
        self.server, self._model = server, model
        if round == 1:
            # a deployed server does not say how many clients there are
            self.clients = self.clients or server.clients or max(self.participants, len(self.online()))
            self.begin(model)
        self._round = round
        cohort = self.select.choose(round, model, server, self.size(round))
        asks = list(self.ask(round, model, cohort))
        self._asked = [ask.node for ask in asks]
        return asks

    def close(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """End a round with the replies that came, in the order of node ids, and return the new weights [P]."""
        self.select.heard(round, self._asked, [reply.node for reply in replies])
        self.came = self._changed(replies)
        new = self.merge(round, model, self.came) if replies else self.missed(round, model)
        for central in self.central:
            new = central.model(round, new)
        return new

    def step(self, server: Server, round: int, model: Deferred, timeout_s: float | None) -> Deferred:
        """Return the weights [P] that a round makes of others.

        Args:
            server: what to speak through.
            round: its number, from 1.
            model: the weights [P].
            timeout_s: how long to wait for the replies, in seconds; None waits for all.
        """
        asks = self.open(server, round, model)
        return self.close(round, model, server.exchange(round, asks, timeout_s, self.enough))

    def _changed(self, replies: Sequence[Reply]) -> list[Reply]:
        """Return replies as the server's own transforms leave them, and as they are to be weighted."""
        came = (changed(self.central, reply, self.updates, self._model) for reply in replies)
        share = self.select.share
        return [replace(reply, weighting=self.weighting, share=share(reply.node)) for reply in came]
