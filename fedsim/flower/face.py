"""The Flower face of our methods: with it, the same class is a strategy that runs on any Flower grid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsim.flower.gridserver import GridServer, Hasty, heard
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.metrics import SYSTEM
from fedsim.methods.rounds import Rounds


class FlowerFace(Strategy):
    """Makes a method of ours a Flower strategy: ``class FedAMD(FlowerFace, Rounds)``.

    Flower's loop asks for the messages of a round, sends them, and hands over the replies. A method in rounds answers
    that with its own two halves of a round; one without rounds does all of it in the first half, because it waits for
    single replies. A simulation needs nothing of this: it drives the methods themselves.
    """

    _grid: GridServer | None = None

    def start(self, grid: Grid, *args: Any, **more: Any) -> Result:
        """Run Flower's loop; a wait ends with a share of the replies where that is enough for the method."""
        share = self.enough if isinstance(self, Rounds) else None
        return super().start(grid if share is None else Hasty(grid, share), *args, **more)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients of a round and write to them."""
        assert isinstance(self, Rounds | Arrivals)  # what else has this face
        if server_round == 1 or self._grid is None:
            self._grid = GridServer(grid)
        model = self._grid.renew(grid, arrays, config)
        if isinstance(self, Rounds):
            return self._grid.write(server_round, self.open(self._grid, server_round, model))
        self._new = self.step(self._grid, server_round, model)
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what came back."""
        assert isinstance(self, Rounds | Arrivals)  # what else has this face
        assert self._grid is not None  # it has been asked to write before
        if isinstance(self, Rounds):
            self._new = self.close(server_round, self._grid.model, heard(replies))
        told: dict[str, Any] = {
            one.name: one.value for one in self.metrics(server_round) if one.node == SYSTEM
        }
        return self._grid.pack(self._new), MetricRecord(told)

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
