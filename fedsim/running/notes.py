"""What a method and its clients say about a round, on its way into the record."""

from __future__ import annotations

from collections.abc import Iterable

from fedsim.methods.metrics import SYSTEM, Metric
from fedsim.record.store import WIDE
from fedsim.running.observer import Observer

OWN = "strategy_"
SCORES = ("accuracy", "loss", "distance")


class Notes:
    """Writes what is said in every round; the scores of the model are not its business.

    What a method counts keeps its name, unless a score or a column of the record has that name.

    Args:
        observer: has the record and the clock.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._names: set[str] = set()

    def tell(self, round: int, metrics: Iterable[Metric]) -> None:
        """Write what a method counts."""
        for name, value, node in metrics:
            self.write(round, OWN + name if name in (*WIDE, *SCORES) else name, value, node)

    def write(self, round: int, name: str, value: float, node: int = SYSTEM) -> None:
        """Write one number of a round, and note once that there is one in every round."""
        record = self._observer.record
        if name not in self._names:
            self._names.add(name)
            record.fact("every_round", sorted(self._names))
        record.metric(round, self._observer.world.clock.now, name, value, node)
