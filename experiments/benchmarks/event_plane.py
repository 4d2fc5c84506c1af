"""What the event plane costs: D-PSGD, timing only, with max-min sharing, against a bare SimPy loop.

The bare loop is one process for each node that waits for one timeout for each message. ``ratio_to_bare_simpy`` is the
median over paired repeats. ``growth_exponent`` is the slope of log time over log nodes, from 100 to 10,000 nodes.
``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import networkx as nx
import simpy

from fedsim.config import load
from fedsim.observer import Observer
from fedsim.peer import PeerRun
from fedsim.record.store import Record
from fedsim.setup import prepare

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
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    pairs = [
        (dpsgd(given, given.nodes), bare(given.nodes, given.rounds, given.degree))
        for _ in range(given.repeats)
    ]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    messages = given.nodes * given.rounds * given.degree
    print(f"{messages} messages: {pairs[0][0]:.2f} s, bare SimPy {pairs[0][1]:.2f} s, ratio {ratio:.2f}")
    times = {nodes: dpsgd(given, nodes) for nodes in given.growth}
    exponent = slope(times) if len(times) > 1 else None
    print(f"growth: {', '.join(f'{n}: {t:.2f} s' for n, t in times.items())}; exponent {exponent}")
    if given.json:
        print(
            json.dumps(
                {"ratio_to_bare_simpy": ratio, "growth_exponent": exponent, "seconds": times} | vars(given)
            )
        )


def bare(nodes: int, rounds: int, degree: int) -> float:
    """Return the seconds of a SimPy loop with one timeout for each message."""
    environment = simpy.Environment()

    def life(node: int) -> Any:
        for _ in range(rounds):
            for message in range(degree):
                yield environment.timeout(1000 + (node * 7919 + message) % 997)

    for node in range(nodes):
        environment.process(life(node))
    return timed(environment.run)


def dpsgd(given: argparse.Namespace, nodes: int) -> float:
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
        return timed(run.run)


def regular(n: int, *, degree: int) -> nx.Graph:
    """Link every node to the next ones on a ring and, for an odd degree, to the opposite one: quick to make."""
    graph = nx.circulant_graph(n, [*range(1, degree // 2 + 1), *([n // 2] if degree % 2 else [])])
    return nx.relabel_nodes(graph, {node: node * 7 % n if math.gcd(7, n) == 1 else node for node in graph})


def timed(call: Any) -> float:
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def slope(times: dict[int, float]) -> float:
    """Return the least-squares slope of log seconds over log nodes."""
    x, y = [math.log(n) for n in times], [math.log(t) for t in times.values()]
    return statistics.linear_regression(x, y).slope


if __name__ == "__main__":
    main()
