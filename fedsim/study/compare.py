"""What methods took to a target, and how far they came, over seeds: means with intervals, and ratios to a baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import bootstrap

from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.rng import stream
from fedsim.study.results import COSTS, Ran, setting

LEVEL, RESAMPLES = 0.95, 2000
RISING = ("accuracy", "f1", "auc", "top5")
"""Metrics of which more is better, as their names begin; of all others less is."""
OWN = re.compile("^(client|personal|tuned)_")
"""How the names of scores on what clients have held out begin."""
UNEVEN = "_gini"

QUALITY = ("accuracy", "distance", "loss")
"""What is compared where nobody says it: the first of these that all runs have."""

Interval = tuple[float, float, float]
"""A mean, and the ends of its interval; NaN where there is none."""


@dataclass(frozen=True)
class Row:
    """What became of one method.

    Args:
        name: the method, or another setting's value.
        runs: how many there are.
        reached: how many came to the target.
        costs: for each cost what it took to the target, among those that came there.
        ratios: the same relative to the baseline, pair by pair of equal other settings.
        final: the metric at the end.
        best: its best value.
        late: its mean over the last ten evaluations.
        worst: the worst tenth of the clients' accuracy at the end, where it was measured.
        node_mb: what the least and the most busy client sent and received, on average.
    """

    name: str
    runs: int
    reached: int
    costs: Mapping[str, Interval]
    ratios: Mapping[str, Interval]
    final: Interval
    best: Interval
    late: Interval
    worst: Interval
    node_mb: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Runs, sorted by what is compared.

    Args:
        by: the setting whose values are compared.
        metric: what is measured.
        target: the value to reach, or None.
        axes: the costs that count.
        baseline: whom the others are compared with, or None.
        groups: the runs of each value, in the order in which they were found.
        notes: what whoever reads it must know, one sentence each.
    """

    by: str
    metric: str
    target: float | None
    axes: Sequence[str]
    baseline: str | None
    groups: Mapping[str, Sequence[Ran]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def rising(self) -> bool:
        """Whether more of the metric is better."""
        return OWN.sub("", self.metric).startswith(RISING) and not self.metric.endswith(UNEVEN)

    def rows(self) -> list[Row]:
        """Return one row for each value."""
        taken = {name: [self._taken(ran) for ran in group] for name, group in self.groups.items()}
        return [self._row(name, taken) for name in self.groups]

    def _row(self, name: str, taken: Mapping[str, list[dict[str, float]]]) -> Row:
        group = self.groups[name]
        mine, ends = taken[name], [ran.curve(self.metric)["value"] for ran in group]
        best: Callable[[np.ndarray], float] = np.max if self.rising else np.min
        totals = [_node_mb(ran) for ran in group]
        return Row(
            name,
            len(group),
            sum(bool(one) for one in mine),
            {axis: mean([one[axis] for one in mine if one]) for axis in self.axes}
            if self.target is not None
            else {},
            self._ratios(name, taken),
            mean([float(values[-1]) for values in ends]),
            mean([float(best(values)) for values in ends]),
            mean([float(values[-10:].mean()) for values in ends]),
            mean([_worst(ran) for ran in group]),
            (float(np.mean([low for low, _ in totals])), float(np.mean([high for _, high in totals]))),
        )

    def _taken(self, ran: Ran) -> dict[str, float]:
        """Return what a run took to the target, nothing if it has not come there."""
        curve = ran.curve(self.metric)
        if self.target is None:
            return {}
        good = curve["value"] >= self.target if self.rising else curve["value"] <= self.target
        if not good.any():
            return {}
        place = int(good.argmax())
        costs = {
            axis: float(curve[column][place]) / unit
            for axis, (column, unit, _) in COSTS.items()
            if column in curve
        }
        # Energy is counted in all, and not by round: its share goes with the simulated time.
        joules, time_us = (
            float(ran.nodes["joules"].sum()),
            max(float(ran.rounds["time_us"].max(initial=0)), 1.0),
        )
        return {**costs, "energy": joules * min(1.0, float(curve["time_us"][place]) / time_us)}

    def _ratios(self, name: str, taken: Mapping[str, list[dict[str, float]]]) -> dict[str, Interval]:
        """Return the geometric mean of the ratios to the baseline's runs that are alike in all else."""
        if self.baseline is None or name == self.baseline or self.target is None:
            return {}
        theirs = {
            _rest(ran, self.by): one
            for ran, one in zip(self.groups[self.baseline], taken[self.baseline], strict=True)
        }
        pairs = [
            (one, theirs.get(_rest(ran, self.by)))
            for ran, one in zip(self.groups[name], taken[name], strict=True)
        ]
        found = {}
        for axis in self.axes:
            logs = [math.log(a[axis] / b[axis]) for a, b in pairs if a and b and a[axis] > 0 and b[axis] > 0]
            middle, low, high = mean(logs)
            found[axis] = (math.exp(middle), math.exp(low), math.exp(high))
        return found


def compare(
    runs: Sequence[Ran],
    by: str = "method",
    metric: str | None = None,
    target: float | None = None,
    axes: Sequence[str] = ("rounds", "sim_time", "bytes"),
    baseline: str | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Sort runs by what is compared.

    Args:
        runs: of :func:`fedsim.study.results.runs`.
        by: the setting whose values are compared.
        metric: what is measured; None takes accuracy, or else what all runs have.
        target: the value to reach.
        axes: the costs that count, of :data:`fedsim.study.results.COSTS`.
        baseline: whom the others are compared with.
        notes: what is known already of what whoever reads it must know; runs that were not evaluated are added.

    Raises:
        ConfigError: if the runs cannot be compared so.
    """
    for axis in axes:
        if axis not in COSTS:
            raise ConfigError(
                [Problem("x", axis, f"must be one of {', '.join(COSTS)}", did_you_mean(axis, list(COSTS)))]
            )
    metric, kept = _measured(runs, metric)
    left = [ran.path.name for ran in runs if ran not in kept]
    notes = [*notes, *([f"left out, as {metric} was not measured: {', '.join(left)}"] if left else [])]
    groups: dict[str, list[Ran]] = {}
    for ran in kept:
        groups.setdefault(setting(ran, by), []).append(ran)
    if baseline is not None and baseline not in groups:
        raise ConfigError(
            [Problem("baseline", baseline, f"is no {by}", did_you_mean(baseline, list(groups)))]
        )
    return Comparison(by, metric, target, tuple(axes), baseline, groups, notes)


def _measured(runs: Sequence[Ran], metric: str | None) -> tuple[str, list[Ran]]:
    """Return the metric to compare, and the runs that have it; timing-only runs have none."""
    if metric is None:
        some = [ran for ran in runs if set(QUALITY) & set(ran.names())]
        common = [name for name in QUALITY if some and all(name in ran.names() for ran in some)]
        if not common:
            where, hint = runs[0].path.name, "were all evaluated? a timing-only run measures nothing"
            raise ConfigError([Problem("runs", where, "these runs have no metric in common", hint)])
        metric = common[0]
    kept = [ran for ran in runs if metric in ran.names()]
    if not kept:
        hint = did_you_mean(metric, runs[0].names()) or "a timing-only run measures nothing"
        raise ConfigError([Problem("metric", metric, f"was not measured by {runs[0].path.name}", hint)])
    return metric, kept


def mean(values: Sequence[float]) -> Interval:
    """Return a mean and its 95 % interval by the percentile bootstrap; no interval of fewer than two.

    Args:
        values: one for each seed; NaN are left out.

    >>> mean([0.5, 0.5])
    (0.5, 0.5, 0.5)
    """
    given = np.array([value for value in values if math.isfinite(value)])
    if len(given) == 0:
        return (math.nan, math.nan, math.nan)
    middle = float(given.mean())
    if len(given) == 1:
        return (middle, math.nan, math.nan)
    if np.ptp(given) == 0:
        return (middle, middle, middle)
    rng = stream(0, "bootstrap")
    found = bootstrap(
        (given,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile", rng=rng
    )
    return (middle, float(found.confidence_interval.low), float(found.confidence_interval.high))


def _rest(ran: Ran, by: str) -> str:
    """Return all settings but one, as text: runs with the same are a pair."""
    return str(sorted((key, str(value)) for key, value in ran.settings.items() if key not in (by, "name")))


def _worst(ran: Ran) -> float:
    """Return the worst tenth of the clients' accuracy: on what they have held out, or else of peers on the test."""
    names = (f"{whose}accuracy_worst_decile" for whose in ("personal_", "client_", ""))
    found = (_last(ran, name) for name in names)
    return next((value for value in found if math.isfinite(value)), math.nan)


def _last(ran: Ran, name: str) -> float:
    values = ran.curve(name)["value"]
    return float(values[-1]) if len(values) else math.nan


def _node_mb(ran: Ran) -> tuple[float, float]:
    """Return what the least and the most busy client has sent and received."""
    traffic = (ran.nodes["bytes_up"] + ran.nodes["bytes_down"])[ran.nodes["role"] != "server"]
    return (float(traffic.min()) / 1e6, float(traffic.max()) / 1e6) if len(traffic) else (math.nan, math.nan)
