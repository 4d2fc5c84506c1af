"""What a notebook user calls to run studies and to compare what came of them: sweep, compare, reproduce."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.api import Source, resume, run
from fedsim.errors import ConfigError, Problem
from fedsim.inspection import late as _late
from fedsim.inspection import told as _told
from fedsim.record.result import Result
from fedsim.study import file as studies
from fedsim.study import results as tables
from fedsim.study import sweep as sweeps
from fedsim.study.asked import Compare as Wishes
from fedsim.study.ran import setting
from fedsim.study.results import results
from fedsim.study.sweep import Outcome, Told

if TYPE_CHECKING:
    from fedsim.study.page import Shown

__all__ = ["Outcome", "compare", "reproduce", "results", "sweep"]

log = logging.getLogger("fedsim")


def sweep(
    source: Source,
    *,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    jobs: int | None = None,
    together: bool = False,
    ray: bool = False,
    only: Mapping[str, Any] | None = None,
    retry: bool = False,
    told: Told | None = None,
    store: str | Path | None = None,
    store_gb: float = 10.0,
) -> list[Outcome]:
    """Run all of a study that has not been run yet.

    Args:
        source: a study file, or the same content as a dictionary; see :class:`fedsim.study.content.Study`.
        overrides: values of the experiment by dotted key, for all runs.
        out: the folder in which the study gets a folder of its own.
        jobs: how many run at a time, each in a process of its own; None is 1, or with ``ray`` as many as the cluster
            has room for. With more than one, a script that calls this needs ``if __name__ == "__main__":``, as with any
            pool of processes.
        together: let that many runs advance in this process instead, and compute at once what is ready in any of them,
            in the processes that ``compute.workers`` says; each ends as it would have ended alone, bit for bit.
        ray: let them run as tasks of the Ray cluster that the environment variable ``RAY_ADDRESS`` says, or of one that
            is started here; see :class:`fedsim.running.tasks.Tasks`.
        only: run those alone that have these settings.
        retry: run again what failed before.
        told: called with each outcome, how many there are by then, and how many there will be.
        store: as for :func:`run`; what one run of the study has computed, the others need not.
        store_gb: as for :func:`run`.

    Returns:
        What became of each run; those that fail do not stop the others.

    Raises:
        ConfigError: for a mistake in the study, before anything has run; also if a cluster cannot be reached.

    >>> import tempfile
    >>> base = {
    ...     "data": {"clients": 4}, "model": "softmax", "stop": {"rounds": 1}, "record": {"report": False},
    ...     "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [(one.status, one.new) for one in sweep({"base": base, "vary": {"seed": [1, 2]}}, out=folder)]
    ...     sorted(results(folder)["seed"].unique().tolist())
    [('done', True), ('done', True)]
    [1, 2]
    """
    if jobs is not None and jobs < 1:
        raise ConfigError([Problem("jobs", jobs, "must be at least 1")])
    if ray and together:
        rule = "lets runs advance in this process, and ray has them run in others"
        raise ConfigError([Problem("together", together, rule, "take one of them")])
    plan = studies.load(source, overrides)
    ways: tuple[Callable[..., Result], Callable[..., Result]] = run, resume
    if folder := store or os.environ.get("FEDSIM_STORE"):
        with _told():  # once for all runs, before the first of them
            _late("running.store").check(Path(folder))
        given: dict[str, Any] = {"store": folder, "store_gb": store_gb}
        ways = functools.partial(run, **given), functools.partial(resume, **given)
    advance = _late("running.together").advance if together else None
    how: dict[str, Any] = {"jobs": jobs or 1, "together": advance, "only": only, "retry": retry, "told": told}
    with _late("running.tasks").Tasks(jobs) if ray else nullcontext() as tasks:
        return sweeps.sweep(plan, *ways, Path(out), spread=tasks, **how)


def compare(
    *runs: str | Path,
    by: str | None = None,
    metric: str | None = None,
    target: float | None = None,
    x: Sequence[str] | None = None,
    baseline: str | None = None,
    only: Mapping[str, Any] | None = None,
) -> Shown:
    """Compare the finished runs of a study, or of any folders.

    What is not given is taken from the study, if a single folder is one.

    Args:
        runs: folders of studies or runs.
        by: the setting whose values are compared; all else is averaged over.
        metric: what is measured; None takes what the study says, or else the accuracy.
        target: the value of it to reach.
        x: the costs that count: rounds, sim_time, bytes, gradients, energy.
        baseline: the value that the others are compared with.
        only: compare those runs alone that have these settings.

    Returns:
        The comparison: ``rows()`` has its numbers, ``plot()`` its figure, and a notebook shows it.

    Raises:
        ConfigError: if the runs cannot be compared so.
    """
    study = sweeps.study_of(Path(runs[0])) if len(runs) == 1 else None
    said = study.compare if study else Wishes()
    higher = None
    if target is None and metric is None and said.target:
        metric, target = next(iter(said.target.items()))
        higher = said.higher
    found, notes = tables.found(*runs)
    by = by or (said.by if said.by in found[0].settings else next(iter(found[0].settings), tables.RUN))
    asked: dict[str, Any] = {"totals": said.totals, "tuned": list(study.tune) if study else []}
    asked["findings"] = (
        _late("study.claims").findings(study.claims, found, said.by, study.tune) if study else []
    )
    asked["map"] = (
        _late("study.heat").heat(study.map, found, said.by, study.tune) if study and study.map else None
    )
    found = [one for one in found if sweeps.has(one.settings, only or {})]
    if not found:
        raise ConfigError([Problem("only", str(dict(only or {})), "no run has these settings")])
    found = tables.told_by(found, by)
    baseline = baseline or (said.baseline if by == said.by else None)
    here = {setting(one, by) for one in found}
    if study and baseline in study.names(by) and baseline not in here:
        notes.append(f"no ratios, as there is no run of {baseline} here")
        baseline = None
    asked |= {"by": by, "metric": metric, "target": target, "axes": x or said.x, "higher": higher}
    asked |= {"baseline": baseline, "notes": [*notes, *tables.remarks(found, by)]}
    comparison: Shown = _late("study.page").shown(found, **asked)
    for note in comparison.notes:
        log.warning("%s", note)
    return comparison


def reproduce(
    name: str,
    *,
    quick: bool = False,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    jobs: int | None = None,
    ray: bool = False,
    retry: bool = False,
    told: Told | None = None,
    store: str | Path | None = None,
) -> tuple[Path, list[Outcome]]:
    """Run the studies of a paper that have not been run, and write the page that says what became of its claims.

    Args:
        name: such as ``"curriculum"``, ``"curriculum-why"``, ``"fedamd"``, ``"modest"`` or ``"beyond"``, or the file of
            one's own page; see :class:`fedsim.study.paper.Page`.
        quick: run the small studies on data that need no files.
        out: the folder for the page; None is ``docs/papers`` in a clone of fedsim, and ``papers`` elsewhere.
        runs: the folder for the studies.
        jobs: how many run at a time, as for :func:`sweep`.
        ray: as for :func:`sweep`.
        retry: run again what failed before.
        told: called with each outcome, as for :func:`sweep`.
        store: as for :func:`sweep`; None is the folder ``store`` in ``runs``.

    Returns:
        The page's file, and what became of each run.

    Raises:
        ConfigError: if there is no such paper, or the page cannot be written.
    """
    papers = _late("study.paper")
    paper = papers.find(name)
    clone = Path(__file__).parents[1] / "docs" / "papers"
    place = Path(out) if out is not None else clone if clone.is_dir() else Path("papers")
    held = store or os.environ.get("FEDSIM_STORE") or Path(runs) / "store"
    sections, outcomes = [], []
    for file in paper.studies(quick):
        done = sweep(file, out=runs, jobs=jobs, ray=ray, retry=retry, told=told, store=held)
        sections.append(papers.section(file, Path(runs), done))
        outcomes += done
    page: Path = papers.write(paper, sections, quick, place)
    return page, outcomes
