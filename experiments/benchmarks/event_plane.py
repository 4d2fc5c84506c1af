"""What the event plane costs: D-PSGD, timing only, with max-min sharing, against a bare SimPy loop.

The bare loop is D-PSGD's messages in SimPy alone: a process for each node, and one timeout for each message, whose
callback counts it at the receiver. ``ratio_to_bare_simpy`` is the median over paired repeats, each side with Python's
garbage collector as it runs there; ``ratio_without_collector`` has it switched off for both. ``growth_exponent`` is the
slope of log time over log nodes, from 100 to 10,000 nodes; ``idle_mib`` is the memory of a process with 100,000 clients
that have nothing to do. ``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networkx as nx
import simpy

from fedsim.record.store import Record
from fedsim.running.build import prepare
from fedsim.running.garbage import settled
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.spec.experiment import load
from fedsim.world.world import build, start
from topologies.graphs import star

DEVICES = {
    "equal": 0.01,
    "mixed": {"distribution": "lognormal", "median": 0.01, "sigma": 0.5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--degree", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sharing", default="max-min")
    parser.add_argument("--devices", choices=DEVICES, default="mixed")
    parser.add_argument("--growth", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--idle", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    messages = given.nodes * given.rounds * given.degree
    found: dict[str, Any] = {
        "messages": messages,
        "idle_mib": idle_mib(given.idle),
    }  # first, or it inherits a peak
    print(f"{given.idle} idle nodes: {found['idle_mib']:.0f} MiB")
    for name, collector in {"ratio_to_bare_simpy": True, "ratio_without_collector": False}.items():
        pairs = [both(given, collector) for _ in range(given.repeats)]
        found[name] = statistics.median(ours / theirs for ours, theirs in pairs)
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(f"{name}: {found[name]:.2f} ({messages} messages in {ours:.2f} s and {theirs:.2f} s)")
    times = {nodes: dpsgd(given, nodes) for nodes in given.growth}
    found |= {"seconds": times, "growth_exponent": slope(times) if len(times) > 1 else None}
    print(
        f"growth: {', '.join(f'{n}: {t:.2f} s' for n, t in times.items())}; exponent {found['growth_exponent']}"
    )
    if given.json:
        print(json.dumps(found | vars(given)))


def both(given: argparse.Namespace, collector: bool) -> tuple[float, float]:
    """Return the seconds of the event plane and of the bare loop."""
    ours = dpsgd(given, given.nodes, collector)
    return ours, bare(given.nodes, given.rounds, given.degree, collector)


def bare(nodes: int, rounds: int, degree: int, collector: bool = True) -> float:
    """Return the seconds of D-PSGD's messages in SimPy alone: no network, no log, nothing counted.

    A node is a process that computes, sends one timeout to each neighbour, and waits for as many.
    """
    environment = simpy.Environment()
    neighbours = [[(node + step + 1) % nodes for step in range(degree)] for node in range(nodes)]
    heard = [[0] * rounds for _ in range(nodes)]
    waits: list[Any] = [None] * nodes

    def life(node: int) -> Any:
        for round in range(rounds):
            yield environment.timeout(1000 + (node * 7919 + round * 104_729) % 997)
            for other in neighbours[node]:
                delay = 20_000 + (node * 31 + other) % 97
                environment.timeout(delay, (other, round)).callbacks.append(arrive)
            if heard[node][round] < degree:
                waits[node] = round, environment.event()
                yield waits[node][1]

    def arrive(event: Any) -> None:
        node, round = event.value
        heard[node][round] += 1
        if heard[node][round] == degree and waits[node] is not None and waits[node][0] == round:
            waits[node][1].succeed()

    for node in range(nodes):
        environment.process(life(node))
    return timed(environment.run, collector)


def dpsgd(given: argparse.Namespace, nodes: int, collector: bool = True) -> float:
    """Return the seconds of the event plane of D-PSGD."""
    experiment = load(
        {
            "data": {"name": "synthetic", "clients": nodes, "max_samples": 60, "dimension": 5},
            "model": "softmax",
            "strategy": {"name": "dpsgd", "local": {"epochs": 1, "batch_size": 32}},
            "topology": {"name": f"{__name__}:regular", "degree": given.degree},
            "network": {"latency_ms": 20, "up_mbps": 10, "down_mbps": 10, "sharing": given.sharing},
            "devices": {"seconds_per_sample": DEVICES[given.devices]},
            "stop": {"rounds": given.rounds},
            "record": {"events": False, "report": False},
        }
    )
    setup = prepare(experiment, dry=True)
    with tempfile.TemporaryDirectory() as out, Record(Path(out)) as record:
        observer = Observer(experiment, setup.learner, setup.world, record)
        run = PeerRun(setup.world, setup.learner, setup.strategy, observer)
        with settled():  # as every run does
            return timed(run.run, collector)


def idle_mib(nodes: int) -> float:
    """Return the memory of a process with a world of clients that have nothing to do."""
    code = f"import {__name__ if __name__ != '__main__' else 'event_plane'} as it; it.idle({nodes})"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    return float(done.stdout)


def idle(nodes: int) -> None:
    """Make a world of clients that have nothing to do, and print the most memory that this process has had, in MiB."""
    experiment = load(
        {
            "data": {"name": "synthetic", "clients": 10, "max_samples": 60, "dimension": 5},
            "model": "softmax",
            "strategy": "fedavg",
            "network": {"latency_ms": 20, "up_mbps": 10, "down_mbps": 10},
            "devices": {"seconds_per_sample": DEVICES["mixed"]},
            "stop": {"rounds": 1},
        }
    )
    world = build(experiment, star(nodes + 1), servers=1)
    start(world, experiment)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def regular(n: int, *, degree: int) -> nx.Graph:
    """Link every node to the next ones on a ring and, for an odd degree, to the opposite one: quick to make."""
    graph = nx.circulant_graph(n, [*range(1, degree // 2 + 1), *([n // 2] if degree % 2 else [])])
    return nx.relabel_nodes(graph, {node: node * 7 % n if math.gcd(7, n) == 1 else node for node in graph})


def timed(call: Any, collector: bool = True) -> float:
    """Return the seconds of processor time of a call, with Python's garbage collector as it is or without it."""
    gc.collect()
    if not collector:
        gc.disable()
    began = time.process_time()
    call()
    gc.enable()
    return time.process_time() - began


def slope(times: dict[int, float]) -> float:
    """Return the least-squares slope of log seconds over log nodes."""
    x, y = [math.log(n) for n in times], [math.log(t) for t in times.values()]
    return statistics.linear_regression(x, y).slope


if __name__ == "__main__":
    main()
