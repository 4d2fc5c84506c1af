"""Single numbers of runs: means over evaluations, and what it took to a target."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from fedsim.study.asked import Measure
from fedsim.study.ran import COSTS, Ran

RISING = ("accuracy", "f1", "auc", "top5", "test_accuracy")
"""Metrics of which more is better, as their names begin; of all others less is."""

OWN = re.compile("^(client|personal|tuned)_")
"""How the names of scores on what clients have held out begin."""

UNEVEN = "_gini"

QUALITY = ("accuracy", "distance", "loss")
"""What is compared where nobody says it: the first of these that all runs have."""

Budget = tuple[str, float]
"""A cost, and how much of it may have been spent."""


def rising(metric: str) -> bool:
    """Tell whether more of a metric is better.

    >>> rising("accuracy_worst_decile"), rising("distance")
    (True, False)
    """
    return OWN.sub("", metric).startswith(RISING) and not metric.endswith(UNEVEN)


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


def taken(ran: Ran, metric: str, target: float) -> dict[str, float]:
    """Return what a run took to a target, by cost; nothing if it has not come there.

    Args:
        ran: the run.
        metric: what is to reach the target.
        target: from below, or from above if less of the metric is better.
    """
    curve = ran.curve(metric)
    good = curve["value"] >= target if rising(metric) else curve["value"] <= target
    if not good.any():
        return {}
    place = int(good.argmax())
    costs = {
        axis: float(curve[column][place]) / unit
        for axis, (column, unit, _) in COSTS.items()
        if column in curve
    }
    # Energy is counted in all, and not by round: its share goes with the simulated time.
    all_s = max(ran.total("sim_time"), 1e-6)
    return {**costs, "energy": ran.total("energy") * min(1.0, costs["sim_time"] / all_s)}
