"""Commands for many runs: sweep and compare."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim import scalars, studies
from fedsim.cli import show
from fedsim.cli.options import StoreOf, StoreSize
from fedsim.errors import BadValue, ConfigError, Problem
from fedsim.machine import cores
from fedsim.study.kept import FAILED
from fedsim.study.sweep import only_of

if TYPE_CHECKING:
    from fedsim.studies import Outcome

PLACE = "comparison"

TOGETHER = 16
"""So many runs advance together; each holds its own models, while data are held once."""

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Replace one value of the experiment; may be repeated."
    ),
]


OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Let the runs be tasks of the Ray cluster that RAY_ADDRESS says, or of one that is started here; "
        "as many at a time as it has room for, or as --jobs says.",
    ),
]


def sweep(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Study files.")],
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder in which each study gets its own folder.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one for each core, or 16 together.")
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together", help="Let the runs advance in one process, which computes for all at once."
        ),
    ] = False,
    ray: OnRay = False,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this setting; may be repeated."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    store: StoreOf = None,
    store_gb: StoreSize = 10.0,
) -> None:
    """Run all runs of a study that have not been run, and say what became of them."""
    with show.explained():
        overrides, wanted = show.overrides_of(settings), _only(only)
        show.check_writable(out)
        failed = 0
        for file in files:
            told = None if quiet else teller()
            how: dict[str, Any] = {
                "jobs": jobs or (None if ray else TOGETHER if together else cores()),
                "together": together,
                "ray": ray,
                "only": wanted,
                "retry": retry,
                "told": told,
            }
            how |= {"store": store, "store_gb": store_gb}
            done = studies.sweep(file, overrides=overrides, out=out, **how)
            failed += _report(done)
        if failed:
            raise typer.Exit(1)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Folders of studies or of runs.")],
    by: Annotated[str | None, typer.Option(help="The setting whose values are compared.")] = None,
    target: Annotated[
        str | None, typer.Option(metavar="METRIC=VALUE", help="What is to be reached, such as accuracy=0.9.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="What is measured, if there is no target.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The value that the others are compared with.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this setting; may be repeated."),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(metavar="COST,...", help="Of rounds, sim_time, bytes, gradients, updates and energy."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder for page, figures and tables; by default {PLACE} in the first one."),
    ] = None,
) -> None:
    """Compare runs: what each took to a target, how far it came; as table, page and figures."""
    with show.explained():
        name, value = _target(target)
        axes = None if x is None else [axis.strip() for axis in x.split(",")]
        how: dict[str, Any] = {"x": axes, "baseline": baseline, "only": _only(only)}
        found = studies.compare(*runs, by=by, metric=name or metric, target=value, **how)
        files = found.write(out or runs[0] / PLACE)
        typer.echo(found.markdown(), nl=False)
        typer.echo(f"\nwritten to {files[0].parent}: {', '.join(file.suffix[1:] for file in files)}")


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PAPER",
            help="beyond, curriculum, curriculum-why, fedamd, fedamd-why or modest, or the file of your own page.",
        ),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Small studies on data that need no files.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page; by default docs/papers in a clone, and papers elsewhere."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder in which each study gets its own folder.")] = Path(
        "runs"
    ),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; by default one for each core.")
    ] = None,
    ray: OnRay = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    store: StoreOf = None,
) -> None:
    """Run the studies of a paper, and write the page that says what became of its claims."""
    with show.explained():
        show.check_writable(runs)
        how: dict[str, Any] = {"told": None if quiet else teller(), "retry": retry, "store": store}
        how |= {"jobs": jobs or (None if ray else cores()), "ray": ray}
        page, done = studies.reproduce(name, quick=quick, out=out, runs=runs, **how)
        failed = sum(outcome.status == FAILED and outcome.folder is None for outcome in done)
        typer.echo(f"{len(done)} runs, {failed} failed\npage: {page}")
        if failed:
            raise typer.Exit(1)


def _only(texts: list[str] | None) -> dict[str, str]:
    try:
        return only_of(texts or ())
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule)]) from error


def _target(text: str | None) -> tuple[str | None, float | None]:
    if text is None:
        return None, None
    name, _, number = text.partition("=")
    value = scalars.read(number)
    if not name or isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError([Problem("--target", text, "must be METRIC=NUMBER, such as accuracy=0.9")])
    return name, float(value)


def teller() -> Callable[[Outcome, int, int], None]:
    """Return what says, after each run, what became of it and how long the others will take."""
    began, news = time.monotonic(), 0
    best: tuple[float, str] | None = None

    def tell(outcome: Outcome, count: int, total: int) -> None:
        nonlocal news, best
        news += outcome.new
        accuracy = outcome.summary.get("accuracy")
        if accuracy is not None and (best is None or accuracy > best[0]):
            best = accuracy, outcome.point.label
        said = outcome.reason or ("done before" if not outcome.new else _score(outcome))
        left_s = (time.monotonic() - began) / news * (total - count) if news else 0.0
        left = f", {timedelta(seconds=round(left_s))} left" if left_s else ""
        lead = f", best {best[0]:.4f} ({best[1]})" if best else ""
        line = f"{count}/{total} {outcome.point.label}: {outcome.status}, {said}{left}{lead}"
        show.say(line)

    return tell


def _score(outcome: Outcome) -> str:
    for name in ("accuracy", "loss"):
        if outcome.summary.get(name) is not None:
            return f"{name} {outcome.summary[name]:.4f}"
    return "nothing measured"


def _report(outcomes: list[Outcome]) -> int:
    """Say what failed, and where the rest is; return how many failed."""
    failed = [outcome for outcome in outcomes if outcome.status == FAILED]
    new = sum(outcome.new and outcome.status != FAILED for outcome in outcomes)
    folders = sorted({outcome.folder.parent for outcome in outcomes if outcome.folder is not None})
    typer.echo(
        f"{len(outcomes)} runs: {new} new, {len(outcomes) - new - len(failed)} done before, {len(failed)} failed"
    )
    for outcome in failed:
        typer.echo(f"  failed: {outcome.point.label}: {outcome.reason}")
    if failed:
        typer.echo("  to try them again: --retry")
    for folder in folders:
        typer.echo(f"to compare them: fedsim compare {folder}")
    return len(failed)
