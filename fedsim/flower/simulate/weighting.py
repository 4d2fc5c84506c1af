"""How much each client counts in an average: by its samples, or all the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    QFedAvg,
    Strategy,
)

from fedsim.errors import BadValue
from fedsim.flower.around_strategy import Wrapped
from fedsim.running.build import innermost
from fedsim.running.weighting import choose_weighting
from fedsim.spec.experiment import Weighting

EXAMPLES = "num-examples"
PLAIN = (Bulyan, FedMedian, FedTrimmedAvg, FedXgbBagging, FedXgbCyclic, QFedAvg)
"""Flower's strategies that never look at numbers of samples to merge models."""


class Uniform(Wrapped):
    """A strategy that is told of every client that it has trained on one sample, so that all count the same.

    Args:
        strategy: one that averages by numbers of samples, such as most of Flower's.
    """

    weighting: Weighting = "uniform"

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate replies that say so."""
        return self.strategy.aggregate_train(server_round, [_of_one(reply) for reply in replies])


def _of_one(reply: Message) -> Message:
    """Return a copy of a reply that says that there is one sample; who else has the reply keeps the number."""
    if not reply.has_content():
        return reply
    twin, records = copy.copy(reply), dict[str, Any](reply.content.items())
    for name, record in reply.content.metric_records.items():
        if EXAMPLES in record:
            records[name] = record.copy()
            records[name][EXAMPLES] = 1
    twin.content = RecordDict(records)
    return twin


def weigh(strategy: Any, select: Any, wanted: Weighting | None) -> Any:
    """Return one of Flower's strategies with replies weighted as the experiment, or else the selector, says.

    Args:
        strategy: any that is not ours.
        select: what chooses the clients, or None.
        wanted: what the experiment says, or None.

    Raises:
        BadValue: as :func:`fedsim.running.weighting.choose_weighting`.
    """
    chosen = choose_weighting(type(innermost(strategy)).__name__, is_weighted(strategy), select, wanted)
    key = getattr(strategy, "weighted_by_key", EXAMPLES)
    if chosen == "uniform" and key != EXAMPLES:
        raise BadValue("weighted_by_key", key, f"contradicts the weighting {chosen}", "leave it out")
    return Uniform(strategy) if chosen == "uniform" else strategy


def is_weighted(strategy: Any) -> bool:
    """Tell whether a strategy has a use for numbers of samples when it merges models."""
    inner = innermost(strategy)
    return bool(getattr(inner, "weighted", not isinstance(inner, PLAIN)))


def weighting_of(strategy: Strategy) -> Weighting:
    """Return how a strategy weighs its clients.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> [weighting_of(one) for one in (FedAvg(), FedMedian(), Uniform(FedAvg()))]
    ['samples', 'uniform', 'uniform']
    """
    if not is_weighted(strategy):
        return "uniform"
    found: Weighting = getattr(strategy, "weighting", "samples")
    return found
