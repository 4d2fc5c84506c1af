"""The command line's ``trace`` commands: convert, generate and look at trace files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedsim.errors import BadValue, ConfigError, FedsimError

if TYPE_CHECKING:
    from fedsim.world.traces.files import Availability, Device, Session

PERCENTS = (5, 25, 50, 75, 95)

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
        from fedsim.world.traces import fedscale
        from fedsim.world.traces import files as traces

        traces.require_format(out)
        ours = source.suffix.lower() in (".csv", ".json")
        trace = traces.read(source) if ours else fedscale.read_fedscale(source)
        traces.write(out, trace)
        typer.echo(f"{out}: {_count(trace)}")


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
        from fedsim.world.traces import files as traces

        trace = traces.read(file)
        if isinstance(trace, traces.Availability):
            lines = describe(trace)
        elif png is None:
            lines = _describe_devices(trace)
        else:
            raise BadValue("--png", str(png), "only availability can be drawn, and this is a capacity trace")
        if isinstance(trace, traces.Availability) and png is not None:
            _draw(trace, png)
        typer.echo("\n".join(lines))


def generate(churn: Mapping[str, Any], nodes: int, period_s: float, seed: int) -> Availability:
    """Let nodes come and go in a world where nothing else happens, and write down what they did.

    Args:
        churn: a churn part's name and parameters, as in an experiment file.
        nodes: how many nodes.
        period_s: for how many simulated seconds.
        seed: an experiment with this seed and this churn has the same sessions.

    Returns:
        The sessions; those that go on at the end are cut off there.

    Raises:
        ConfigError: if the churn part refuses its parameters.

    >>> generate({"name": "exponential", "online_s": 5, "offline_s": 5, "start_online": 1}, 1, 1.0, seed=0)
    Availability(period_s=1.0, sessions=(((0.0, 1.0),),))
    """
    import networkx as nx

    from fedsim.spec.experiment import load
    from fedsim.world import world as worlds
    from fedsim.world.clock import MICRO, micros
    from fedsim.world.traces.files import Availability

    base = {"data": {"clients": nodes}, "strategy": "dpsgd", "stop": {"sim_time_s": period_s}}
    experiment = load({**base, "churn": dict(churn), "seed": seed})
    world = worlds.build(experiment, nx.empty_graph(nodes), server=False)
    worlds.start(world, experiment)
    edges: list[list[int]] = [[0] if node.online else [] for node in world.nodes]
    world.log.listen(lambda time_us, _kind, node, *_: edges[node].append(time_us))
    end_us = micros(period_s)
    world.clock.run(until=end_us)
    sessions = []
    for own in edges:
        times = [time_us / MICRO for time_us in (*own, end_us)]
        sessions.append(tuple(zip(times[::2], times[1::2])))
    return Availability(end_us / MICRO, tuple(sessions))


def describe(trace: Availability) -> list[str]:
    """Return what there is to say about an availability trace, one fact a line; the trace is taken as a circle.

    >>> from fedsim.world.traces.files import Availability
    >>> print(*describe(Availability(100.0, (((0.0, 10.0), (40.0, 100.0)), ()))), sep=chr(10))
    nodes      2, of which 1 never and 0 always online
    period     100 s
    uptime     0.35 on average
    sessions   1: 5 %, 25 %, 50 %, 75 % and 95 % last at most 70, 70, 70, 70, 70 s
    absences   1: 5 %, 25 %, 50 %, 75 % and 95 % last at most 30, 30, 30, 30, 30 s
    """
    stays = [_joined(own, trace.period_s) for own in trace.sessions]
    uptime = sum(end - start for own in stays for start, end in own) / (trace.period_s * len(stays))
    always = sum(own == [(0.0, trace.period_s)] for own in stays)
    moving = [own for own in stays if own and own != [(0.0, trace.period_s)]]
    online = [end - start for own in moving for start, end in own]
    gaps = [
        b[0] - a[1] for own in moving for a, b in pairwise([*own, (own[0][0] + trace.period_s, own[0][1])])
    ]
    never = len(stays) - always - len(moving)
    return [
        f"nodes      {len(stays)}, of which {never} never and {always} always online",
        f"period     {trace.period_s:g} s",
        f"uptime     {uptime:.4g} on average",
        f"sessions   {_lengths(online)}",
        f"absences   {_lengths(gaps)}",
    ]


def _joined(sessions: tuple[Session, ...], period_s: float) -> list[Session]:
    """Join sessions that touch; one that goes on in the next period ends after this one."""
    joined: list[Session] = []
    for start, end in sessions:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) > 1 and joined[0][0] == 0 and joined[-1][1] == period_s:
        joined[-1] = (joined[-1][0], period_s + joined.pop(0)[1])
    return joined


def _lengths(lengths: list[float]) -> str:
    if not lengths:
        return "none"
    percents = f"{' %, '.join(map(str, PERCENTS[:-1]))} % and {PERCENTS[-1]} %"
    return f"{len(lengths)}: {percents} last at most {_percentiles(lengths)} s"


def _percentiles(values: list[float]) -> str:
    import numpy as np

    return ", ".join(f"{float(f'{value:.4g}'):.15g}" for value in np.percentile(values, PERCENTS))


def _describe_devices(devices: tuple[Device, ...]) -> list[str]:
    lines = [f"nodes                {len(devices)}"]
    for key in ("seconds_per_sample", "up_mbps", "down_mbps"):
        values = [getattr(device, key) for device in devices if getattr(device, key) is not None]
        percents = ", ".join(f"{percent} %" for percent in PERCENTS)
        lines.append(f"{key:20} {f'{_percentiles(values)} ({percents})' if values else 'not given'}")
    return lines


def _draw(trace: Availability, png: Path) -> None:
    import numpy as np

    from fedsim.record.figures import availability

    if png.suffix.lower() != ".png":
        raise BadValue("--png", str(png), "must end in .png")
    edges = [(0, node, 0) for node in range(len(trace.sessions))]
    for node, sessions in enumerate(trace.sessions):
        for start, end in _joined(sessions, math.inf):
            edges += [(round(start * 1e6), node, 1), (round(end * 1e6), node, 0)]
    time_us, ids, online = np.array(edges, dtype=np.int64).T
    presence = {"time_us": time_us, "node": ids, "online": online}
    nobody = {"node": np.array([], dtype=np.int64), "role": np.array([], dtype=str)}
    figure = availability(presence, nobody, round(trace.period_s * 1e6))
    try:
        figure.savefig(png, dpi=144)
    except OSError as error:
        raise BadValue("--png", str(png), f"cannot be written ({error.strerror or error})") from None


def _generate(out: Path, churn: Mapping[str, Any], nodes: int, hours: float, seed: int) -> None:
    with _explained():
        from fedsim.world.traces import files as traces

        traces.require_format(out)
        if not 1e-9 <= hours <= 1e6:
            raise BadValue("--hours", hours, "must be above 0 and at most 1000000")
        trace = generate(churn, nodes, hours * 3600, seed)
        traces.write(out, trace)
        typer.echo(f"{out}: {_count(trace)}")


def _count(trace: Availability | tuple[Device, ...]) -> str:
    if isinstance(trace, tuple):
        return f"the capacity of {len(trace)} nodes"
    return f"{sum(map(len, trace.sessions))} sessions of {len(trace.sessions)} nodes in {trace.period_s:g} s"


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a mistake into one line and exit code 2."""
    try:
        yield
    except (ConfigError, BadValue) as error:
        mistake: FedsimError = error
        typer.echo(str(mistake), err=True)
        raise typer.Exit(ConfigError.exit_code) from None
