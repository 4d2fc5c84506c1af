"""What the ``trace`` commands do; apart from them, because it needs libraries that take long to load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from fedsim.errors import BadValue
from fedsim.record.figures import availability
from fedsim.spec.experiment import load
from fedsim.world import world as worlds
from fedsim.world.clock import MICRO, micros
from fedsim.world.traces import fedscale, files
from fedsim.world.traces.files import Availability, Device, Session

PERCENTS = (5, 25, 50, 75, 95)


def convert(source: Path, out: Path) -> str:
    """Convert FedScale's pickles, or one format into the other, and say what is in the trace."""
    files.require_format(out)
    ours = source.suffix.lower() in (".csv", ".json")
    trace = files.read(source) if ours else fedscale.read_fedscale(source)
    files.write(out, trace)
    return count(trace)


def show(file: Path, png: Path | None) -> list[str]:
    """Describe a trace in lines, and draw it if that is asked for."""
    trace = files.read(file)
    if not isinstance(trace, Availability):
        if png is not None:
            raise BadValue("--png", str(png), "only availability can be drawn, and this is a capacity trace")
        return describe_devices(trace)
    lines = describe(trace)
    if png is not None:
        draw(trace, png)
    return lines


def write(out: Path, churn: Mapping[str, Any], nodes: int, hours: float, seed: int) -> str:
    """Write down when nodes would be online, and say what is in the trace."""
    files.require_format(out)
    if not 1e-9 <= hours <= 1e6:
        raise BadValue("--hours", hours, "must be above 0 and at most 1000000")
    trace = generate(churn, nodes, hours * 3600, seed)
    files.write(out, trace)
    return count(trace)


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
    base = {"data": {"clients": nodes}, "strategy": "dpsgd", "stop": {"sim_time_s": period_s}}
    experiment = load({**base, "churn": dict(churn), "seed": seed})
    world = worlds.build(experiment, nx.empty_graph(nodes), servers=0)
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
    return ", ".join(f"{float(f'{value:.4g}'):.15g}" for value in np.percentile(values, PERCENTS))


def describe_devices(devices: tuple[Device, ...]) -> list[str]:
    """Say how fast the devices of a capacity trace are, in lines."""
    lines = [f"nodes                {len(devices)}"]
    for key in ("seconds_per_sample", "up_mbps", "down_mbps"):
        values = [getattr(device, key) for device in devices if getattr(device, key) is not None]
        percents = ", ".join(f"{percent} %" for percent in PERCENTS)
        lines.append(f"{key:20} {f'{_percentiles(values)} ({percents})' if values else 'not given'}")
    return lines


def draw(trace: Availability, png: Path) -> None:
    """Draw who is online when.

    Raises:
        BadValue: if the file is no PNG or cannot be written.
    """
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


def count(trace: Availability | tuple[Device, ...]) -> str:
    """Say how much there is in a trace."""
    if isinstance(trace, tuple):
        return f"the capacity of {len(trace)} nodes"
    return f"{sum(map(len, trace.sessions))} sessions of {len(trace.sessions)} nodes in {trace.period_s:g} s"
