"""How much each client counts in an average: by its samples, or all the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
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
from fedsim.flower.settings import EXAMPLES, Settings
from fedsim.methods.select import Selector
from fedsim.methods.traits import Traits
from fedsim.running.held import innermost
from fedsim.running.weighting import choose_weighting
from fedsim.spec.experiment import Weighting

PLAIN = (Bulyan, FedMedian, FedTrimmedAvg, FedXgbBagging, FedXgbCyclic, QFedAvg)
"""Flower's strategies that never look at numbers of samples to merge models."""


MANY = 2**20
"""How many samples stand for a share of 1 where shares differ: numbers of samples are whole numbers."""


class Uniform(Wrapped):
    """A strategy that is told of every client that it has trained on one sample, so that all count the same.

    Args:
        strategy: one that averages by numbers of samples, such as most of Flower's.
        share: returns how much a client counts, if not all count the same.
    """

    weighting: Weighting = "uniform"

    def __init__(self, strategy: Strategy, share: Callable[[int], float] | None = None) -> None:
        super().__init__(strategy)
        self._share = share

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy aggregate replies that say so."""
        came = list(replies)
        shares = [self._share(reply.metadata.src_node_id) if self._share else 1.0 for reply in came]
        one = 1 if len(set(shares)) < 2 else MANY
        told = [
            _of(reply, round(one * share / min(shares))) for reply, share in zip(came, shares, strict=True)
        ]
        return self.strategy.aggregate_train(server_round, told)


def _of(reply: Message, count: int) -> Message:
    """Return a copy of a reply that says how many samples there are; who else has the reply keeps the number."""
    if not reply.has_content():
        return reply
    twin, records = copy.copy(reply), dict[str, Any](reply.content.items())
    for name, record in reply.content.metric_records.items():
        if EXAMPLES in record:
            records[name] = record.copy()
            records[name][EXAMPLES] = count
    twin.content = RecordDict(records)
    return twin


def weigh(strategy: Any, select: Selector | None, wanted: Weighting | None) -> Any:
    """Return one of Flower's strategies with replies weighted as the experiment, or else the selector, says.

    Args:
        strategy: any that is not ours.
        select: what chooses the clients, or None.
        wanted: what the experiment says, or None.

    Raises:
        BadValue: as :func:`fedsim.running.weighting.choose_weighting`.
    """
    chosen = choose_weighting(type(innermost(strategy)).__name__, is_weighted(strategy), select, wanted)
    key = Settings.of(strategy).weighted_by_key
    if chosen == "uniform" and key != EXAMPLES:
        raise BadValue("weighted_by_key", key, f"contradicts the weighting {chosen}", "leave it out")
    return Uniform(strategy, None if select is None else select.share) if chosen == "uniform" else strategy


def is_weighted(strategy: Any) -> bool:
    """Tell whether a strategy has a use for numbers of samples when it merges models."""
    inner = innermost(strategy)
    said = Traits.of(inner).weighted
    return not isinstance(inner, PLAIN) if said is None else said


def weighting_of(strategy: Strategy) -> Weighting:
    """Return how a strategy weighs its clients.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> [weighting_of(one) for one in (FedAvg(), FedMedian(), Uniform(FedAvg()))]
    ['samples', 'uniform', 'uniform']
    """
    if not is_weighted(strategy):
        return "uniform"
    return Traits.of(strategy).weighting
