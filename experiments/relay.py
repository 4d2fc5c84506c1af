"""What it costs that a server carries the messages of peers: MoDeST among peers and through a ServerApp.

python experiments/relay.py --seeds 1 2 3

Both train the same samples of the digits and end with the same weights, which is checked. Printed are megabytes for
each round, mean and standard deviation over the seeds: what crosses links between clients, what the clients send to the
server, what the server sends to clients, and how much the busiest node sends and receives.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from typing import Any

import fedsim
from fedsim.record import store

NODES, SAMPLE, ROUNDS = 30, 10, 20
METHODS = {"`modest`, peers": "modest", "`modest_flower`, a relay": "modest_flower"}
TITLES = ("between clients", "clients to server", "server to clients", "busiest node")


def experiment(name: str, seed: int) -> dict[str, Any]:
    local = {"steps": 10, "batch_size": 32, "lr": 0.1}
    return {
        "name": name,
        "seed": seed,
        "data": {"name": "digits", "clients": NODES, "partition": {"name": "dirichlet", "alpha": 1.0}},
        "model": {"name": "mlp", "hidden": 64},
        "strategy": {"name": name, "sample_size": SAMPLE, "local": local},
        "network": {"latency_ms": 20, "up_mbps": 10, "down_mbps": 50},
        "devices": {"seconds_per_sample": 0.001},
        "evaluate": {"every": ROUNDS},
        "record": {"report": False},
        "stop": {"rounds": ROUNDS},
    }


def measure(name: str, seed: int) -> tuple[list[float], float, str]:
    """Return megabytes of a round in the order of the titles, seconds of a round, and the hash of the weights."""
    with tempfile.TemporaryDirectory() as out:
        result = fedsim.run(experiment(name, seed), out=out)
        nodes = store.read(result.path, "nodes")
    own = list(zip(nodes["node"], nodes["bytes_up"], nodes["bytes_down"], strict=True))
    server = [(up, down) for node, up, down in own if node == NODES]
    down, up = server[0] if server else (0, 0)  # what a server receives has come up to it
    among = sum(sent for _, sent, _ in own) - down - up
    found = [among, up, down, max(sent + received for _, sent, received in own)]
    seconds = result.summary["sim_time_s"] / ROUNDS
    return [float(value) / 1e6 / ROUNDS for value in found], seconds, result.summary["weights_hash"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    given = parser.parse_args()
    print(f"| MB a round | {' | '.join(TITLES)} | simulated seconds a round |")
    print("| --- " * (2 + len(TITLES)) + "|")
    weights = []
    for title, name in METHODS.items():
        runs = [measure(name, seed) for seed in given.seeds]
        weights.append([run[2] for run in runs])
        columns = [*zip(*(run[0] for run in runs), strict=True), tuple(run[1] for run in runs)]
        print(f"| {title} | {' | '.join(map(cell, columns))} |")
    assert weights[0] == weights[1], "both must train the same models"


def cell(values: tuple[float, ...]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


if __name__ == "__main__":
    main()
