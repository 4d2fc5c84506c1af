"""What a round of a server costs without training: driven directly, and through its Flower face on a simulated grid.

FedAvg, 1,000 clients, 100 a round, values that are never computed. Both ways have the same events, which is checked.
``ratio_face_to_direct`` is the median of processor time over paired repeats; ``ms_per_round`` that of a round driven
directly. ``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from fedsim.flower import compat
from fedsim.flower.records import pack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.running.build import Setup, prepare
from fedsim.running.clients import LocalClients
from fedsim.running.exchange import Exchange
from fedsim.running.garbage import settled
from fedsim.running.servers import SimServer
from fedsim.running.updates import updates_of
from fedsim.spec.experiment import load

Way = Callable[[Setup, int], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--participants", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    ways: dict[str, Way] = {"direct": directly, "face": through_its_face}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):  # the first one warms up
        hashes = set()
        for name, way in ways.items():
            setup = prepare(experiment(given), dry=True)
            began = time.process_time()
            with settled():
                way(setup, given.rounds)
            if repeat:
                spent[name].append(time.process_time() - began)
            hashes.add(setup.world.log.hexdigest())
        assert len(hashes) == 1, "the events differ"
    ratios = [face / direct for face, direct in zip(spent["face"], spent["direct"])]
    found = {
        "ratio_face_to_direct": statistics.median(ratios),
        "ms_per_round": 1000 * statistics.median(spent["direct"]) / given.rounds,
    }
    print(f"direct: {found['ms_per_round']:.1f} ms of processor time a round")
    print(
        f"through its face: {found['ratio_face_to_direct']:.2f} times as long", [f"{r:.2f}" for r in ratios]
    )
    if given.json:
        print(json.dumps(found))


def experiment(given: argparse.Namespace) -> Any:
    return load(
        {
            "data": {"clients": given.clients},
            "model": {"name": "mlp", "hidden": 64},
            "strategy": {"name": "strategies.server.fedavg:FedAvg", "participants": given.participants},
            "network": {"latency_ms": 40, "up_mbps": 5, "down_mbps": 20},
            "devices": {"seconds_per_sample": 0.01},
            "stop": {"rounds": given.rounds},
        }
    )


def directly(setup: Setup, rounds: int) -> None:
    clients = LocalClients(setup.learner, updates_of(setup.strategy, setup.experiment))
    server = SimServer(Exchange(setup.world, clients), clients)
    model = setup.learner.initial
    for round in range(1, rounds + 1):
        model = setup.strategy.step(server, round, model, 3600.0)


def through_its_face(setup: Setup, rounds: int) -> None:
    clients = BuiltinClients(setup.learner, updates_of(setup.strategy, setup.experiment))
    grid, task = SimGrid(setup.world, clients), setup.learner.engine.task
    with compat.session(0, grid.server.id, grid.sleep):
        start = pack(setup.learner.initial, task.layout)
        setup.strategy.start(grid, start, num_rounds=rounds, timeout=3600.0)


if __name__ == "__main__":
    main()
