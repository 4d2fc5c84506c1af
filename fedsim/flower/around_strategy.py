"""What goes around a whole strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim.flower.gridserver import read
from fedsim.flower.gridview import Shown
from fedsim.flower.records import Layout, layout_of, pack, repack, solid, unpack
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate
from fedsim.methods import around


class Wrapped(Strategy):
    """A strategy that leaves everything to another one; what goes around it does one thing in addition.

    Args:
        strategy: any Flower strategy. What can be read of it can be read here.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def __getattr__(self, name: str) -> Any:
        if name == "strategy":  # not there yet, as in a copy that is being made
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy write to clients."""
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate."""
        return self.strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose who evaluates."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the strategy aggregate."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Let the strategy say what it is."""
        self.strategy.summary()


def written(
    update: LocalUpdate, name: str, vector: Deferred, received: Deferred, layout: Layout, dtype: str
) -> ArrayRecord:
    """Return what a deployed client sends for a vector of its answer: really fewer bytes where the update has a codec.

    Args:
        update: what it did.
        name: the vector's name, one of ``update.sends``.
        vector: the vector [P].
        received: the weights [P] that it began with.
        layout: names and shapes of the model's parameters.
        dtype: type of the weights.
    """
    if update.codec is None:
        return solid(pack(vector, layout, dtype))
    change = vector - received if name in update.models else vector
    pieces = update.codec.encode(change.value())
    return ArrayRecord({key: Array(piece.cpu().numpy()) for key, piece in pieces.items()})


class Central(Wrapped):
    """One of Flower's strategies with what the server does around it: to all replies, and to the model after a round.

    Args:
        strategy: any Flower strategy.
        central: what the server does, the first one first.
        updates: what clients do, by message type; replies to other messages are left alone.
    """

    def __init__(
        self, strategy: Strategy, central: Sequence[around.Central], updates: Mapping[str, LocalUpdate]
    ) -> None:
        super().__init__(strategy)
        self._central, self._updates = central, updates

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy write to clients, and ask them beforehand."""
        self._model = unpack(arrays)
        return self.strategy.configure_train(server_round, arrays, config, Changing(grid, self._change))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate what has been changed, and change what comes out."""
        came = list(replies)
        for reply in came:
            self._change(reply)
        arrays, metrics = self.strategy.aggregate_train(server_round, came)
        if arrays is None:
            return arrays, metrics
        model = unpack(arrays)
        for one in self._central:
            model = one.model(server_round, model)
        return repack(model, arrays), metrics

    def _change(self, message: Message) -> None:
        if not message.has_content() or message.metadata.message_type not in self._updates:
            return
        came = around.changed(self._central, read(message), self._updates, self._model)
        for name, vector in came.vectors.items():
            record = message.content[name]
            assert isinstance(record, ArrayRecord)
            message.content[name] = repack(vector, record)


class Changing(Shown):
    """A grid whose replies are changed before anybody sees them.

    Args:
        grid: a simulated or a real one.
        change: changes a reply.
    """

    def __init__(self, grid: Grid, change: Callable[[Message], None]) -> None:
        super().__init__(grid)
        self._change = change

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived."""
        return self._changed(self.grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies."""
        return self._changed(self.grid.send_and_receive(messages, timeout=timeout))

    def _changed(self, replies: Iterable[Message]) -> list[Message]:
        came = list(replies)
        for reply in came:
            self._change(reply)
        return came


class Decoded(Wrapped):
    """A strategy whose clients send compressed vectors, in a deployment; a simulation counts bytes and needs it not.

    Args:
        strategy: any Flower strategy.
        updates: what clients do, by message type, with transforms around it.
    """

    def __init__(self, strategy: Strategy, updates: Mapping[str, LocalUpdate]) -> None:
        super().__init__(strategy)
        self._updates = updates

    def start(self, grid: Grid, *args: Any, **more: Any) -> Result:
        """Run the strategy on a grid that reads the vectors."""
        return self.strategy.start(Decoding(grid, self._updates), *args, **more)


class Decoding(Changing):
    """A grid on which compressed vectors are read, by the model that their sender was sent.

    Args:
        grid: a real one.
        updates: what clients do, by message type, with transforms around it.
    """

    def __init__(self, grid: Grid, updates: Mapping[str, LocalUpdate]) -> None:
        super().__init__(grid, self._read)
        self._updates = updates
        self._sent: dict[int, ArrayRecord] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return super().push_messages(self._noted(messages))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for the replies."""
        return super().send_and_receive(self._noted(messages), timeout=timeout)

    def _noted(self, messages: Iterable[Message]) -> list[Message]:
        sent = list(messages)
        for message in sent:
            record = next(iter(message.content.array_records.values()), None)
            if record is not None:
                self._sent[message.metadata.dst_node_id] = record
        return sent

    def _read(self, reply: Message) -> None:
        update = self._updates.get(reply.metadata.message_type)
        if not reply.has_content() or update is None or update.codec is None:
            return
        sent = self._sent[reply.metadata.src_node_id]
        model, (layout, dtype) = unpack(sent), layout_of(sent)
        size = sum(math.prod(shape) for _, shape in layout)
        for name in update.sends:
            record = reply.content[name]
            assert isinstance(record, ArrayRecord)
            pieces = {key: torch.from_numpy(array.numpy()) for key, array in record.items()}
            vector = Deferred.known(update.codec.decode(pieces, size))
            reply.content[name] = pack(model + vector if name in update.models else vector, layout, dtype)
