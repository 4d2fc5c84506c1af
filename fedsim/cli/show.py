"""What the command line prints: progress, results, and mistakes with their exit codes."""

from __future__ import annotations

import os
import pdb
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from fedsim import parts
from fedsim.errors import BadValue, ConfigError, Problem, RunError
from fedsim.spec import about

if TYPE_CHECKING:
    from fedsim.api import Result

SUMMARY = (
    "accuracy",
    "loss",
    "test_accuracy",
    "test_loss",
    "client_accuracy",
    "client_accuracy_worst_decile",
    "personal_accuracy_mean",
    "personal_accuracy_worst_decile",
    "personal_accuracy_gini",
    "tuned_accuracy_mean",
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
    "jobs",
    "jobs_reused",
    "gradients_saved",
    "unnamed",
    "error_replies",
    "assumed",
    "notes",
    "run_hash",
)

debug = False
"""Whether a mistake's traceback is shown, too."""


def overrides_of(settings: list[str] | None) -> dict[str, str]:
    """Return what ``--set`` says, by dotted key.

    Raises:
        ConfigError: for what is not KEY.PATH=VALUE.
    """
    problems = [
        Problem("--set", text, "must be key.path=value")
        for text in settings or ()
        if "=" not in text.lstrip("=")
    ]
    if problems:
        raise ConfigError(problems)
    return {key.strip(): value for key, _, value in (text.partition("=") for text in settings or ())}


def extension_of(settings: list[str] | None) -> dict[str, float]:
    """Return what ``--extend`` says, by key.

    Raises:
        ConfigError: for what is not KEY=+N.

    >>> extension_of(["rounds=+50"])
    {'rounds': 50.0}
    """
    found = {}
    for text in settings or ():
        key, _, more = text.partition("=")
        if not re.fullmatch(r"\+\d+(\.\d+)?", more) or not float(more):
            raise ConfigError([Problem("--extend", text, "must say by how much, like rounds=+50")])
        found[key.strip()] = float(more)
    return found


def check_writable(out: Path) -> None:
    """Refuse a folder in which nothing can be made, before anything has run."""
    nearest = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise ConfigError([Problem("--out", str(out), f"{nearest} is not a folder")])
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError([Problem("--out", str(out), f"{nearest} is not writable")])


@contextmanager
def explained() -> Iterator[None]:
    """Turn known failures into messages and exit codes; anything else is a bug and keeps its traceback."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            say(str(problem))
        if debug:
            say("".join(traceback.format_exception(error)).rstrip())
        raise typer.Exit(ConfigError.exit_code) from None
    except RunError as error:
        say(str(error))
        cause = error.__cause__
        while isinstance(cause, RunError):  # SimPy raises what a process has raised once more, from itself
            cause = cause.__cause__
        if cause is not None:
            say("".join(traceback.format_exception(cause)).rstrip())
        _kept(error)
        raise typer.Exit(RunError.exit_code) from None
    except KeyboardInterrupt as stop:
        say("stopped")
        _kept(stop)
        raise typer.Exit(getattr(stop, "exit_code", 130)) from None


def _kept(error: BaseException) -> None:
    """Say where the records of a run are that did not finish, and how to go on."""
    path: Path | None = getattr(error, "run_path", None)
    if path is not None:
        say(f"what was recorded is kept in {path}")
        say(f"  to look at it:   fedsim report {path}")
        if hasattr(error, "go_on"):
            say(f"  to go on:        {error.go_on}")
        again = getattr(error, "again", f"fedsim run {Path(path) / 'experiment.yaml'}")
        say(f"  to start again:  {again}")


def part(kind: str, name: str) -> None:
    """Print what a part takes: each parameter with what it must be, its default and its meaning, and an example.

    Raises:
        ConfigError: if there is no such part.
    """
    try:
        rows, text = about.parameters(kind, name), about.example(kind, name)
    except BadValue as error:
        problem = Problem(f"list {kind}", error.value, error.rule, error.hint)
        raise ConfigError([problem]) from error
    typer.echo(f"{name}: {parts.summary(kind, name)}\n")
    for row in rows:
        typer.echo(
            f"  {row.name}: {row.what}; {row.default if row.default == 'required' else f'default {row.default}'}"
        )
        for line in textwrap.wrap(row.meaning, 100):
            typer.echo(f"      {line}")
    typer.echo("" if rows else "  no parameters\n")
    typer.echo(f"Example:\n{textwrap.indent(text, '  ')}".rstrip())


def debugged(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function that returns something under pdb, which stops at its first line, and where it raises."""
    try:
        result = pdb.Pdb(nosigint=True).runcall(function, *given)
    except Exception:
        say(traceback.format_exc().rstrip())
        pdb.post_mortem(sys.exc_info()[2])
        raise
    if result is None:  # somebody has had enough
        raise KeyboardInterrupt
    return result


def say(text: str) -> None:
    """Print a line that is no result."""
    typer.echo(text, err=True)


def print_result(result: Result) -> None:
    """Print the summary of a run, and where its report is."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for key in SUMMARY:
        if result.summary.get(key) is not None and (key != "error_replies" or result.summary[key]):
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
