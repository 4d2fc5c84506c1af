"""The command line's ``trace`` commands: convert, generate and look at trace files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from fedsim.errors import BadValue, ConfigError, FedsimError

app = typer.Typer(no_args_is_help=True, help="Convert, generate and look at traces of real devices.")
generators = typer.Typer(no_args_is_help=True, help="Write down when nodes would be online.")
app.add_typer(generators, name="generate")

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The trace to write: .csv or .json.")]
Nodes = Annotated[int, typer.Option(min=1, max=1_000_000, help="How many nodes.")]
Hours = Annotated[float, typer.Option(help="How long, in simulated hours.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed, as in an experiment.")]
Online = Annotated[float, typer.Option(help="Mean length of a session in seconds.")]
Offline = Annotated[float, typer.Option(help="Mean length of an absence in seconds.")]


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="One of FedScale's pickles, or a trace.")],
    out: Out,
) -> None:
    """Convert FedScale's client_device_capacity or client_behave_trace, or one format into the other."""
    with _explained():
        typer.echo(f"{out}: {_work().convert(source, out)}")


@generators.command("exponential")
def exponential(
    out: Out, nodes: Nodes, hours: Hours, online_s: Online, offline_s: Offline, seed: Seed = 0
) -> None:
    """Sessions and absences of exponentially distributed lengths."""
    _generate(out, {"name": "exponential", "online_s": online_s, "offline_s": offline_s}, nodes, hours, seed)


@generators.command("weibull")
def weibull(
    out: Out,
    nodes: Nodes,
    hours: Hours,
    online_s: Online,
    offline_s: Offline,
    shape: Annotated[float, typer.Option(help="The distribution's shape; 1 is exponential.")],
    seed: Seed = 0,
) -> None:
    """Sessions and absences of Weibull-distributed lengths."""
    churn = {"name": "weibull", "online_s": online_s, "offline_s": offline_s, "shape": shape}
    _generate(out, churn, nodes, hours, seed)


@generators.command("diurnal")
def diurnal(
    out: Out,
    nodes: Nodes,
    hours: Hours,
    low: Annotated[float, typer.Option(help="Share of the nodes that is online at the deepest point.")],
    high: Annotated[float, typer.Option(help="Share of the nodes that is online at the peak.")],
    period_s: Annotated[float, typer.Option(help="Length of a day in seconds.")] = 86400.0,
    zones: Annotated[int, typer.Option(help="How many time zones.")] = 24,
    step_s: Annotated[float, typer.Option(help="Nodes come and go at multiples of this.")] = 60.0,
    seed: Seed = 0,
) -> None:
    """Days and nights in several time zones."""
    churn = {"low": low, "high": high, "period_s": period_s, "zones": zones, "step_s": step_s}
    _generate(out, {"name": "diurnal", **churn}, nodes, hours, seed)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace: .csv or .json.")],
    png: Annotated[Path | None, typer.Option(help="Draw who is online when, too.")] = None,
) -> None:
    """Describe a trace: how many nodes, how often they are online and for how long, how fast they are."""
    with _explained():
        typer.echo("\n".join(_work().show(file, png)))


def _generate(out: Path, churn: Mapping[str, Any], nodes: int, hours: float, seed: int) -> None:
    with _explained():
        typer.echo(f"{out}: {_work().write(out, churn, nodes, hours, seed)}")


def _work() -> ModuleType:
    from fedsim.cli import tracing  # loads simpy, networkx and matplotlib

    return tracing


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a mistake into one line and exit code 2."""
    try:
        yield
    except (ConfigError, BadValue) as error:
        mistake: FedsimError = error
        typer.echo(str(mistake), err=True)
        raise typer.Exit(ConfigError.exit_code) from None
