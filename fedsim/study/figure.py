"""Curves of what is compared: the mean over seeds, and its interval, against what it costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedsim.record.style import FAULT, GREY, HUES, STYLE, Array
from fedsim.rng import stream
from fedsim.study.compare import Comparison
from fedsim.study.interval import LEVEL, RESAMPLES
from fedsim.study.ran import COSTS, Ran

POINTS = 200
"""So many places along an axis are drawn."""

LINES = ("-", "--", "-.", ":")
LETTERS = 14
"""So many letters of a legend go into an inch."""

WIDE = 20
"""Costs that differ so much get a logarithmic axis."""


@rc_context(STYLE)
def draw(comparison: Comparison) -> Figure:
    """Draw a panel for each cost that grows with time: mean and 95 % interval of every method.

    Args:
        comparison: at least one run of each.

    Returns:
        A figure; lines differ in colour and in dashes. Runs that share no part of a panel are dots, each at its end.
    """
    axes = [axis for axis in comparison.axes if axis != "energy"] or ["rounds"]
    across = 2 if len(axes) == 4 else len(axes)
    down = -(-len(axes) // across)
    figure = Figure(figsize=(3.6 * across + 0.6, 3.1 * down + 0.7), layout="constrained")
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for panel, axis in zip(panels.flat, axes, strict=True):
        _panel(panel, comparison, axis)
    for first in panels[:, 0]:
        first.set_ylabel(comparison.metric.replace("_", " "))
    if not comparison.rising and _is_wide(comparison):
        panels[0, 0].set_yscale("log")
    handles, names = panels[0, 0].get_legend_handles_labels()
    longest = max(map(len, names)) + 6  # with the line before it
    ncols = max(1, min(4, len(names), int(LETTERS * figure.get_figwidth()) // longest))
    figure.legend(handles, names, loc="outside lower center", ncols=ncols, fontsize=8)
    return figure


def _panel(panel: Axes, comparison: Comparison, axis: str) -> None:
    column, unit, title = COSTS[axis]
    longest = []
    for place, (name, group) in enumerate(comparison.groups.items()):
        curves = [ran.curve(comparison.metric) for ran in group]
        begin, end = _shared([curve[column] for curve in curves])
        longest.append(end)
        colour, dashes = HUES[place % len(HUES)], LINES[place // len(HUES) % len(LINES)]
        label = f"{name} ({len(group)})"
        if begin >= end:  # such as one evaluation each: no line would show
            ends = [(curve[column][-1] / unit, curve["value"][-1]) for curve in curves]
            panel.plot(*zip(*ends, strict=True), "o", color=colour, markersize=4, label=label)
            continue
        x = np.linspace(begin, end, POINTS)
        values = np.array([held(x, curve[column], curve["value"]) for curve in curves])
        panel.plot(x / unit, values.mean(0), dashes, color=colour, label=label)
        if len(group) > 1:
            low, high = band(values)
            panel.fill_between(x / unit, low, high, color=colour, alpha=0.18, linewidth=0)
    if comparison.target is not None:
        panel.axhline(comparison.target, color=FAULT, linewidth=0.8, linestyle=":")
    if min(longest) > 0 and max(longest) > WIDE * min(longest):
        panel.set_xscale("log")
    panel.axvline(0, color=GREY, linewidth=0)
    panel.set_xlabel(title)


def _shared(costs: Sequence[Array]) -> tuple[float, float]:
    """Return from where to where all of some runs were going on, having been evaluated."""
    return max(float(one[0]) for one in costs), min(float(one[-1]) for one in costs)


def held(x: Array, at: Array, values: Array) -> Array:
    """Return what had been measured last at each place: a value holds until the next one.

    >>> held(np.array([0.0, 1.5, 2.0]), np.array([0, 1, 2]), np.array([0.1, 0.2, 0.3])).tolist()
    [0.1, 0.2, 0.3]
    """
    return values[np.clip(np.searchsorted(at, x, side="right") - 1, 0, len(values) - 1)]


def band(values: Array) -> tuple[Array, Array]:
    """Return the ends of the percentile bootstrap's interval of the mean, at each place [seeds, places]."""
    rng = stream(0, "bootstrap")
    picked = rng.integers(0, len(values), (RESAMPLES // 4, len(values)))
    means = values[picked].mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _is_wide(comparison: Comparison) -> bool:
    values = np.concatenate([_values(group, comparison.metric) for group in comparison.groups.values()])
    return bool(values.min() > 0 and values.max() > WIDE * values.min())


def _values(group: Sequence[Ran], metric: str) -> Array:
    return np.concatenate([ran.curve(metric)["value"] for ran in group])
