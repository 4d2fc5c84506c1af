"""Pages that say what became of a paper's claims: which studies they come from, and what these have found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from pydantic import Field, ValidationError

from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.record.files import replaced, write_text
from fedsim.spec.blocks import Block
from fedsim.spec.explain import explain
from fedsim.spec.yamlfile import read
from fedsim.study import heat
from fedsim.study.asked import WORLD, text
from fedsim.study.claims import FEWEST, Finding, findings
from fedsim.study.compare import Comparison, compare
from fedsim.study.content import Study
from fedsim.study.figure import draw
from fedsim.study.file import Plan, load
from fedsim.study.ran import Ran
from fedsim.study.results import runs
from fedsim.study.sweep import Outcome
from fedsim.study.tables import lines, markdown, verdicts

PAPERS = Path(__file__).parent / "papers"
PAGE = "page.yaml"
DIGITS = 12
"""So many digits of a run's hash are shown."""


class Page(Block):
    """A page that is written from studies."""

    title: str = Field(description="what the page is called")
    source: str = Field(description="the paper, or whatever else the claims are from")
    claim: str = Field(description="what is claimed, in Markdown")
    differs: str = Field(description="what was run, and how it differs from the paper, in Markdown")
    found: str = Field(default="", description="what the whole studies come to, in Markdown")
    found_quick: str = Field(default="", description="what the quick studies come to, in Markdown")
    quick: list[str] = Field(default=[], description="study files for a few minutes, seen from this file")
    full: list[str] = Field(default=[], description="the whole studies, seen from this file")
    checked: list[str] = Field(
        default=[], description="experiment files with the paper's own settings, which have not been run"
    )


@dataclass(frozen=True)
class Paper:
    """A page as it was read.

    Args:
        name: what its file will be called.
        page: what it says.
        folder: where its files are.
    """

    name: str
    page: Page
    folder: Path

    def studies(self, quick: bool) -> list[Path]:
        """Return the files of its studies."""
        return [self.folder / name for name in (self.page.quick if quick else self.page.full)]


def names() -> list[str]:
    """Return the pages that come with fedsim.

    >>> names()
    ['beyond', 'curriculum', 'curriculum-why', 'fedamd', 'fedamd-why', 'modest']
    """
    return sorted(file.parent.name for file in PAPERS.glob(f"*/{PAGE}"))


def find(name: str) -> Paper:
    """Return a paper by its name, or by the file of its page.

    Raises:
        ConfigError: if there is none, or its file has a mistake.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = PAPERS / name / PAGE
        if name not in names():
            rule, hint = "no such paper", did_you_mean(name, names())
            raise ConfigError([Problem("reproduce", name, rule, hint or "or give the file of a page")])
    document = read(path)
    try:
        page = Page.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(explain(Page, document, error)) from None
    return Paper(path.stem if path.name != PAGE else path.resolve().parent.name, page, path.parent)


@dataclass(frozen=True)
class Section:
    """What a page says of one study.

    Args:
        study: what was asked.
        parts: a comparison for each world, by its name, or one without a name.
        found: what the runs say of the claims.
        hashes: lines of a table: what was run, and the hash of each seed's run.
        failed: what broke, by reason.
        map: the heat map that the study asks for, or None.
    """

    study: Study
    parts: dict[str, Comparison]
    found: list[Finding]
    hashes: list[list[str]]
    failed: list[str]
    map: heat.Heat | None = None

    @property
    def figures(self) -> dict[str, str]:
        """The names of the figures' files, by world; none where the map says it alone."""
        if self.map is not None and self.map.asked.alone:
            return {}
        worlds = {world: f"-{number}" if world else "" for number, world in enumerate(self.parts, 1)}
        return {world: f"{self.study.name}{end}.png" for world, end in worlds.items()}

    def draw(self) -> dict[str, Figure]:
        """Return the figures by the names of their files."""
        found = {name: draw(self.parts[world]) for world, name in self.figures.items()}
        return found if self.map is None else {**found, f"{self.study.name}-map.png": heat.draw(self.map)}


def section(file: Path, out: Path, outcomes: Sequence[Outcome]) -> Section:
    """Return what a study has found.

    Args:
        file: the study's file.
        out: the folder with the studies' folders.
        outcomes: what became of its runs.

    Raises:
        ConfigError: if its runs cannot be compared.
    """
    study = load(file).study
    failed = [f"{one.point.label}: {one.reason}" for one in outcomes if one.reason]
    if not any(one.folder for one in outcomes):
        return Section(study, {}, [], [], failed)
    some = runs(out / study.name)
    said, by = study.compare, study.compare.by
    metric, target = next(iter(said.target.items()), (None, None))
    asked: dict[str, Any] = {"totals": said.totals, "tuned": list(study.tune), "higher": said.higher}
    parts = {}
    for world in study.worlds or [""]:
        here = [one for one in some if one.settings.get(WORLD, "") == world]
        if here:
            present = {text(one.settings.get(by)) for one in here}
            base = said.baseline if said.baseline in present else None
            parts[world] = compare(here, by, metric, target, said.x, base, **asked)
    found = findings(study.claims, some, by, study.tune)
    map = None if study.map is None else heat.heat(study.map, some, by, study.tune)
    return Section(study, parts, found, list(_hashes(some)), failed, map)


def _hashes(some: Sequence[Ran]) -> Iterator[list[str]]:
    rows: dict[str, list[str]] = {}
    for one in some:
        rest = ", ".join(str(value) for key, value in one.settings.items() if key != "seed")
        shown = str(one.summary.get("run_hash") or "broke off")[:DIGITS]
        rows.setdefault(rest, []).append(f"{one.settings.get('seed', '')}: `{shown}`")
    yield from ([name, ", ".join(hashes)] for name, hashes in rows.items())


def write(paper: Paper, sections: Sequence[Section], quick: bool, out: Path) -> Path:
    """Write a page and its figures into a folder, and return the page's file.

    Args:
        paper: whose page it is.
        sections: what its studies have found.
        quick: whether these are the quick ones.
        out: the folder; files of an earlier page are replaced.

    Raises:
        ConfigError: if it cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("fedsim.study"), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    full = [load(file) for file in paper.studies(quick=False)]
    file = out / f"{paper.name}{'-quick' if quick else ''}.md"
    text = environment.get_template("paper.md").render(
        paper=paper, page=paper.page, sections=sections, quick=quick, full=[_told(plan) for plan in full],
        found=paper.page.found_quick if quick else paper.page.found,
        fewest=FEWEST, table=markdown, verdicts=lambda found: lines(*verdicts(found)), lines=lines,
        map=lambda found: lines(*heat.table(found)),
    )  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        for one in sections:
            for name, figure in one.draw().items():
                with replaced(out / name, lasting=False) as part:
                    figure.savefig(part, format="png", dpi=100)
        write_text(file, text, lasting=False)
    except OSError as error:
        raise ConfigError(
            [Problem("out", str(out), f"cannot be written ({error.strerror or error})")]
        ) from error
    return file


def _told(plan: Plan) -> str:
    """Return what a study would be, in one line."""
    runs, trials = len(plan.points()), len(plan.trials())
    more = f" and {trials} for tuning" if trials else ""
    return f"{plan.study.title or plan.study.name}: {runs} runs{more}"
