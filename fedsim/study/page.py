"""What a comparison leaves in a folder: a page, figures, and tables."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader
from matplotlib import rc_context
from matplotlib.figure import Figure

from fedsim.errors import ConfigError, Problem
from fedsim.record.files import replaced, write_text
from fedsim.record.style import STYLE
from fedsim.study import heat
from fedsim.study.compare import Comparison, compare
from fedsim.study.figure import draw
from fedsim.study.ran import COSTS, Ran
from fedsim.study.tables import as_csv, grid, latex, lines, markdown, verdicts

FIGURES = ("png", "svg", "pdf")


class Shown(Comparison):
    """A comparison that can be drawn, and that a notebook shows."""

    def __repr__(self) -> str:
        """Return the table, which says more than all that it was made of."""
        return told(self)

    def plot(self) -> Figure:
        """Return the curves of all values, with their intervals."""
        return draw(self)

    def markdown(self) -> str:
        """Return the table as Markdown, and below it what the runs say of the study's claims."""
        return told(self)

    def latex(self) -> str:
        """Return the table as LaTeX, for the package ``booktabs``."""
        return latex(self)

    def write(self, out: str | Path) -> list[Path]:
        """Write page, figures and tables into a folder, and return the files; see :func:`write`."""
        return write(self, Path(out))

    def _repr_html_(self) -> str:
        return f'<img alt="{self.metric}" src="data:image/svg+xml;base64,{curves(self)}">{table(self)}'


def shown(found: Sequence[Ran], **asked: Any) -> Shown:
    """Return what :func:`fedsim.study.compare.compare` does of the same arguments, in a form that can be drawn."""
    return Shown(**vars(compare(found, **asked)))


@rc_context(STYLE)
def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write a comparison as HTML, PNG, SVG, PDF, CSV, Markdown and LaTeX, and return the files.

    Args:
        comparison: what is compared.
        out: the folder; files of an earlier comparison are replaced.

    Raises:
        ConfigError: if they cannot be written.
    """
    figures = {"comparison": draw(comparison)}
    if comparison.map is not None:
        figures["map"] = heat.draw(comparison.map)
    texts = {
        "md": told(comparison),
        "tex": latex(comparison),
        "csv": as_csv(comparison),
        "html": page(comparison),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for ending in FIGURES:
                with replaced(out / f"{name}.{ending}", lasting=False) as part:
                    dated = {"Date": None} if ending != "png" else None  # the same runs give the same file
                    if ending == "pdf":
                        dated = {"CreationDate": None}
                    figure.savefig(part, format=ending, dpi=150, metadata=dated)
        for ending, text in texts.items():
            write_text(out / f"comparison.{ending}", text, lasting=False)
    except OSError as error:
        raise ConfigError(
            [Problem("out", str(out), f"cannot be written ({error.strerror or error})")]
        ) from error
    drawn = [out / f"{name}.{ending}" for name in figures for ending in FIGURES]
    return [*(out / f"comparison.{ending}" for ending in texts), *drawn]


def told(comparison: Comparison) -> str:
    """Return the table, the map, and what the runs say of the study's claims, as Markdown."""
    grids = [heat.table(comparison.map)] if comparison.map is not None else []
    grids += [verdicts(comparison.findings)] if comparison.findings else []
    return markdown(comparison) + "".join(f"\n{lines(*one)}" for one in grids)


def page(comparison: Comparison) -> str:
    """Return the comparison as one page that needs nothing else."""
    titles, rows = grid(comparison)
    loader = ChoiceLoader([PackageLoader("fedsim.study"), PackageLoader("fedsim.record")])
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True)
    groups = comparison.groups.items()
    return environment.get_template("comparison.html").render(
        comparison=comparison,
        titles=titles,
        rows=rows,
        verdicts=verdicts(comparison.findings) if comparison.findings else None,
        curves=curves(comparison),
        map=None
        if comparison.map is None
        else (_svg(heat.draw(comparison.map)), *heat.table(comparison.map)),
        costs=_listed([COSTS[axis][2] for axis in comparison.axes]),
        count=sum(len(group) for group in comparison.groups.values()),
        runs=[(name, ran.path.name, ran.summary.get("run_hash")) for name, group in groups for ran in group],
    )


@rc_context(STYLE)
def curves(comparison: Comparison) -> str:
    """Return the figure as an SVG in base 64."""
    return _svg(draw(comparison))


def _svg(figure: Figure) -> str:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return base64.b64encode(drawn.getvalue()).decode()


def table(comparison: Comparison) -> str:
    """Return the table as HTML."""
    titles, rows = grid(comparison)
    lines = [(titles, "th"), *((row, "td") for row in rows)]
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) for line, tag in lines)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
