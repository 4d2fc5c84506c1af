"""Heat maps of studies: over two settings, a number in each cell, or by how much some are better than others."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, Problem
from fedsim.record.style import STYLE, WIDE_SPREAD
from fedsim.study.asked import Chosen, Claim, Map, text, wanted
from fedsim.study.claims import FEWEST, NONE, Finding, findings, shown
from fedsim.study.measure import quality
from fedsim.study.ran import Ran, setting

Where = tuple[str, str, str]
"""The values of a cell: of the panel (empty if there is one alone), the row and the column."""

NEVER = 1e9
"""Counts as the gain of a seed in which only one side came to a target."""

GAINS, VALUES = "RdBu", "viridis"

LETTERS = 12
"""So many letters of a title fit into an inch."""

NARROW = 14
"""So many letters of a column's name fit below it."""


@dataclass(frozen=True)
class Heat:
    """A map as it was found.

    Args:
        asked: what was asked.
        metric: what was measured, or what it cost.
        cells: what was found, by :data:`Where`; those without runs are not there.
        chosen: by the same, who was the best of each side there, as text.
    """

    asked: Map
    metric: str
    cells: Mapping[Where, Finding]
    chosen: Mapping[Where, tuple[str, str]]

    def values(self, place: int) -> list[str]:
        """Return the values of the panels (0), the rows (1) or the columns (2), in the order of the study."""
        return list(dict.fromkeys(where[place] for where in self.cells))

    @property
    def is_ratio(self) -> bool:
        """Whether cells are ratios, of which 1 is neither better nor worse."""
        return bool(self.asked.worse) and (self.asked.ratio or self.asked.is_cost)


def heat(asked: Map, runs: Sequence[Ran], by: str = "method", tuned: Collection[str] = ()) -> Heat:
    """Return what runs have found in each cell of a map.

    Where several are compared, the best of either side, by its mean over seeds, stands for it in each cell.

    Args:
        asked: which map.
        runs: of one study.
        by: the setting that bare names are values of.
        tuned: the settings that were tuned, in which a pair may differ.

    Raises:
        ConfigError: if a setting or a metric is unknown.
    """
    cells: dict[Where, Finding] = {}
    chosen: dict[Where, tuple[str, str]] = {}
    for where in dict.fromkeys(_where(asked, ran) for ran in runs):
        settings = dict(zip((asked.panels, asked.rows, asked.columns), where, strict=True))
        here = {key: value for key, value in settings.items() if key is not None}
        others: list[Chosen | None] = [*asked.worse] or [None]
        mine: list[Chosen] = [*asked.better] or [{}]
        claims = [[_claim(asked, here, one, other, by) for other in others] for one in mine]
        # Whoever is the hardest to beat stands for the worse side, whoever does that best for the better one.
        found = [min(_known(findings(some, runs, by, tuned)), key=_gain, default=None) for some in claims]
        best = max((one for one in found if one is not None), key=_gain, default=None)
        if best is not None:
            cells[where] = best
            chosen[where] = _names(best.claim.better, here, by), _names(best.claim.worse, here, by)
    if not cells:
        raise ConfigError([Problem("map", asked.rows, "no cell has a run of what is compared")])
    metric = asked.metric or ("rounds" if asked.target else quality(runs) or "value")
    return Heat(asked, metric, cells, chosen)


def _where(asked: Map, ran: Ran) -> Where:
    panel = "" if asked.panels is None else setting(ran, asked.panels)
    return panel, setting(ran, asked.rows), setting(ran, asked.columns)


def _claim(asked: Map, here: Mapping[str, str], one: Chosen, other: Chosen | None, by: str) -> Claim:
    """Return the claim that one is better than another in a cell; alone, it has a value and nothing to reach."""
    same = asked.model_dump(include=set(Map.model_fields) & set(Claim.model_fields) - {"better", "worse"})
    sides = {"better": [{**here, **wanted(one, by)}]}
    if other is None:
        return Claim.model_validate({**same, **sides, "text": "a value", "by": 1.0})
    return Claim.model_validate({**same, **sides, "text": "a gain", "worse": [{**here, **wanted(other, by)}]})


def _known(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.gains]


def _gain(finding: Finding) -> float:
    return float(np.clip(list(finding.gains.values()), -NEVER, NEVER).mean())


def _names(side: Sequence[Any], here: Mapping[str, str], by: str) -> str:
    """Return what sets a side apart, beyond the cell: a method's bare name."""
    own = [{key: text(value) for key, value in one.items() if here.get(key) != text(value)} for one in side]
    return ", ".join(one[by] if set(one) == {by} else str(one) for one in own if one)


def table(found: Heat) -> tuple[list[str], list[list[str]]]:
    """Return a map as titles and cells: each number with its interval, and who stood for a side of several."""
    asked, panels = found.asked, found.values(0)
    first = [] if asked.panels is None else [asked.panels]
    titles = [*first, f"{asked.rows} \\ {asked.columns}", *found.values(2)]
    rows = [
        [
            *([panel] if first else []),
            row,
            *(_told(found, (panel, row, column)) for column in found.values(2)),
        ]
        for panel in panels
        for row in found.values(1)
    ]
    return titles, rows


