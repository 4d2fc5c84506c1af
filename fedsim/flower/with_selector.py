"""A selector for strategies that know nothing of selectors, such as Flower's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.flower.around_strategy import Wrapped
from fedsim.flower.cohort import online
from fedsim.flower.gridserver import GridServer
from fedsim.flower.gridview import Shown
from fedsim.flower.settings import Settings
from fedsim.methods.select import Selector


class Chosen(Wrapped):
    """One of Flower's strategies, with clients that a selector chooses.

    In a round the strategy sees those chosen, takes all of them, and its messages go out in the order of their ids.
    Everything else is its own.

    Args:
        strategy: any strategy.
        select: chooses.
        participants: clients in a round, fewer if fewer are online; None leaves it to the strategy's own
            ``fraction_train`` and ``min_train_nodes``.
    """

    def __init__(self, strategy: Strategy, select: Selector, participants: int | None = None) -> None:
        super().__init__(strategy)
        self.select, self._participants = select, participants
        if select.timing_depends_on_values:
            self.timing_depends_on_values = True

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose, and let the strategy write to those chosen."""
        ids = online(grid, Settings.of(self.strategy).min_available_nodes)
        server = GridServer(grid)
        model = server.renew(grid, arrays, ConfigRecord())
        chosen = self.select.choose(server_round, model, server, self._size(len(ids)))
        with _taking_all(self.strategy, len(chosen)):
            messages = list(self.strategy.configure_train(server_round, arrays, config, Shown(grid, chosen)))
        messages.sort(key=lambda message: message.metadata.dst_node_id)
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Tell the selector who has answered, and let the strategy aggregate."""
        came = list(replies)
        answered = sorted(reply.metadata.src_node_id for reply in came if reply.has_content())
        self.select.heard(server_round, self._asked, answered)
        return self.strategy.aggregate_train(server_round, came)

    def _size(self, online: int) -> int | None:
        if self._participants is not None:
            return self._participants
        known = Settings.of(self.strategy)
        share = known.fraction_train
        return None if share is None else max(int(online * share), known.min_train_nodes)


@contextmanager
def _taking_all(strategy: Any, shown: int) -> Iterator[None]:
    """Let a strategy take all the clients that it is shown, however few."""
    before = vars(strategy).copy()
    bounds = {
        key: min(before[key], shown) for key in ("min_train_nodes", "min_available_nodes") if key in before
    }
    everybody = {"fraction_train": 1.0} if "fraction_train" in before else {}
    try:
        vars(strategy).update(bounds | everybody)
        yield
    finally:
        vars(strategy).update({key: before[key] for key in bounds | everybody})
