"""What methods took to a target, and how far they came, over seeds: means with intervals, and ratios to a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.study.asked import METHOD, text
from fedsim.study.claims import Finding
from fedsim.study.heat import Heat
from fedsim.study.interval import Interval, mean
from fedsim.study.measure import QUALITY, is_rising, quality, taken
from fedsim.study.ran import COSTS, Ran, rest, setting

STRATEGY = ("strategy", "strategy.name")
"""What says the same as the method, and is no difference between a pair either."""


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
        totals: what whole runs cost, for those costs that were asked for.
        tuned: the values that were chosen for it, by dotted key.
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
    totals: Mapping[str, Interval] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)


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
        totals: the costs whose amount in the whole run is shown.
        tuned: the settings that were tuned, which are no difference between a pair.
        findings: what the runs say of the study's claims.
        map: the heat map that the study asks for, or None.
        higher: whether more of the metric is better; None is what its name says.
    """

    by: str
    metric: str
    target: float | None
    axes: Sequence[str]
    baseline: str | None
    groups: Mapping[str, Sequence[Ran]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    totals: Sequence[str] = ()
    tuned: Sequence[str] = ()
    findings: Sequence[Finding] = ()
    map: Heat | None = None
    higher: bool | None = None

    @property
    def rising(self) -> bool:
        """Whether more of the metric is better."""
        return is_rising(self.metric, self.higher)

    def rows(self) -> list[Row]:
        """Return one row for each value."""
        came = {
            name: [
                {} if self.target is None else taken(ran, self.metric, self.target, self.higher)
                for ran in group
            ]
            for name, group in self.groups.items()
        }
        return [self._row(name, came) for name in self.groups]

    def _row(self, name: str, came: Mapping[str, list[dict[str, float]]]) -> Row:
        group = self.groups[name]
        mine, ends = came[name], [ran.curve(self.metric)["value"] for ran in group]
        best: Callable[[np.ndarray], float] = np.max if self.rising else np.min
        totals = [_node_mb(ran) for ran in group]
        return Row(
            name,
            len(group),
            sum(bool(one) for one in mine),
            {axis: mean([one[axis] for one in mine if one]) for axis in self.axes}
            if self.target is not None
            else {},
            self._ratios(name, came),
            mean([float(values[-1]) for values in ends]),
            mean([float(best(values)) for values in ends]),
            mean([float(values[-10:].mean()) for values in ends]),
            mean([_worst(ran) for ran in group]),
            (float(np.mean([low for low, _ in totals])), float(np.mean([high for _, high in totals]))),
            {cost: mean([ran.total(cost) for ran in group]) for cost in self.totals},
            {
                key: ", ".join(dict.fromkeys(text(ran.settings[key]) for ran in group if key in ran.settings))
                for key in self.tuned
            },
        )

    def _ratios(self, name: str, came: Mapping[str, list[dict[str, float]]]) -> dict[str, Interval]:
        """Return the geometric mean of the ratios to the baseline's runs that are alike in all else."""
        if self.baseline is None or name == self.baseline or self.target is None:
            return {}
        but = [self.by, "name", *self.tuned, *([METHOD] if self.by in STRATEGY else [])]
        theirs = {
            rest(ran, but): one
            for ran, one in zip(self.groups[self.baseline], came[self.baseline], strict=True)
        }
        pairs = [
            (one, theirs.get(rest(ran, but))) for ran, one in zip(self.groups[name], came[name], strict=True)
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
    totals: Sequence[str] = (),
    tuned: Sequence[str] = (),
    findings: Sequence[Finding] = (),
    map: Heat | None = None,
    higher: bool | None = None,
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
        totals: the costs whose amount in the whole run is shown.
        tuned: the settings that were tuned; their values are shown, and a pair may differ in them.
        findings: what the runs say of the study's claims.
        map: the study's heat map, if it asks for one.
        higher: whether more of the metric is better; None is what its name says.

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
    return Comparison(
        by, metric, target, tuple(axes), baseline, groups, notes, totals, tuned, findings, map, higher
    )


def _measured(runs: Sequence[Ran], metric: str | None) -> tuple[str, list[Ran]]:
    """Return the metric to compare, and the runs that have it; timing-only runs have none."""
    if metric is None:
        some = [ran for ran in runs if set(QUALITY) & set(ran.names())]
        metric = quality(some) if some else None
        if metric is None:
            where, hint = runs[0].path.name, "were all evaluated? a timing-only run measures nothing"
            raise ConfigError([Problem("runs", where, "these runs have no metric in common", hint)])
    kept = [ran for ran in runs if metric in ran.names()]
    if not kept:
        hint = did_you_mean(metric, runs[0].names()) or "a timing-only run measures nothing"
        raise ConfigError([Problem("metric", metric, f"was not measured by {runs[0].path.name}", hint)])
    return metric, kept


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
