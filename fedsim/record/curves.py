"""Curves: how a run learned, how far it came, and how long its rounds took."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.spans import count_open, sessions
from fedsim.record.store import Table, wide
from fedsim.record.style import (
    BLUE,
    BYTES,
    GREEN,
    HUES,
    ORANGE,
    SECONDS,
    STYLE,
    WIDE_SPREAD,
    Array,
    costs,
    human_time,
    in_unit,
    mark_faults,
    percentiles,
    round_times_s,
    scale,
    spread,
)


@rc_context(STYLE)
def curves(
    metrics: Table,
    rounds: Table,
    target: float | None = None,
    faults: Table | None = None,
    nodes: Table | None = None,
    on: str = "test",
) -> Figure:
    """Draw accuracy against rounds, simulated time and bytes sent; the distance to the known best model, or
    else the loss, if there is no accuracy. Of peers it is the mean over their models, beside it the average model's.

    Args:
        metrics: the table ``metrics``; from its per-node rows (or the metrics ``accuracy_min`` and
            ``accuracy_max``) comes the band between the worst and the best node.
        rounds: the table ``rounds``.
        target: the value to reach, drawn as a line; where it is first reached is marked.
        faults: see :func:`fedsim.record.store.faults`; they are marked against simulated time.
        nodes: the table ``nodes``, which says of how many nodes some were evaluated; it may be empty.
        on: what models were evaluated on, or nothing if that is not known.

    Raises:
        BadValue: if there is neither an accuracy nor a loss of the whole system.
    """
    table = wide(metrics, rounds)
    name = quality(table)
    if name is None:
        raise BadValue("metrics", MISSING, "there is neither accuracy nor loss to draw")
    low, high = _band(metrics, table, name)
    measured = np.isfinite(table[name])
    y = table[name][measured]
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    rising = name == "accuracy"
    goal = math.nan if target is None else target
    reached = next((i for i, v in enumerate(table[name]) if (v >= goal if rising else v <= goal)), None)
    for ax, (x, label, cost, write) in zip(panels, costs(table)):
        ax.fill_between(x, low, high, color=BLUE, alpha=0.15, linewidth=0, label="worst to best node")
        marks = {"marker": "o" if len(y) <= 30 else "", "markersize": 3}
        ax.plot(x[measured], y, color=BLUE, label=_whose(table, nodes), **marks)
        if f"{name}_of_average" in table:
            average = table[f"{name}_of_average"][measured]
            ax.plot(x[measured], average, color=GREEN, linestyle="--", label="average of all models")
        ax.set_xlabel(label)
        if target is not None:
            ax.axhline(target, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
        if target is not None and reached is not None:
            note = f"{target:g} at {write(cost[reached])}"
            _draw_target(ax, target, x[reached], table[name][reached], note, rising)
    mark_faults(panels[1], faults, scale(table["time_s"].max(initial=0), SECONDS)[1])
    panels[0].set_ylabel("distance to the minimiser" if name == "distance" else f"{on} {name}".lstrip())
    if name == "distance" and spread(y) > WIDE_SPREAD:
        panels[0].set_yscale("log")
    panels[0].xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if np.isfinite(low).any() or "nodes_evaluated" in table:
        panels[0].legend(loc="best", fontsize=8)
    return figure


def _whose(table: Table, nodes: Table | None) -> str | None:
    """Say whose mean the line is; None where there is one model."""
    if "nodes_evaluated" not in table:
        return None
    counts = table["nodes_evaluated"][np.isfinite(table["nodes_evaluated"])]
    low, high = int(counts.min()), int(counts.max())
    total = 0 if nodes is None else len(nodes["node"])
    some = f"{low}" if low == high else f"{low} to {high}"
    return f"mean of {some}" + (f" of {total}" if total and low < total else "") + " nodes"


def quality(table: Table) -> str | None:
    """Return the name of the metric that tells how good the model is, if it was ever measured."""
    return next(
        (n for n in ("accuracy", "distance", "loss") if n in table and np.isfinite(table[n]).any()), None
    )


def _band(metrics: Table, table: Table, name: str) -> tuple[Array, Array]:
    nothing = np.full(len(table["round"]), np.nan)
    low, high = table.get(f"{name}_min", nothing).copy(), table.get(f"{name}_max", nothing).copy()
    single = (metrics["node"] >= 0) & (metrics["name"] == name) & np.isin(metrics["round"], table["round"])
    at = np.searchsorted(table["round"], metrics["round"][single])
    np.fmin.at(low, at, metrics["value"][single])
    np.fmax.at(high, at, metrics["value"][single])
    return low, high


def _draw_target(ax: Axes, target: float, x: float, y: float, note: str, rising: bool) -> None:
    ax.plot([x], [y], "o", color=ORANGE, markersize=5)
    at, side = ((4, -4), "top") if rising else ((4, 4), "bottom")
    ax.annotate(note, (x, target), at, textcoords="offset points", va=side, color=ORANGE, fontsize=8)


@rc_context(STYLE)
def loss(metrics: Table, rounds: Table) -> Figure:
    """Draw every loss of the whole system but its extremes, on a logarithmic scale if it spans decades.

    Raises:
        BadValue: if no metric has "loss" in its name.
    """
    table = wide(metrics, rounds)
    names = [name for name in table if is_loss(name) and np.isfinite(table[name]).any()]
    if not names:
        raise BadValue("metrics", MISSING, "there is no loss to draw")
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    ax = figure.subplots()
    for name, colour in zip(names, (BLUE, ORANGE, *HUES)):
        measured = np.isfinite(table[name])
        ax.plot(table["round"][measured], table[name][measured], color=colour, label=name.replace("_", " "))
    if spread(np.concatenate([table[name] for name in names])) > WIDE_SPREAD:
        ax.set_yscale("log")
    ax.set(xlabel="round", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if len(names) > 1:
        ax.legend()
    return figure


def is_loss(name: str) -> bool:
    """Tell whether a metric is a loss of the whole system, and not of what clients have for themselves."""
    return "loss" in name and not (
        name.endswith(("_min", "_max")) or name.startswith(("personal_", "tuned_"))
    )


@rc_context(STYLE)
def progress(rounds: Table, faults: Table | None = None) -> Figure:
    """Draw rounds and bytes sent against simulated time: what a run without training has to show.

    Args:
        rounds: the table ``rounds``.
        faults: see :func:`fedsim.record.store.faults`; they are marked.

    Raises:
        BadValue: if no round has ended.
    """
    if not len(rounds["round"]):
        raise BadValue("rounds", MISSING, "no round has ended")
    time, label = in_unit(rounds["time_us"] / 1e6, SECONDS, "simulated time")
    sent, sent_label = in_unit(rounds["bytes_up"], BYTES, "sent by all nodes")
    figure = Figure(figsize=(8, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax, y, name in ((left, rounds["round"], "round"), (right, sent, sent_label)):
        ax.plot(time, y, color=BLUE, marker="o" if len(y) <= 30 else "", markersize=3)
        ax.set(xlabel=label, ylabel=name, xlim=(0, None), ylim=(0, None))
        mark_faults(ax, faults, scale(rounds["time_us"].max() / 1e6, SECONDS)[1])
    return figure


@rc_context(STYLE)
def durations(rounds: Table, faults: Table | None = None) -> Figure:
    """Draw how long every round took, and the share of rounds that took at most so long with its percentiles.

    Args:
        rounds: the table ``rounds``.
        faults: see :func:`fedsim.record.store.faults`; they are marked against simulated time.

    Raises:
        BadValue: if no round has ended.
    """
    lasted = round_times_s(rounds)
    if not len(lasted):
        raise BadValue("rounds", MISSING, "no round has ended")
    unit, size = scale(float(lasted.max()), SECONDS)
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    over, ax = figure.subplots(1, 2)
    ended_s = rounds["time_us"][rounds["round"] > 0] / 1e6
    time_unit, time_size = scale(float(ended_s.max()), SECONDS)
    over.plot(ended_s / time_size, lasted / size, ".", color=BLUE, markersize=3)
    over.set(xlabel=f"simulated time ({time_unit})", ylabel=f"duration of a round ({unit})", ylim=(0, None))
    mark_faults(over, faults, time_size)
    right = 1.08 * lasted.max() / size or 1.0
    x = np.concatenate([[0.0], np.sort(lasted) / size, [right]])
    share = np.append(np.arange(len(lasted) + 1) / len(lasted), 1.0) * 100
    ax.step(x, share, where="post", color=BLUE)
    for rank, value in percentiles(lasted).items():
        ax.plot([0, value / size, value / size], [rank, rank, 0], color=ORANGE, linewidth=0.8, linestyle=":")
        ax.plot([value / size], [rank], "o", color=ORANGE, markersize=4)
        # The marks stand left of the curve, where it never is; those of 90 and 99 would touch each other.
        side, by = ("bottom", 1) if rank != 90 else ("top", -1)
        note = f"p{rank}: {human_time(value)}"
        ax.annotate(note, (0, rank), (4, by), textcoords="offset points", va=side, color=ORANGE, fontsize=8)
    ax.set(xlabel=f"duration of a round ({unit})", ylabel="rounds (%)", xlim=(0, right), ylim=(0, 109))
    ax.set_yticks([0, 25, 50, 75, 100])
    return figure


@rc_context(STYLE)
def views(metrics: Table, rounds: Table, presence: Table, end_us: int, faults: Table | None = None) -> Figure:
    """Draw how many nodes the views of nodes count as active, beside how many are online.

    Args:
        metrics: the table ``metrics`` with ``view_mean``, ``view_min`` and ``view_max`` of the whole system.
        rounds: the table ``rounds``.
        presence: the table ``presence``; it may be empty.
        end_us: the end of the run in microseconds of simulated time.
        faults: see :func:`fedsim.record.store.faults`; they are marked.

    Raises:
        BadValue: if no view was measured.
    """
    table = wide(metrics, rounds)
    if "view_mean" not in table:
        raise BadValue("metrics", MISSING, "there are no views to draw")
    unit, size = scale(end_us / 1e6, SECONDS)
    read = np.isfinite(table["view_mean"])
    time, mean, low, high = (table[name][read] for name in ("time_s", "view_mean", "view_min", "view_max"))
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    ax = figure.subplots()
    ax.fill_between(time / size, low, high, color=BLUE, alpha=0.2, linewidth=0, label="least to most")
    ax.plot(time / size, mean, color=BLUE, label="mean of the views")
    if len(presence["node"]):
        spans = [sessions(presence, node, end_us) for node in np.unique(presence["node"])]
        moments, online = count_open(np.concatenate(spans) / 1e6, end_us / 1e6)
        ax.step(moments / size, online, where="post", color=GREEN, linestyle="--", label="online")
    ax.set(xlabel=f"simulated time ({unit})", ylabel="nodes", xlim=(0, end_us / (1e6 * size)), ylim=(0, None))
    ax.legend()
    mark_faults(ax, faults, size)
    return figure
