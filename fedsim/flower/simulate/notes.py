"""What a strategy and its clients say about a round, on its way into the record."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import MultiKrum, Strategy

from fedsim.flower.settings import EXAMPLES
from fedsim.flower.simulate.robust import needed
from fedsim.running import notes
from fedsim.running.held import innermost
from fedsim.running.observer import Observer

log = logging.getLogger("fedsim")

TRAIN, EVAL = "train_", "eval_"
AGGREGATION = ("aggregate_train", "aggregate_evaluate")


class FlowerNotes:
    """Writes what is said in every round; the scores of the model are not its business.

    The numbers that a strategy of Flower's makes of its clients' replies are called ``train_…`` and ``eval_…``, and so
    is what each client has said about the model that it was sent to evaluate.

    Args:
        strategy: any.
        observer: has the record and the clock.
        dry: keep time only: then clients say nothing.
    """

    def __init__(self, strategy: Strategy, observer: Observer, dry: bool) -> None:
        self._strategy, self._observer, self._dry = strategy, observer, dry
        self._inner = innermost(strategy)
        self._notes = notes.Notes(observer)
        self._warned = False

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Listen to what the strategy aggregates, until its loop is over."""
        strategy: Any = self._strategy
        own = {name: vars(strategy)[name] for name in AGGREGATION if name in vars(strategy)}
        train, evaluate = strategy.aggregate_train, strategy.aggregate_evaluate

        def on_train(
            round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            came = list(replies)
            self._count(round, sum(reply.has_content() for reply in came))
            arrays, metrics = train(round, came)
            self._clients(round, TRAIN, self._made(metrics))
            return arrays, metrics

        def on_evaluate(round: int, replies: Iterable[Message]) -> MetricRecord | None:
            came = list(replies)
            metrics: MetricRecord | None = evaluate(round, came)
            self._clients(round, EVAL, self._made(metrics))
            for reply in came:
                for record in reply.content.metric_records.values() if reply.has_content() else ():
                    self._clients(round, EVAL, record, reply.metadata.src_node_id)
            return metrics

        strategy.aggregate_train, strategy.aggregate_evaluate = on_train, on_evaluate
        try:
            yield
        finally:
            del strategy.aggregate_train, strategy.aggregate_evaluate
            vars(strategy).update(own)

    def _made(self, metrics: MetricRecord | None) -> Mapping[str, Any]:
        """Return the numbers that a strategy has made of replies; of those that are only repeated, what they were."""
        if self._dry:
            return {}

        def numbers() -> dict[str, float]:
            return {name: one for name, one in (metrics or {}).items() if isinstance(one, int | float)}

        made: Any = self._observer.learner.book.echo(numbers)
        return dict(made)

    def _clients(self, round: int, prefix: str, numbers: Mapping[str, Any], node: int = -1) -> None:
        if self._dry:
            return
        for name, value in numbers.items():
            if name != EXAMPLES and isinstance(value, int | float):
                # a client may call one number loss and another one train_loss
                short = name.removeprefix(prefix)
                own = name == short or short in numbers
                self._notes.write(round, prefix + name if own else name, value, node)

    def _count(self, round: int, replies: int) -> None:
        """Say once that a robust strategy goes on with too few replies; Flower's Bulyan says so itself."""
        inner = self._inner
        if isinstance(inner, MultiKrum) and 0 < replies < needed(inner) and not self._warned:
            self._warned = True
            text = "round %d has %d replies, and %s needs %d to withstand %d attackers"
            log.warning(text, round, replies, type(inner).__name__, needed(inner), inner.num_malicious_nodes)
