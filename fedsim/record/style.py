"""How figures and reports look: colours, type, and the units in which numbers are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedsim.record.store import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]

# Okabe and Ito's blue, vermilion and green, and a dark red of Paul Tol's: all of a medium lightness, so that
# they can still be seen when a dark page inverts them.
BLUE, ORANGE, GREEN, FAULT, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#882255", "#9A9A9A", "#333333"
# Paul Tol's "muted" scheme, one colour for each of up to ten labels.
HUES = (
    "#332288 #88CCEE #44AA99 #117733 #999933 #DDCC77 #CC6677 #882255 #AA4499 #BBBBBB".split()  # noqa: SIM905
)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.hashsalt": "fedsim",
}

MOST_MARKS = 60
WIDE_SPREAD = 30
"""A value so many times the typical one calls for a logarithmic axis."""

BYTES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))
SECONDS = (("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0))


def scale(largest: float, units: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """Choose the unit in which the largest value is at least two, as a name and a size.

    >>> scale(150.0, SECONDS), scale(90.0, SECONDS), scale(4e7, BYTES)
    (('min', 60.0), ('s', 1.0), ('MB', 1000000.0))
    """
    fit = [unit for unit in units if largest >= 2 * unit[1]]
    return fit[-1] if fit else units[0]


def in_unit(values: Array, units: Sequence[tuple[str, float]], label: str) -> tuple[Array, str]:
    """Return the values in the unit that fits the largest, and the label of their axis.

    >>> in_unit(np.array([1500.0, 6000.0]), BYTES, "sent")
    (array([1.5, 6. ]), 'sent (kB)')
    """
    unit, size = scale(values.max(initial=0), units)
    return values / size, f"{label} ({unit})"


def human_bytes(size_bytes: float) -> str:
    """Write a number of bytes with three digits and its unit.

    >>> human_bytes(0), human_bytes(1234), human_bytes(56_700_000)
    ('0 B', '1.23 kB', '56.7 MB')
    """
    # A value that three digits round up to the next unit is written in that one.
    fit = [unit for unit in BYTES if size_bytes >= 0.9995 * unit[1]]
    unit, size = fit[-1] if fit else BYTES[0]
    return f"{size_bytes / size:.3g} {unit}"


def human_time(time_s: float) -> str:
    """Write a duration as people say it, in at most two units.

    >>> human_time(0.0125), human_time(42.3), human_time(95), human_time(7500), human_time(200_000)
    ('12.5 ms', '42.3 s', '1 min 35 s', '2 h 5 min', '2 d 8 h')
    """
    if time_s < 1:
        return f"{1000 * time_s:.3g} ms" if time_s else "0 s"
    if time_s < 59.95:
        return f"{time_s:.3g} s"
    larger = [unit for unit in zip(SECONDS[1:], SECONDS) if round(time_s) >= unit[0][1]]
    (unit, size), (small_unit, small) = larger[-1]
    whole, rest = divmod(round(time_s / small), round(size / small))
    return f"{whole} {unit}" + (f" {rest} {small_unit}" if rest else "")


def costs(table: Table) -> Iterator[tuple[Array, str, Array, Callable[[float], str]]]:
    """Yield what a run costs until each evaluation: rounds, simulated time and bytes.

    Args:
        table: one row for each evaluated round, see :func:`fedsim.record.store.wide`.

    Yields:
        The cost in the unit of an axis, its label, the cost itself, and how to write a single one.
    """
    yield table["round"], "round", table["round"], "round {:.0f}".format
    yield *in_unit(table["time_s"], SECONDS, "simulated time"), table["time_s"], human_time
    yield *in_unit(table["bytes_up"], BYTES, "sent by all nodes"), table["bytes_up"], human_bytes


def spread(values: Array) -> float:
    """Return how many times the typical (median) positive value the largest one is; 1 if any is negative.

    >>> spread(np.array([90.0, 1.0, 3.0, 2.0, 0.0]))
    36.0
    """
    values = values[np.isfinite(values) & (values != 0)]
    return float(values.max() / np.median(values)) if len(values) and values.min() > 0 else 1.0


def some(ids: Array) -> tuple[list[int], list[str]]:
    """Return the places and the names of all ids, or of so many that each can be read on an axis.

    >>> some(np.array([4, 5, 6]))
    ([0, 1, 2], ['4', '5', '6'])
    >>> some(np.arange(1, 201))[1][:3]
    ['1', '11', '21']
    """
    step = 1 if len(ids) <= 30 else math.ceil(len(ids) / 100) * 5
    places = list(range(0, len(ids), step))
    return places, [str(ids[place]) for place in places]


def round_times_s(rounds: Table) -> Array:
    """Return how long each round took in simulated seconds; the state before the first round is none.

    >>> rounds = {"round": np.array([0, 1, 2]), "time_us": np.array([0, 2_000_000, 5_000_000])}
    >>> round_times_s(rounds).tolist()
    [2.0, 3.0]
    """
    order = np.argsort(rounds["time_us"], kind="stable")
    ended = rounds["time_us"][order]
    lasted: Array = np.diff(ended, prepend=0)[rounds["round"][order] > 0] / 1e6
    return lasted


def percentiles(values: Array) -> dict[int, float]:
    """Return the percentiles 50, 90 and 99, each of them one of the values (the nearest rank).

    >>> percentiles(np.arange(1, 11))
    {50: 5.0, 90: 9.0, 99: 10.0}
    """
    ranks = (50, 90, 99)
    found = np.percentile(values, ranks, method="inverted_cdf").tolist()
    return {rank: float(value) for rank, value in zip(ranks, found)}


def colours(nodes: Table, ids: Array) -> list[str]:
    """Return a colour for each node: servers are orange, all others blue."""
    servers = set(nodes["node"][nodes["role"] == "server"].tolist())
    return [ORANGE if node in servers else BLUE for node in ids.tolist()]


def name_rows(ax: Axes, ids: Array, what: str) -> None:
    """Name the rows of a chart, or as many of them as can be read."""
    ax.set_yticks(*some(ids), fontsize=8)
    ax.set_ylabel(what)
    ax.tick_params(axis="y", length=0)


def mark_faults(ax: Axes, faults: Table | None, second: float, named: bool = True) -> None:
    """Mark on a time axis when faults happened; each kind is named once, where it first happened.

    A kind that happens all the time, such as a lossy network's, is left out: it would only hide the curve.

    Args:
        ax: its horizontal axis is simulated time.
        faults: see :func:`fedsim.record.store.faults`.
        second: the seconds in one unit of the axis.
        named: whether to write the names.
    """
    if faults is None:
        return
    across = ax.get_xaxis_transform()
    kinds = sorted(set(faults["kind"].tolist()))
    moments = {kind: np.unique(faults["time_us"][faults["kind"] == kind]) for kind in kinds}
    few = {kind: at / (1e6 * second) for kind, at in moments.items() if len(at) <= MOST_MARKS}
    for level, (kind, at) in enumerate(few.items()):
        faint = float(np.clip(10 / len(at), 0.15, 0.8))
        ax.vlines(at, 0, 1, transform=across, colors=FAULT, linewidths=0.8, alpha=faint, zorder=3, label=kind)
        if named:
            ax.annotate(
                kind.replace("_", " "), (at[0], 1), (2, 1 + 9 * level), xycoords=across, textcoords="offset points",
                color=FAULT, fontsize=8, va="bottom",
            )  # fmt: skip
