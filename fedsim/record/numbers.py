"""The figure of all that a method, its selector or an app has measured besides how good the model is."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.curves import is_loss
from fedsim.record.store import Table, wide
from fedsim.record.style import BLUE, STYLE, Array

ELSEWHERE = ("round", "time_s", "bytes_up", "bytes_down", "accuracy", "distance", "nodes_evaluated", "pool")
"""What is no measurement, or is drawn in a figure of its own; so is whatever begins as :data:`VIEW` says."""
VIEW = ("view", "personal_", "tuned_")
EXTREMES = ("_min", "_max")
COLUMNS, MOST = 3, 12
"""So many panels stand side by side, and so many are there at most."""


def changing(table: Table) -> list[str]:
    """Return the names of the numbers that the figure shows: those that have not been the same in all rounds.

    Args:
        table: as from :func:`fedsim.record.store.wide`.

    >>> rounds = np.arange(3)
    >>> changing({"round": rounds, "accuracy": rounds / 3, "replies": np.full(3, 9.0), "cached": 2.0 * rounds})
    ['cached']
    """
    return [name for name in table if _is_shown(name, table) and len(np.unique(_known(table[name]))) > 1]


@rc_context(STYLE)
def numbers(metrics: Table, rounds: Table) -> Figure:
    """Draw each number that has changed against rounds, in a panel of its own, with its extremes if there are any.

    Args:
        metrics: the table ``metrics``; what is measured of single nodes is left out.
        rounds: the table ``rounds``.

    Raises:
        BadValue: if there is none.
    """
    table = wide(metrics, rounds)
    names = changing(table)[:MOST]
    if not names:
        raise BadValue("metrics", MISSING, "no number has changed")
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(10 if columns > 1 else 6, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for ax, name in zip(panels, names):
        _draw(ax, name, table)
    for ax in panels[len(names) :]:
        ax.remove()
    return figure


def _draw(ax: Axes, name: str, table: Table) -> None:
    rounds = table["round"]
    for kind in EXTREMES:
        if name + kind in table:
            measured = np.isfinite(table[name + kind])
            ax.plot(rounds[measured], table[name + kind][measured], color=BLUE, linestyle=":", linewidth=1)
    measured = np.isfinite(table[name])
    ax.plot(rounds[measured], table[name][measured], color=BLUE, marker="." if measured.sum() <= 30 else "")
    ax.set(xlabel="round", title=name.replace("_", " "))
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    if not np.mod(table[name][measured], 1).any():
        ax.yaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def _known(values: Array) -> Array:
    known: Array = values[np.isfinite(values)]
    return known


def _is_shown(name: str, table: Table) -> bool:
    whole = name[:-4] if name.endswith(EXTREMES) else name.removesuffix("_of_average")
    if name in ELSEWHERE or name.startswith(VIEW) or is_loss(whole):
        return False
    return whole == name or whole not in table
