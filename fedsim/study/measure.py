"""Single numbers of runs: means over evaluations, and what it took to a target."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from fedsim.record.better import rises
from fedsim.study.asked import Measure
from fedsim.study.ran import COSTS, Ran

QUALITY = ("accuracy", "distance", "loss")
"""What is compared where nobody says it: the first of these that all runs have."""

Budget = tuple[str, float]
"""A cost, and how much of it may have been spent."""


def quality(runs: Iterable[Ran]) -> str | None:
    """Return what is measured where nobody says it, or None if the runs have nothing in common."""
    known = [ran.names() for ran in runs]
    return next((name for name in QUALITY if all(name in names for names in known)), None)


def number(ran: Ran, asked: Measure, metric: str, budget: Budget | None = None) -> float:
    """Return one number of a run.

    Args:
        ran: the run.
        asked: which evaluations count.
        metric: what was measured, or a cost, which counts as it is in the end.
        budget: leaves away what was measured later.

    Returns:
        The mean over these evaluations; NaN if there is none.
    """
    if metric in COSTS:
        return ran.total(metric)
    curve = ran.curve(metric)
    values, rounds = curve["value"], curve["round"]
    if budget is not None:
        column, unit, _ = COSTS[budget[0]]
        within = curve[column] / unit <= budget[1] * (1 + 1e-12)
        values, rounds = values[within], rounds[within]
    if asked.rounds is not None:
        values = values[(rounds >= asked.rounds[0]) & (rounds <= asked.rounds[1])]
    else:
        count = asked.last if asked.share is None else max(1, int(len(values) * asked.share))
        values = values[-count:]
    return float(np.mean(values)) if len(values) else math.nan


def is_rising(metric: str, higher: bool | None) -> bool:
    """Tell whether more of a metric is better: as it is said, or else as its name says.

    >>> is_rising("distance", None), is_rising("distance", True)
    (False, True)
    """
    return rises(metric) if higher is None else higher


def taken(ran: Ran, metric: str, target: float, higher: bool | None = None) -> dict[str, float]:
    """Return what a run took to a target, by cost; nothing if it has not come there.

    Args:
        ran: the run.
        metric: what is to reach the target.
        target: from below, or from above if less of the metric is better.
        higher: whether more is better; None is what the metric's name says.
    """
    curve = ran.curve(metric)
    good = curve["value"] >= target if is_rising(metric, higher) else curve["value"] <= target
    if not good.any():
        return {}
    place = int(good.argmax())
    return {axis: float(curve[column][place]) / unit for axis, (column, unit, _) in COSTS.items()}
