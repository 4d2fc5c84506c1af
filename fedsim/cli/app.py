"""The command line: it parses, calls :mod:`fedsim.api` and prints.

Exit codes: 0 done, 1 a text that was asked for could not be written, 2 a mistake in the file or the command, or a
folder that cannot be used, 3 a run that broke or whose results could not be written, 130 stopped with Ctrl-C, 143 with
SIGTERM.

What a run is for is its folder: it goes on, and ends with its own exit code, when nobody reads what it prints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim import api
from fedsim.cli import flower as flowercli
from fedsim.cli import output, show
from fedsim.cli import study as studycli
from fedsim.cli import trace as tracecli
from fedsim.cli.options import StoreOf, StoreSize
from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.machine import keep_freed_memory
from fedsim.running import signals
from fedsim.running.garbage import over, settled
from fedsim.running.shown import also_live, shown
from fedsim.version import __version__

KINDS = (
    *("strategies", "selectors", "transforms", "topologies", "datasets"),
    *("models", "partitions", "churn", "faults", "data_faults", "engines"),
    *("losses", "metrics", "augmentations", "optimisers", "schedules", "trackers"),
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    keep_freed_memory()
    streams = output.guard()
    try:
        with settled():  # libraries make a million objects while they are loaded, and none of them is garbage
            app()
    except SystemExit as end:
        signals.leave_at_once()
        sys.exit(output.judged(end.code, streams, wanted=_asks_for_text(sys.argv[1:])))
    finally:
        over()


def _asks_for_text(words: list[str]) -> bool:
    """Tell whether a command line asks for text alone, and not for a run, a report or another file."""
    commands = [word for word in words if not word.startswith("-")]
    asks = {"-h", "--help", "--version"} & set(words)
    return (
        bool(asks)
        or commands[:1] in ([], ["list"], ["show"], ["diff"], ["schema"])
        or commands[:2] == ["trace", "show"]
    )


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
    store: StoreOf = None,
    store_gb: StoreSize = 10.0,
    live: Annotated[
        bool, typer.Option("--live", help="Show the run on a page of this machine while it goes on.")
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
            with shown(quiet) as bar, also_live(bar, file.stem, live) as told:
                how: dict[str, Any] = {"timing_only": timing_only, "store": store, "store_gb": store_gb}
                result = api.run(file, overrides=overrides, out=out, progress=told, **how)
            show.print_result(result)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    extend: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=+N", help="Let a run be longer: rounds=+50, or sim_time_s=+600."),
    ] = None,
    settings: Settings = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    store: StoreOf = None,
    store_gb: StoreSize = 10.0,
) -> None:
    """Let a run go on that was stopped or killed, or is to be longer; it ends as it would have without a break."""
    with show.explained():
        overrides, more = show.overrides_of(settings), show.extension_of(extend)
        with shown(quiet) as told:
            how: dict[str, Any] = {"progress": told, "store": store, "store_gb": store_gb}
            result = api.resume(run, overrides=overrides, extend=more, **how)
        show.print_result(result)


@app.command()
def retime(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    settings: Settings = None,
    store: StoreOf = None,
    out: Annotated[Path, typer.Option(help="Folder in which the new run gets its own folder.")] = Path(
        "runs"
    ),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Run the experiment of a run in another world, with the updates that the run has left in a store."""
    with show.explained():
        overrides = show.overrides_of(settings)
        show.check_writable(out)
        with shown(quiet) as told:
            result = api.retime(run, overrides=overrides, store=store, out=out, progress=told)
        show.print_result(result)


@app.command()
def check(
    file: File,
    settings: Settings = None,
    timing_only: Annotated[
        bool, typer.Option("--timing-only", help="Check it for a run that only keeps time.")
    ] = False,
) -> None:
    """Check an experiment file without running it, and say what a run would use."""
    with show.explained():
        lines = api.outline(file, show.overrides_of(settings), timing_only=timing_only)
        typer.echo(f"{file}: " + "\n".join(lines))


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
def schema(
    kind: Annotated[str, typer.Argument(metavar="[KIND]", help="experiment or study.")] = "experiment",
) -> None:
    """Print the JSON schema of experiment or study files, for editors that complete and check them."""
    with show.explained():
        typer.echo(json.dumps(api.schema(kind), indent=1))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
) -> None:
    """Write a project to start from: a strategy of your own, its test, an experiment and a study."""
    with show.explained():
        for file in api.write_starter(folder):
            typer.echo(str(file))
        typer.echo(f"cd {folder} && python -m pytest && fedsim run experiment.yaml")


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


@app.command("show")
def show_events(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    round: Annotated[int | None, typer.Option(help="Only this round.")] = None,
    node: Annotated[int | None, typer.Option(help="Only what this node had to do with.")] = None,
    from_s: Annotated[float | None, typer.Option(help="Not before, in simulated seconds.")] = None,
    to_s: Annotated[float | None, typer.Option(help="Not after, in simulated seconds.")] = None,
) -> None:
    """Show what happened in a run and what was measured, in the order of simulated time."""
    with show.explained():
        for line in api.happened(run, round, node, from_s, to_s):
            typer.echo(line)


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="The folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="The folder of another one.")],
) -> None:
    """Say in what two runs differ: keys, the first event, the first local update, and what makes it another one."""
    with show.explained():
        for line in api.differences(first, second):
            typer.echo(line)


@app.command("replay-job")
def replay_job(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    id: Annotated[
        str, typer.Argument(metavar="ID", help="First digits of a job, as fedsim show lists them.")
    ],
    store: StoreOf = None,
    debug: Annotated[bool, typer.Option("--debug", help="Do it under pdb first.")] = False,
) -> None:
    """Do one local update of a run again, alone, and compare the result with what the run has."""
    with show.explained():
        for line in api.replay_job(run, id, store=store, do=show.debugged if debug else None).lines():
            typer.echo(line)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    form: Annotated[str, typer.Option("--format", help="csv, json or parquet.")] = "csv",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; by default export in the run's.")
    ] = None,
) -> None:
    """Write the tables of a run's record as files that other programs read."""
    with show.explained():
        for file in api.export(run, out, form):
            typer.echo(str(file))


app.command()(studycli.sweep)
app.command()(studycli.compare)
app.command()(studycli.reproduce)
app.add_typer(tracecli.app, name="trace")
app.add_typer(flowercli.app, name="flower")
