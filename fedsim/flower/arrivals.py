"""What asynchronous server strategies share: some clients are at work all the time, and nobody waits for the slow."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy, strategy_utils

from fedsim.errors import BadValue
from fedsim.flower.cohort import online
from fedsim.flower.gridview import Shown
from fedsim.flower.records import layout_of, pack, unpack
from fedsim.flower.select import Selector, Uniform
from fedsim.flower.strategy import Reply, heard
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD, LocalUpdate, State

POLL_S = 1.0
"""How long to wait before a SuperLink is asked again; a simulated grid waits for the next reply by itself."""


class Progress(LocalSGD):
    """Local SGD that sends how far it has come, y - x, because the server's model has moved on meanwhile."""

    models = ()

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


class Arrivals(Strategy):
    """A server strategy without rounds: the model changes whenever enough replies are in.

    It is an ordinary Flower strategy, whose rounds are the changes of its model. In each the clients that have
    answered, have failed, or are too slow are replaced by others that are online; the rest goes on working.

    Args:
        updates: what clients do, by message type; ``train`` must be one.
        concurrency: clients at work at a time; fewer if fewer are online.
        buffer: replies in a change of the model.
        select: chooses among the clients that are online and not at work; None draws them uniformly.
        seed: of everything that the strategy draws.
        timeout_s: how long a client may take before it is given up, in seconds; None waits for half a day.

    Attributes:
        latest: numbers about the latest round, which the run's record keeps beside its scores.
    """

    timing_depends_on_values = False
    weighted = False

    def __init__(
        self,
        updates: Mapping[str, LocalUpdate],
        concurrency: int,
        buffer: int = 1,
        select: Selector | None = None,
        seed: int = 0,
        timeout_s: float | None = 3600.0,
    ) -> None:
        self.select = Uniform(seed=seed) if select is None else select
        self.updates = {**updates, **self.select.updates}
        self.timing_depends_on_values = self.select.timing_depends_on_values
        self.concurrency, self.buffer, self.timeout_s = concurrency, buffer, timeout_s
        self.latest: dict[str, int | float] = {}
        self._sent: dict[int, Deferred] = {}
        self._draws = 0

    @abstractmethod
    def merge(self, model: Deferred, arrivals: Sequence[Arrival]) -> Deferred:
        """Return the new weights [P].

        Args:
            model: the weights [P] as they are now.
            arrivals: as many as the buffer holds, in the order of node ids, in which everything is to be summed.
        """

    def check(self, clients: int) -> None:
        """Check the parameters against the number of clients."""
        if self.concurrency > clients:
            raise BadValue("concurrency", self.concurrency, f"at most {clients}, the number of clients")
        self.select.check(clients)

    def pooled(self, grid: Grid) -> Grid:
        """Return the grid on which Flower's loop has to run, so that it does not wait for everybody."""
        self._pool = Pool(grid, self._fill, self._heard)
        return self._pool

    def start(self, grid: Grid, *args: Any, **more: Any) -> Result:
        """Run Flower's loop."""
        return super().start(self.pooled(grid), *args, **more)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Write to as many clients as there are places, unless the model is about to change at once."""
        config["server-round"] = server_round
        self._round, self._arrays, self._config = server_round, arrays, config
        self._sent[server_round] = unpack(arrays)
        self._pool.missing = self.buffer
        return [] if self._pool.is_full() else self._fill()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what came."""
        came = sorted((self._arrival(one) for one in replies), key=lambda one: one.reply.node)
        new = self.merge(self._sent[server_round], came)
        ages = [arrival.staleness for arrival in came]
        self.latest = {"staleness": sum(ages) / len(ages), "staleness_max": max(ages)}
        oldest = min(map(_round_of, self._pool.open()), default=server_round + 1)
        self._sent = {round: model for round, model in self._sent.items() if round >= oldest}
        return pack(new, *layout_of(self._arrays)), MetricRecord(dict(self.latest))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked for."""
        return None

    def summary(self) -> None:
        """Say nothing; the experiment file says it all."""

    def _fill(self) -> list[Message]:
        """Return messages to new clients, as many as there are places and clients for them."""
        grid, busy = self._pool.grid, self._pool.busy()
        places = self.concurrency - len(busy)
        idle = [node for node in (grid.get_node_ids() if busy else online(grid)) if node not in busy]
        if places <= 0 or not idle:
            return []
        self._draws += 1
        chosen = self.select.choose(self._draws, self._arrays, Shown(grid, sorted(idle)), places)
        content = RecordDict({"arrays": self._arrays, "config": ConfigRecord(dict(self._config))})
        group = str(self._round)
        return [Message(content, node, "train", ttl=self.timeout_s, group_id=group) for node in chosen]

    def _heard(self, node: int, answered: bool) -> None:
        self.select.heard(self._draws, [node], [node] if answered else [])

    def _arrival(self, message: Message) -> Arrival:
        [reply] = heard([message])
        round = _round_of(message)
        return Arrival(reply, self._sent[round], self._round - round)


def _round_of(message: Message) -> int:
    """Return the round whose model a message carries, or a reply began with."""
    return int(message.metadata.group_id)


class Pool(Shown):
    """A grid on which waiting ends with the first replies, and the other clients go on.

    Args:
        grid: a simulated or a real one.
        fill: returns messages to clients that take the places of those that have answered or failed.
        heard: told of every client that is not at work any more, and whether it has answered.
    """

    def __init__(
        self, grid: Grid, fill: Callable[[], list[Message]], heard: Callable[[int, bool], None]
    ) -> None:
        super().__init__(grid)
        self.missing = 0
        self._fill, self._heard = fill, heard
        self._at_work: dict[str, Message] = {}
        self._came: deque[Message] = deque()

    def busy(self) -> set[int]:
        """Return the clients at work."""
        return {message.metadata.dst_node_id for message in self._at_work.values()}

    def is_full(self) -> bool:
        """Return whether no reply is missing, because enough have come at the same time as the last one."""
        return len(self._came) >= self.missing

    def open(self) -> list[Message]:
        """Return the messages that wait for an answer, and the answers that wait to be merged."""
        return [*self._at_work.values(), *self._came]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait until no reply is missing; those that come besides are kept for the next time."""
        if not self.missing:
            return list(self.grid.send_and_receive(messages, timeout=timeout))
        self._push(messages)
        while not self.is_full():
            self._pull()
            if not self.is_full():
                self._push(self._fill())
        wanted, self.missing = self.missing, 0
        return [self._came.popleft() for _ in range(wanted)]

    def _push(self, messages: Iterable[Message]) -> None:
        sent = list(messages)
        self._at_work.update(zip(self.grid.push_messages(sent), sent, strict=True))

    def _pull(self) -> None:
        replies = list(self.grid.pull_messages(list(self._at_work))) if self._at_work else []
        for reply in replies:
            asked = self._at_work.pop(reply.metadata.reply_to_message_id)
            self._heard(asked.metadata.dst_node_id, reply.has_content())
            if reply.has_content():
                self._came.append(reply)
        if not replies:
            # looked up where Flower's own strategies do, because there a simulation replaces it
            vars(strategy_utils)["sleep"](POLL_S)
