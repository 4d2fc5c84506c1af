"""What goes around a whole strategy."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim.flower.gridview import Shown
from fedsim.flower.records import Layout, layout_of, pack, solid, unpack
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate


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

    def pooled(self, grid: Grid) -> Grid:
        """Return the grid on which Flower's loop has to run; only an asynchronous strategy wants another one."""
        return self.strategy.pooled(grid) if hasattr(self.strategy, "pooled") else grid

    def start(self, grid: Grid, *args: Any, **more: Any) -> Result:
        """Run Flower's loop on the grid that the strategy wants."""
        return super().start(self.pooled(grid), *args, **more)

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


class Changed(Wrapped):
    """A strategy that sees its clients' replies changed: those of a round, and those that it asks for besides.

    Args:
        strategy: any Flower strategy.
        updates: what clients do, by message type; replies to other messages are left alone.
    """

    def __init__(self, strategy: Strategy, updates: Mapping[str, LocalUpdate]) -> None:
        super().__init__(strategy)
        self._updates = updates

    @abstractmethod
    def change(self, content: RecordDict, update: LocalUpdate, sent: ArrayRecord) -> None:
        """Change a reply.

        Args:
            content: the reply's.
            update: what the client did.
            sent: the model of the round, from which weights count as changes.
        """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy write to clients, and ask them beforehand."""
        self._sent = arrays
        return self.strategy.configure_train(server_round, arrays, config, _Changing(grid, self._all))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate what has been changed."""
        return self.strategy.aggregate_train(server_round, self._all(replies))

    def _all(self, replies: Iterable[Message]) -> list[Message]:
        came = list(replies)
        for reply in came:
            update = self._updates.get(reply.metadata.message_type)
            if reply.has_content() and update is not None:
                self.change(reply.content, update, self._sent)
        return came


class _Changing(Shown):
    def __init__(self, grid: Grid, change: Callable[[Iterable[Message]], list[Message]]) -> None:
        super().__init__(grid)
        self._change = change

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self._change(self.grid.send_and_receive(messages, timeout=timeout))


class Decoded(Changed):
    """A strategy whose clients send compressed vectors, in a deployment; a simulation counts bytes and needs it not.

    Args:
        strategy: any Flower strategy.
        updates: what clients do, by message type, with transforms around it.
    """

    def change(self, content: RecordDict, update: LocalUpdate, sent: ArrayRecord) -> None:
        """Read the vectors."""
        if update.codec is None:
            return
        model = unpack(sent)
        layout, dtype = layout_of(sent)
        size = sum(math.prod(shape) for _, shape in layout)
        for name in update.sends:
            record = content[name]
            assert isinstance(record, ArrayRecord)
            pieces = {key: torch.from_numpy(array.numpy()) for key, array in record.items()}
            vector = Deferred.known(update.codec.decode(pieces, size))
            content[name] = pack(model + vector if name in update.models else vector, layout, dtype)
