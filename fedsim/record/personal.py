"""The figure of what clients get: their own scores, before and after they have trained for themselves."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.store import Table, wide
from fedsim.record.style import BLUE, ORANGE, STYLE, Array

MODELS = {"personal": ("the client's model", BLUE, "o"), "tuned": ("after training for itself", ORANGE, "s")}
TUNED = "tuned_loss_mean"
"""What is there wherever that is measured."""
FEW = 30


@rc_context(STYLE)
def personal(metrics: Table, rounds: Table) -> Figure:
    """Draw how the clients' own scores are spread at the last evaluation, and their mean and worst tenth over rounds.

    Args:
        metrics: the table ``metrics``, with ``personal_`` and ``tuned_`` scores of clients and of all of them.
        rounds: the table ``rounds``.

    Raises:
        BadValue: if they were not measured.
    """
    table = wide(metrics, rounds)
    if TUNED not in table:
        raise BadValue("metrics", MISSING, "what clients get was not measured", "set evaluate.personal")
    score = "accuracy" if "tuned_accuracy_mean" in table else "loss"
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    clients, over = figure.subplots(1, 2)
    for whose, (label, colour, mark) in MODELS.items():
        name = f"{whose}_{score}"
        _spread(clients, _last(metrics, name, rising=score == "accuracy"), label, colour, mark)
        for end, line in (("_mean", "-"), ("_worst_decile", ":")):
            values = table[name + end]
            known = np.isfinite(values)
            marked = mark if known.sum() <= FEW and end == "_mean" else ""
            over.plot(
                table["round"][known],
                values[known],
                color=colour,
                linestyle=line,
                marker=marked,
                markersize=3,
            )
        gini = table[f"{name}_gini"]
        clients.plot([], [], " ", label=f"Gini {gini[np.isfinite(gini)][-1]:.3f}")
    clients.set(xlabel="share of the clients (%)", ylabel=f"{score} of a client")
    over.set(xlabel="round", ylabel=f"mean {score}; dotted: worst tenth")
    over.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    clients.legend(loc="best", fontsize=8)
    return figure


def _last(metrics: Table, name: str, rising: bool) -> Array:
    """Return the clients' scores at the last evaluation, the worst first."""
    at = (metrics["name"] == name) & (metrics["node"] >= 0)
    at &= metrics["round"] == metrics["round"][at].max(initial=0)
    ranked: Array = np.sort(metrics["value"][at])
    return ranked if rising else ranked[::-1]


def _spread(ax: Axes, ranked: Array, label: str, colour: str, mark: str) -> None:
    share = 100 * np.arange(1, len(ranked) + 1) / len(ranked)
    few = len(ranked) <= FEW
    ax.plot(share, ranked, color=colour, label=label, marker=mark if few else "", markersize=3)
