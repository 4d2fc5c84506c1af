"""Figure of several servers: how good each one's model is, and what each has sent and received."""

from __future__ import annotations

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsim.errors import MISSING, BadValue
from fedsim.record.curves import quality
from fedsim.record.store import Table, wide
from fedsim.record.style import BYTES, HUES, STYLE, scale

PANELS = {"bytes_with_clients": "with clients", "bytes_among_servers": "with other servers"}
NAMED = 10
"""So many servers are told apart by name."""


@rc_context(STYLE)
def servers(metrics: Table, rounds: Table, on: str = "test") -> Figure:
    """Draw each server's score and its bytes with clients and with other servers, sent and received, against rounds.

    Args:
        metrics: the table ``metrics`` with ``bytes_with_clients`` of servers.
        rounds: the table ``rounds``.
        on: what models were evaluated on.

    Raises:
        BadValue: if no server's bytes were recorded.
    """
    known = np.unique(metrics["node"][(metrics["node"] >= 0) & (metrics["name"] == "bytes_with_clients")])
    if not known.size:
        raise BadValue("metrics", MISSING, "there are no servers to draw")
    score = quality(wide(metrics, rounds))
    names = [*([score] if score else []), *(name for name in PANELS if name in set(metrics["name"].tolist()))]
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False).flatten().tolist()
    for ax, name in zip(panels, names):
        _draw(ax, name, f"{on} {name}".lstrip(), metrics, known.tolist())
    if len(known) <= NAMED:
        panels[0].legend(fontsize=8)
    return figure


def _draw(ax: Axes, name: str, label: str, metrics: Table, servers: list[int]) -> None:
    """Draw one number of each server."""
    mine = metrics["name"] == name
    unit = 1.0
    if name in PANELS:
        most = float(metrics["value"][mine & (metrics["node"] >= 0)].max(initial=0))
        by, unit = scale(most, BYTES)
        label = f"{by} {PANELS[name]}"
    for server, hue in zip(servers, (HUES[i % len(HUES)] for i in range(len(servers)))):
        own = mine & (metrics["node"] == server)
        x, y = metrics["round"][own], metrics["value"][own] / unit
        ax.plot(x, y, color=hue, label=f"server {server}", marker="o" if len(x) <= 30 else "", markersize=3)
    ax.set(xlabel="round", ylabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
