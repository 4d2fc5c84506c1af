"""The command line's ``flower`` commands: run a Flower app in simulated time, and write one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.cli import show
from fedsim.running.shown import shown

app = typer.Typer(no_args_is_help=True, help="Flower apps: simulate them, or write one that runs a strategy.")

Out = Annotated[Path, typer.Option(help="Folder in which each run gets its own folder.")]

RunConfig = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Replace values of the app's own config; may be repeated."),
]


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder of a Flower app.")],
    nodes: Annotated[int, typer.Option(help="How many clients.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An experiment file that describes the world alone.")
    ] = None,
    run_config: RunConfig = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace one value of the world."),
    ] = None,
    node_config: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Values in every client's node_config; may be repeated."),
    ] = None,
    on_failure: Annotated[
        str | None,
        typer.Option(metavar="drop|stop", help="What a ClientApp that raises does; drop is an error reply."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes for the ClientApps.")] = None,
    samples_per_message: Annotated[
        int | None, typer.Option(help="Per-sample gradients that a message costs.")
    ] = None,
    checkpoint: Annotated[
        bool,
        typer.Option("--checkpoint", help="Keep all replies, so that fedsim resume can let the run go on."),
    ] = False,
    out: Out = Path("runs"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what the app and Flower say at level INFO, too.")
    ] = False,
) -> None:
    """Run an unmodified Flower app in simulated time."""
    with show.explained():
        told = {"on_failure": on_failure, "workers": workers, "samples_per_message": samples_per_message}
        overrides: dict[str, Any] = {**show.overrides_of(settings)}
        overrides |= {f"app.{key}": value for key, value in told.items() if value is not None}
        overrides |= {"record.checkpoint": {}} if checkpoint else {}
        with shown(quiet) as progress:
            result = _flower().run_app(
                path,
                nodes=nodes,
                world=config,
                run_config=" ".join(run_config or ()),
                node_config=" ".join(node_config or ()),
                overrides=overrides,
                out=out,
                progress=progress,
                verbose=verbose,
            )
        show.print_result(result)


@app.command()
def compare(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder of a Flower app.")],
    nodes: Annotated[int, typer.Option(help="How many clients.")],
    run_config: RunConfig = None,
) -> None:
    """Run an app here and in Flower's own engine; exit code 1 if the weights or metrics differ."""
    with show.explained():
        found = _flower().compare_app(path, nodes=nodes, run_config=" ".join(run_config or ()))
    typer.echo(f"{'':9}{'start-up':>10}{'rounds':>10}{'error replies':>15}")
    for side in found.startup_s:
        typer.echo(
            f"{side:9}{found.startup_s[side]:8.1f} s{found.rounds_s[side]:8.1f} s{found.errors[side]:15}"
        )
    typer.echo(f"weights: {found.weights}\nmetrics: {found.metrics}")
    if not found.close:
        raise typer.Exit(1)


@app.command()
def deploy(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The folder of a Flower app.")],
    nodes: Annotated[int, typer.Option(help="How many SuperNodes.")],
    run_config: RunConfig = None,
) -> None:
    """Try an app in a deployment: start a SuperLink and SuperNodes on this machine, run it, and stop all."""
    with show.explained():
        _flower().try_deployment(path, nodes=nodes, run_config=" ".join(run_config or ()), say=typer.echo)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    strategy: Annotated[str, typer.Option(help="A server strategy: fedsim list strategies.")] = "fedavg",
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take over this experiment instead.")
    ] = None,
) -> None:
    """Write a small, complete Flower app, for ``flwr run`` and for ``fedsim flower run``."""
    with show.explained():
        for file in _flower().write_app(folder, strategy, experiment):
            typer.echo(file)


def _flower() -> Any:
    """Return the bridge to Flower, which does all that."""
    import fedsim.flower  # loads flwr and torch

    return fedsim.flower
