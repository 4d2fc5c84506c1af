"""Figures of ordered learning: how many samples and clients take part, how hard they are, and who took part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.store import Table
from fedsim.record.style import BLUE, ORANGE, STYLE, Array, some

BINS = 20


@rc_context(STYLE)
def pace(fact: Mapping[str, Any]) -> Figure:
    """Draw how many samples take part against the steps of a visit, or against rounds.

    Args:
        fact: the fact ``pace``: ``clock``, ``"step"`` or ``"round"``, ``sizes``, pairs of clock and samples, and
            ``end``, when the last of them is over; without it, that is taken to be one later.
    """
    clock, sizes = np.array(fact["sizes"]).T
    end = clock[-1] + 1 if fact.get("end") is None else fact["end"]
    clock, sizes = np.append(clock, end), np.append(sizes, sizes[-1])
    figure = Figure(figsize=(6, 3.3), layout="constrained")
    ax = figure.subplots()
    ax.step(clock, sizes, where="post", color=BLUE)
    label = "local step of a visit" if fact["clock"] == "step" else "round"
    ax.set(xlabel=label, ylabel="samples in a pass", ylim=(0, None))
    return figure


@rc_context(STYLE)
def curriculum(metrics: Table, difficulty: Sequence[float | None] | None = None) -> Figure:
    """Draw the pool over rounds, the histogram of the clients' scores over rounds, and participation by difficulty.

    Args:
        metrics: the table ``metrics`` with ``pool`` of the whole system, and ``score`` and ``visits`` of clients.
        difficulty: how hard each client's samples are, where that is known; otherwise its first score tells.

    Raises:
        BadValue: if no pool was recorded.
    """
    pool, scores, visits = (_named(metrics, name) for name in ("pool", "score", "visits"))
    if not len(pool["round"]):
        raise BadValue("metrics", MISSING, "there is no pool to draw")
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    later = pool["round"] > 0
    left.step(pool["round"][later], pool["value"][later], where="post", color=BLUE)
    left.set(xlabel="round", ylabel="clients in the pool", ylim=(0, None))
    if len(scores["round"]):
        rounds, counts, edges = histogram(scores)
        sides = np.append(rounds, rounds[-1] + 1) - 0.5
        image = middle.pcolormesh(sides, edges, counts.T, cmap="Blues", vmin=0, rasterized=True)
        whole = MaxNLocator(nbins="auto", integer=True)
        figure.colorbar(image, ax=middle, label="clients", ticks=whole).outline.set_visible(False)
    middle.set(xlabel="round", ylabel="mean score of a client")
    order, taken = participation(scores, visits, difficulty)
    right.bar(np.arange(len(order)), taken, color=ORANGE, width=0.8)
    by = "known difficulty" if difficulty else "first score" if len(scores["round"]) else "id"
    right.set(xlabel=f"client (id), sorted by its {by}", ylabel="times it took part")
    right.set_xticks(*some(order), fontsize=8 if len(order) <= 12 else 6)
    for axis in (left.xaxis, middle.xaxis, left.yaxis, right.yaxis):
        axis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    return figure


def histogram(scores: Table) -> tuple[Array, Array, Array]:
    """Return the rounds [R], how many clients had a score in each bin [R, bins], and the bins' edges [bins + 1]."""
    edges = np.histogram_bin_edges(scores["value"], bins=BINS)
    rounds = np.unique(scores["round"])
    counts = [np.histogram(scores["value"][scores["round"] == round], edges)[0] for round in rounds]
    return rounds, np.array(counts), edges


def participation(
    scores: Table, visits: Table, difficulty: Sequence[float | None] | None = None
) -> tuple[Array, Array]:
    """Return the clients from the easiest to the hardest, and how often each took part.

    What is known of their difficulty counts, or else their first scores: the last ones are lowest where training was.
    A client without either comes last; those that never took part and never had a score are not known.
    """
    visited = _each(visits)
    known = {node: hard for node, hard in enumerate(difficulty or ()) if hard is not None}
    hard = known if difficulty else _each(scores, first=True)
    nodes = sorted(set(hard) | set(visited), key=lambda node: (hard.get(node, np.inf), node))
    return np.array(nodes, dtype=np.int64), np.array([visited.get(node, 0) for node in nodes])


def _each(table: Table, first: bool = False) -> dict[int, float]:
    """Return each node's last value, or its first one."""
    order = np.argsort(-table["round"] if first else table["round"], kind="stable")
    return dict(zip(table["node"][order].tolist(), table["value"][order].tolist(), strict=True))


def _named(metrics: Table, name: str) -> Table:
    chosen = metrics["name"] == name
    return {key: column[chosen] for key, column in metrics.items()}