def _told(found: Heat, where: Where) -> str:
    if where not in found.cells:
        return NONE
    mine, theirs = found.chosen[where]
    names = [mine] if len(found.asked.better) > 1 else []
    names += [f"against {theirs}"] if theirs and len(found.asked.worse) > 1 else []
    return f"{_text(found.cells[where])} {' '.join(names)}".rstrip()


def _text(cell: Finding) -> str:
    """Return a cell's number with its interval; ∞ where in most seeds only one side came to a target."""
    side = _without_other(cell)
    if side:
        count = sum(gain == side * math.inf for gain in cell.gains.values())
        told = "" if count == len(cell.gains) else f" in {count} of {len(cell.gains)}"
        return f"{'∞' if side > 0 else '−∞'}{told}"
    return shown(cell) if math.isfinite(cell.here[0]) else NONE


def _without_other(cell: Finding) -> int:
    """Return 1 where the better side alone came to a target in most seeds, -1 where the worse one did, or else 0."""
    sides = [int(np.sign(gain)) for gain in cell.gains.values() if math.isinf(gain)]
    if not cell.claim.worse or 2 * len(sides) <= len(cell.gains):
        return 0
    return int(np.sign(sum(sides)))


@rc_context(STYLE)
def draw(found: Heat) -> Figure:
    """Draw a panel for each value of the third setting, or one: colours are numbers, bold ones are not zero by chance.

    Blue is where the better side is better, red where it is worse; a number is bold where its interval, of three seeds
    or more, is on one side.
    """
    panels, rows, columns = (found.values(place) for place in range(3))
    wide, high = 1.1 * len(columns) + 1.4, 0.5 * len(rows) + 0.9
    across = max(1, min(len(panels), int(14 / wide)))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(4.5, wide * across + 0.8), high * down + 0.5), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    norm, colours = _colours(found)
    for panel, ax in zip(panels, axes.flat):
        _panel(ax, found, panel, norm, colours)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=0.9)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_formatter("")
    bar.set_label(_measured(found), fontsize=8)
    if found.asked.title:
        lines = textwrap.wrap(found.asked.title, int(LETTERS * figure.get_figwidth()))
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9)
    return figure


def _panel(ax: Axes, found: Heat, panel: str, norm: Normalize, colours: Colormap) -> None:
    rows, columns = found.values(1), found.values(2)
    grid = np.array([[_shade(found, (panel, row, column), norm) for column in columns] for row in rows])
    ax.imshow(np.ma.masked_invalid(grid), cmap=colours, norm=norm, aspect="auto")
    ax.set_facecolor("#EEEEEE")
    ax.set_xticks(range(len(columns)), [textwrap.fill(column, NARROW) for column in columns])
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel=found.asked.columns, ylabel=found.asked.rows)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    if found.asked.panels is not None:
        ax.set_title(f"{found.asked.panels} = {panel}")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            cell = found.cells.get((panel, row, column))
            light = not np.isfinite(grid[y, x]) or _is_light(colours(norm(grid[y, x])))
            said = NONE if cell is None else _text(cell).partition(" ")[0]
            weight = "bold" if cell is not None and _is_sure(found, cell) else "normal"
            ax.text(
                x,
                y,
                said,
                ha="center",
                va="center",
                fontsize=8,
                weight=weight,
                color="black" if light else "white",
            )


def _colours(found: Heat) -> tuple[Normalize, Colormap]:
    """Return how numbers become colours: around what is neither better nor worse, or from the least to the most."""
    numbers = np.array([cell.here[0] for cell in found.cells.values() if math.isfinite(cell.here[0])])
    if not len(numbers):
        numbers = np.array([1.0])
    low, high = float(numbers.min()), float(numbers.max())
    if found.is_ratio:
        most = max(high, 1 / low, 1.1)
        return LogNorm(1 / most, most), colormaps[GAINS]
    if found.asked.worse:
        most = max(abs(low), abs(high)) or 1.0
        return TwoSlopeNorm(0.0, -most, most), colormaps[GAINS]
    if low > 0 and high > WIDE_SPREAD * low:
        return LogNorm(low, high), colormaps[VALUES]
    return Normalize(low, high if high > low else low + 1), colormaps[VALUES]


def _shade(found: Heat, where: Where, norm: Normalize) -> float:
    cell = found.cells.get(where)
    if cell is None:
        return math.nan
    side = _without_other(cell)
    return cell.here[0] if not side else float(norm.vmax if side > 0 else norm.vmin)  # type: ignore[arg-type]


def _is_light(colour: Any) -> bool:
    red, green, blue, _ = colour
    return bool(0.299 * red + 0.587 * green + 0.114 * blue > 0.5)


def _is_sure(found: Heat, cell: Finding) -> bool:
    """Tell whether an interval of enough seeds leaves out what would be neither better nor worse."""
    even, (_, low, high) = (1.0 if found.is_ratio else 0.0), cell.here
    enough = sum(map(math.isfinite, cell.gains.values())) >= FEWEST and not _without_other(cell)
    return bool(found.asked.worse) and enough and (low > even or high < even)


def _measured(found: Heat) -> str:
    """Return what the colours are of."""
    goal = "".join(f" to {name} {value:g}" for name, value in found.asked.target.items())
    name = f"{found.metric}{goal}".replace("_", " ")
    return (
        name if not found.asked.worse else f"{name}, times better" if found.is_ratio else f"{name}, better by"
    )
