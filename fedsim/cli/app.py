"""The command line: it parses, calls :mod:`fedsim.api` and prints.

Exit codes: 0 done, 1 a text that was asked for could not be written, 2 a mistake in the file or the command, or a
folder that cannot be used, 3 a run that broke or whose results could not be written, 130 stopped with Ctrl-C.

What a run is for is its folder: it goes on, and ends with its own exit code, when nobody reads what it prints.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table

from fedsim.cli import flower as flowercli
from fedsim.cli import output
from fedsim.cli import trace as tracecli
from fedsim.errors import ConfigError, Problem, RunError, did_you_mean
from fedsim.version import __version__

if TYPE_CHECKING:
    from fedsim.api import Progress, Result

KINDS = (
    *("strategies", "selectors", "transforms", "topologies", "datasets"),
    *("models", "partitions", "churn", "faults"),
)
SUMMARY = (
    "accuracy",
    "loss",
    "rounds",
    "sim_time_s",
    "wall_time_s",
    "wall_total_s",
    "bytes_up",
    "bytes_down",
    "bytes_lost",
    "busy_s",
    "idle_s",
    "offline_s",
    "wasted_s",
    "joules",
    "assumed",
    "notes",
    "run_hash",
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(tracecli.app, name="trace")
app.add_typer(flowercli.app, name="flower")

_debug = False

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Experiment files, run one after the other.")
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="An experiment file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace one value of the file; may be repeated."),
]


def main() -> None:
    """Run the command line."""
    streams = output.guard()
    try:
        app()
    except SystemExit as end:
        sys.exit(output.judged(end.code, streams, wanted=_asks_for_text(sys.argv[1:])))


def _asks_for_text(words: list[str]) -> bool:
    """Tell whether a command line asks for text alone, and not for a run, a report or another file."""
    commands = [word for word in words if not word.startswith("-")]
    asks = {"-h", "--help", "--version"} & set(words)
    return bool(asks) or commands[:1] in ([], ["list"]) or commands[:2] == ["trace", "show"]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def fedsim(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a mistake in a file, too.")
    ] = False,
) -> None:
    """Federated and decentralized learning in simulated time."""
    global _debug
    del version
    _debug = debug


@app.command()
def run(
    files: Files,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder in which each run gets its own folder.")] = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Simulate times, train nothing.")
    ] = False,
) -> None:
    """Run experiments and leave a folder with records and a report for each."""
    with _explained():
        overrides = _overrides(settings)
        _writable(out)
        from fedsim import api

        if len(files) > 1:  # a mistake in the last file should not wait for the runs before it
            for file in files:
                api.check(file, overrides, timing_only=timing_only)
        for file in files:
            with _shown(quiet) as show:
                result = api.run(file, overrides=overrides, out=out, timing_only=timing_only, progress=show)
            _print_result(result)


@app.command()
def check(file: File, settings: Settings = None) -> None:
    """Check an experiment file without running it."""
    with _explained():
        overrides = _overrides(settings)
        from fedsim import api

        experiment = api.check(file, overrides)
        typer.echo(f"{file}: {experiment.name} is fine")
        for line in api.remarks(experiment):
            typer.echo(f"note: {line}")


@app.command("list")
def list_parts(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(KINDS)}.")] = None,
) -> None:
    """List the installed parts of a kind, or of all kinds."""
    with _explained():
        if kind is not None and kind not in KINDS:
            raise ConfigError([Problem("list", kind, "no such kind of part", did_you_mean(kind, KINDS))])
        from fedsim import api

        for one in [kind] if kind else KINDS:
            rows = api.parts(one)
            width = max((len(name) for name, _ in rows), default=0)
            if kind is None:
                typer.echo(f"{one}:")
            for name, summary in rows:
                typer.echo(f"  {name:{width}}  {summary}".rstrip())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report and its figures, instead of the run's own.")
    ] = None,
) -> None:
    """Write the report of a run from what was recorded, finished or not."""
    with _explained():
        from fedsim import api

        typer.echo(str(api.report(run, out)))


def _overrides(settings: list[str] | None) -> dict[str, str]:
    problems = [
        Problem("--set", text, "must be key.path=value")
        for text in settings or ()
        if "=" not in text.lstrip("=")
    ]
    if problems:
        raise ConfigError(problems)
    return {key.strip(): value for key, _, value in (text.partition("=") for text in settings or ())}


def _writable(out: Path) -> None:
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError([Problem("--out", str(out), f"{nearest} is not a folder")])
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError([Problem("--out", str(out), f"{nearest} is not writable")])


@contextmanager
def _explained() -> Iterator[None]:
    """Turn known failures into messages and exit codes; anything else is a bug and keeps its traceback."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            _say(str(problem))
        if _debug:
            _say("".join(traceback.format_exception(error)).rstrip())
        raise typer.Exit(ConfigError.exit_code) from None
    except RunError as error:
        _say(str(error))
        cause = error.__cause__
        while isinstance(cause, RunError):  # SimPy raises what a process has raised once more, from itself
            cause = cause.__cause__
        if cause is not None:
            _say("".join(traceback.format_exception(cause)).rstrip())
        _kept(error)
        raise typer.Exit(RunError.exit_code) from None
    except KeyboardInterrupt as stop:
        _say("stopped")
        _kept(stop)
        raise typer.Exit(130) from None


