"""A Flower grid as the server that our methods speak through."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import strategy_utils

from fedsim.flower.cohort import online
from fedsim.flower.gridview import Shown, patient
from fedsim.flower.records import layout_of, pack, unpack
from fedsim.learn.deferred import Deferred
from fedsim.methods.server import Answer, Ask, Reply, Server, trains

POLL_S = 1.0
"""How long to wait before a SuperLink is asked again; a simulated grid waits for the next reply by itself."""


class GridServer(Server):
    """Writes what a method asks as Flower messages, and reads the replies.

    Args:
        grid: a simulated or a real one.
    """

    model: Deferred

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._config = ConfigRecord()
        self._records: dict[int, ArrayRecord] = {}
        self._sent: dict[str, tuple[int, Ask]] = {}

    def renew(self, grid: Grid, arrays: ArrayRecord, config: ConfigRecord) -> Deferred:
        """Go on with another model.

        Args:
            grid: the grid, which may be another view of the same.
            arrays: the model.
            config: what is sent with every message besides the method's own numbers.

        Returns:
            The weights [P].
        """
        self.grid, self._config = grid, config
        self.model, self._shape = unpack(arrays), layout_of(arrays)
        self._records = {id(self.model): arrays}
        return self.model

    def pack(self, model: Deferred) -> ArrayRecord:
        """Return weights [P] in the form of the model."""
        return pack(model, *self._shape)

    def write(self, round: int, asks: Iterable[Ask]) -> list[Message]:
        """Write messages; those that say the same share their content."""
        self._config["server-round"] = round
        records = dict(self._records)
        contents: dict[tuple[tuple[str, int | float], ...], RecordDict] = {}
        messages = []
        for ask in asks:
            key = (*((name, id(vector)) for name, vector in ask.vectors.items()), *ask.numbers.items())
            if key not in contents:
                for vector in ask.vectors.values():
                    records.setdefault(id(vector), self.pack(vector))
                contents[key] = RecordDict({name: records[id(v)] for name, v in ask.vectors.items()})
                contents[key]["config"] = ConfigRecord({**self._config, **ask.numbers})
            messages.append(Message(contents[key], ask.node, ask.action))
        return messages

    def online(self, at_least: int = 1) -> list[int]:
        """Return the clients that are online, sorted; wait until there are enough of them."""
        return online(self.grid, at_least)

    def exchange(
        self, round: int, asks: Iterable[Ask], timeout_s: float | None = None, share: float | None = None
    ) -> list[Reply]:
        """Send messages and wait for the replies."""
        grid = self.grid if share is None else Hasty(self.grid, share)
        return heard(grid.send_and_receive(self.write(round, asks), timeout=timeout_s))

    def send(self, round: int, asks: Iterable[Ask], timeout_s: float | None = None) -> None:
        """Send messages and go on."""
        sent = list(asks)
        messages = self.write(round, sent)
        for message in messages:
            message.metadata.ttl = message.metadata.ttl if timeout_s is None else timeout_s
        ids = self.grid.push_messages(messages)
        self._sent.update((id, (round, ask)) for id, ask in zip(ids, sent, strict=True))

    def receive(self) -> list[Answer]:
        """Wait for the next end of something sent."""
        with patient():
            replies = list(self.grid.pull_messages(list(self._sent))) if self._sent else []
        if not replies:
            pause()
        ended = [(self._sent.pop(reply.metadata.reply_to_message_id), reply) for reply in replies]
        return [
            Answer(round, ask, read(reply) if reply.has_content() else None) for (round, ask), reply in ended
        ]


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
        missing = math.ceil(self._share * len(sent) - 1e-9)
        # a SuperLink gives no id to a message that it could not take
        fresh = {id for id in self.grid.push_messages(sent) if id is not None}
        self._open |= fresh
        came: list[Message] = []
        while len(came) < missing and fresh & self._open:
            replies = [one for one in self._pull() if one.metadata.reply_to_message_id in fresh]
            came += [reply for reply in replies if reply.has_content()]
        return came[:missing]

    def _pull(self) -> list[Message]:
        with patient():
            replies = list(self.grid.pull_messages(sorted(self._open)))
        self._open -= {reply.metadata.reply_to_message_id for reply in replies}
        if not replies:
            pause()
        return replies


def pause() -> None:
    """Wait a moment, where Flower's own strategies do, because there a simulation replaces it."""
    vars(strategy_utils)["sleep"](POLL_S)


def heard(messages: Iterable[Message]) -> list[Reply]:
    """Return the replies that are not errors, in the order of node ids."""
    came = (message for message in messages if message.has_content())
    return sorted(map(read, came), key=lambda reply: reply.node)


def read(message: Message) -> Reply:
    """Return what a message with content says."""
    vectors, metrics = {}, MetricRecord()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            vectors[name] = unpack(record)
        elif isinstance(record, MetricRecord):
            metrics = record
    examples = int(str(metrics.get("num-examples", 0)))
    return Reply(message.metadata.src_node_id, message.metadata.message_type, vectors, metrics, examples)
