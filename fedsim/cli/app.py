"""The command line: it parses, calls :mod:`fedsim.api` and prints.

Exit codes: 0 done, 1 a text that was asked for could not be written, 2 a mistake in the file or the command, or a
folder that cannot be used, 3 a run that broke or whose results could not be written, 130 stopped with Ctrl-C.

What a run is for is its folder: it goes on, and ends with its own exit code, when nobody reads what it prints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim import api
from fedsim.cli import flower as flowercli
from fedsim.cli import output, show
from fedsim.cli import trace as tracecli
from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.version import __version__

if TYPE_CHECKING:
    pass

KINDS = (
    *("strategies", "selectors", "transforms", "topologies", "datasets"),
    *("models", "partitions", "churn", "faults"),
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(tracecli.app, name="trace")
app.add_typer(flowercli.app, name="flower")


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
    del version
    show.debug = debug


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
    with show.explained():
        overrides = show.overrides_of(settings)
        show.check_writable(out)
        if len(files) > 1:  # a mistake in the last file should not wait for the runs before it
            for file in files:
                api.check(file, overrides, timing_only=timing_only)
        for file in files:
            with show.shown(quiet) as told:
                result = api.run(file, overrides=overrides, out=out, timing_only=timing_only, progress=told)
            show.print_result(result)


@app.command()
def check(file: File, settings: Settings = None) -> None:
    """Check an experiment file without running it."""
    with show.explained():
        overrides = show.overrides_of(settings)
        experiment = api.check(file, overrides)
        typer.echo(f"{file}: {experiment.name} is fine")
        for line in api.remarks(experiment):
            typer.echo(f"note: {line}")


@app.command("list")
def list_parts(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(KINDS)}.")] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A part of that kind, or a dotted path to one.")
    ] = None,
) -> None:
    """List the installed parts of a kind, or of all kinds, or what one part takes."""
    with show.explained():
        if kind is not None and kind not in KINDS:
            raise ConfigError([Problem("list", kind, "no such kind of part", did_you_mean(kind, KINDS))])
        if kind is not None and name is not None:
            show.part(kind, name)
            return
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
    with show.explained():
        typer.echo(str(api.report(run, out)))