def _kept(error: BaseException) -> None:
    """Say where the records of a run are that did not finish, and how to go on."""
    path: Path | None = getattr(error, "run_path", None)
    if path is not None:
        _say(f"what was recorded is kept in {path}")
        _say(f"  to look at it:   fedsim report {path}")
        again = getattr(error, "again", f"fedsim run {Path(path) / 'experiment.yaml'}")
        _say(f"  to start again:  {again}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def describe(progress: Progress) -> str:
    """Return one line about the state of a run: round, times, result, bytes, speed."""
    of = f"/{progress.rounds}" if progress.rounds is not None else ""
    items = [f"round {progress.round}{of}", f"t = {progress.sim_time_s:.3f} s"]
    if progress.accuracy is not None:
        items.append(f"accuracy {progress.accuracy:.4f}")
    items.append(f"{decimal(progress.bytes_up)} sent")
    if progress.wall_time_s > 0:
        items.append(f"{progress.clients / progress.wall_time_s:.1f} clients/s")
    left = time_left_s(progress)
    if left is not None:
        items.append(f"{timedelta(seconds=round(left))} left")
    return ", ".join(items)


def share_done(progress: Progress) -> float | None:
    """Return the share of the run that is done, from 0 to 1, or None when the run has no known end."""
    shares = []
    if progress.rounds:
        shares.append(progress.round / progress.rounds)
    if progress.sim_limit_s:
        shares.append(progress.sim_time_s / progress.sim_limit_s)
    return min(1.0, max(shares)) if shares else None


def time_left_s(progress: Progress) -> float | None:
    """Return the wall-clock seconds until the end at the present speed, or None when that is unknown."""
    done = share_done(progress)
    return progress.wall_time_s * (1 - done) / done if done else None


class Lines:
    """Progress as plain lines, at most one in a second of wall-clock time."""

    def __init__(self) -> None:
        self.shown_s: float | None = None
        self.pending: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """Print the progress now, or keep it for the end."""
        self.pending = progress
        if self.shown_s is None or progress.wall_time_s - self.shown_s >= 1:
            self.flush()

    def flush(self) -> None:
        """Print what was kept."""
        if self.pending is not None:
            _say(describe(self.pending))
            self.shown_s, self.pending = self.pending.wall_time_s, None


@contextmanager
def _shown(quiet: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Yield what shows the progress: nothing, plain lines, or a bar on a terminal."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        text = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1))
        columns = (BarColumn(16, table_column=Column(min_width=16)), text)
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task("starting", total=None)
            yield lambda now: bars.update(
                task, total=1.0, completed=share_done(now) or 0.0, description=describe(now)
            )
    else:
        lines = Lines()
        try:
            yield lines
        finally:
            lines.flush()


def _print_result(result: Result) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for key in SUMMARY:
        if result.summary.get(key) is not None:
            table.add_row(key, _cell(result.summary[key]))
    console.print(table)
    page = Path(result.path) / "report.html"
    typer.echo(f"report: {page}" if page.exists() else f"run: {result.path}")


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_cell(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return "; ".join(map(_cell, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
