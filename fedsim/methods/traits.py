"""What a run has to know of a strategy before it begins: one place that reads it, whoever has written the strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from fedsim.learn.local import LocalUpdate
from fedsim.methods.select import Selector
from fedsim.methods.server import Query
from fedsim.spec.experiment import Weighting


@dataclass(frozen=True, kw_only=True)
class Read:
    """Fields that a strategy may have; those that it does not have are what stands here."""

    @classmethod
    def of(cls, strategy: Any) -> Self:
        """Read the fields of a strategy: one of ours, one of Flower's, or anybody's."""
        known = {one.name: getattr(strategy, one.name) for one in fields(cls) if hasattr(strategy, one.name)}
        return cls(**known)


@dataclass(frozen=True, kw_only=True)
class Traits(Read):
    """What any strategy can say of itself.

    Args:
        updates: what clients do, by message type; None is plain local SGD.
        queries: what clients answer without their data, by message type.
        select: chooses the clients, or None.
        weighting: how it weighs replies.
        weighted: whether it has a use for numbers of samples; None if it does not say.
        timing_depends_on_values: whether what happens when depends on computed numbers; None if it does not say.
        directed: whether it can use links that only work one way.
        varying: whether it can use a topology that changes.
        kept: the parts of the model that stay with each client, by name; None is its last layer.
        check: refuses a number of clients that does not fit, or None.

    >>> class Mine:
    ...     directed = True
    >>> Traits.of(Mine()).directed, Traits.of(Mine()).varying, Traits.of(Mine()).timing_depends_on_values
    (True, False, None)
    """

    updates: Mapping[str, LocalUpdate] | None = None
    queries: Mapping[str, Query] = field(default_factory=dict)
    select: Selector | None = None
    weighting: Weighting = "samples"
    weighted: bool | None = None
    timing_depends_on_values: bool | None = None
    directed: bool = False
    varying: bool = False
    kept: Sequence[str | int] | None = ()
    check: Callable[[int], None] | None = None

    @property
    def selector(self) -> Selector | None:
        """What chooses the clients; a foreign strategy may call something else so."""
        return self.select if isinstance(self.select, Selector) else None
