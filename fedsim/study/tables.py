"""A comparison as a table: for people, for papers, for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from fedsim.study.claims import NONE, Finding, shown
from fedsim.study.compare import Comparison, Row
from fedsim.study.interval import Interval
from fedsim.study.ran import COSTS, TOTALS

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)

PLAIN = {
    "rounds": ("rounds", 1.0),
    "sim_time": ("sim_time_s", 1.0),
    "bytes": ("bytes", 1e6),
    "gradients": ("gradients", 1e3),
    "updates": ("updates", 1.0),
    "energy": ("joules", 1.0),
    "wasted": ("wasted_gradients", 1e3),
}
"""What costs are called in a table for programs, and how many of that are in what people read."""

Grid = tuple[list[str], list[list[str]]]
"""Titles, and the cells of each row."""


def grid(comparison: Comparison) -> Grid:
    """Return a comparison as titles and cells, the mean and its interval in each."""
    rows, axes = comparison.rows(), comparison.axes if comparison.target is not None else ()
    has_worst = any(math.isfinite(row.worst[0]) for row in rows)
    titles = [comparison.by, *(key.rpartition(".")[2] for key in comparison.tuned)]
    if comparison.target is not None:
        titles.append(f"{comparison.metric} {comparison.target:g} reached")
    titles += [f"{COSTS[axis][2]} to it" for axis in axes]
    if comparison.baseline is not None:
        titles += [f"{COSTS[axis][2]} relative to {comparison.baseline}" for axis in axes]
    titles += [f"{comparison.metric} at the end", "best", "last ten"]
    titles += ["worst tenth of clients"] if has_worst else []
    titles += [f"{TOTALS[cost]} in all" for cost in comparison.totals]
    titles.append("MB of a client, least to most")
    return titles, [_cells(row, comparison, axes, has_worst) for row in rows]


def _cells(row: Row, comparison: Comparison, axes: Sequence[str], has_worst: bool) -> list[str]:
    cells = [row.name, *(row.tuned[key] for key in comparison.tuned)]
    if comparison.target is not None:
        cells.append(f"{row.reached} of {row.runs}")
    cells += [interval(row.costs.get(axis)) for axis in axes]
    if comparison.baseline is not None:
        same = "1" if row.reached else NONE
        cells += [
            same if row.name == comparison.baseline else interval(row.ratios.get(axis)) for axis in axes
        ]
    cells += [interval(value) for value in (row.final, row.best, row.late)]
    cells += [interval(row.worst)] if has_worst else []
    cells += [interval(row.totals[cost]) for cost in comparison.totals]
    return [*cells, f"{row.node_mb[0]:.3g} to {row.node_mb[1]:.3g}"]


def interval(value: Interval | None) -> str:
    """Return a mean with its interval as text.

    >>> interval((0.51234, 0.4, 0.6)), interval((3.0, float("nan"), float("nan"))), interval(None)
    ('0.512 [0.4, 0.6]', '3', '–')
    """
    if value is None or not math.isfinite(value[0]):
        return NONE
    middle, low, high = (f"{number:.3g}" for number in value)
    return f"{middle} [{low}, {high}]" if math.isfinite(value[1]) else middle


def markdown(comparison: Comparison) -> str:
    """Return the table as Markdown."""
    return lines(*grid(comparison))


def verdicts(found: Sequence[Finding]) -> Grid:
    """Return what the runs say of each claim as titles and cells; the paper's own numbers only if there are any."""
    told = any(one.claim.paper for one in found)
    titles = ["claim", *(["paper"] if told else []), "here", "seeds", "verdict"]
    cells = [
        [one.claim.text, *([one.claim.paper or NONE] if told else []), shown(one), one.seeds, one.verdict]
        for one in found
    ]
    return titles, cells


def lines(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return titles and cells as a table in Markdown."""
    written = [titles, ["---"] * len(titles), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in written
    )


def latex(comparison: Comparison) -> str:
    """Return the table as LaTeX, for the package ``booktabs``."""
    titles, rows = grid(comparison)
    lines = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (titles, *rows)]
    inner = [lines[0], r"\midrule", *lines[1:]]
    body = "\n".join([r"\toprule", *inner, r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}\n{body}\n\\end{{tabular}}\n"


def _latex(text: str) -> str:
    # Before the braces of what stands for a backslash are written, which must stay as they are.
    parts = (part.translate(LATEX) for part in text.split("\\"))
    return r"\textbackslash{}".join(parts).replace(NONE, "--")


def as_csv(comparison: Comparison) -> str:
    """Return the numbers as CSV: mean, low and high of everything in columns of their own.

    Costs are in seconds, bytes, gradients and joules, whatever people read; a client's traffic is in MB.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    axes = comparison.axes if comparison.target is not None else ()
    names = [*(PLAIN[axis][0] for axis in axes), *(f"{axis}_ratio" for axis in axes)]
    names += ["final", "best", "last_ten", "worst_decile"]
    names += [f"{PLAIN[cost][0]}_in_all" for cost in comparison.totals]
    ends = [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    writer.writerow(
        [comparison.by, *comparison.tuned, "runs", "reached", *ends, "node_mb_least", "node_mb_most"]
    )
    for row in comparison.rows():
        nothing = (math.nan,) * 3
        values = [_plain(axis, row.costs.get(axis, nothing)) for axis in axes]
        values += [row.ratios.get(axis, nothing) for axis in axes]
        values += [row.final, row.best, row.late, row.worst]
        values += [_plain(cost, total) for cost, total in row.totals.items()]
        numbers = [number for value in values for number in value] + [*row.node_mb]
        shown = ["" if math.isnan(number) else repr(number) for number in numbers]
        writer.writerow([row.name, *row.tuned.values(), row.runs, row.reached, *shown])
    return written.getvalue()


def _plain(cost: str, value: Interval) -> Interval:
    unit = PLAIN[cost][1]
    middle, low, high = value
    return middle * unit, low * unit, high * unit
