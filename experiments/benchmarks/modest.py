"""What MoDeST costs at scale: timing only, nodes that come and go with the day, one simulated day.

``--json`` prints one JSON object as the last line: rounds, messages, seconds of real time and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.record.store import Record
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.spec.experiment import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--sample-size", type=int, default=10)
    parser.add_argument("--aggregators", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given)
    print(f"{given.nodes} nodes, {given.hours:g} h: {found['rounds']} rounds, {found['messages']} messages")
    print(f"{found['setup_s']:.1f} s to set up, {found['run_s']:.1f} s to run, {found['peak_mb']:.0f} MB")
    if given.json:
        print(json.dumps(vars(given) | found))


def cities(folder: Path) -> str:
    """Write the latencies between 60 cities on a circle, 5 to 150 ms, and return the file's name."""
    angles = np.arange(60) * (2 * np.pi / 60)
    apart = np.abs(np.sin((angles[:, None] - angles) / 2))
    file = folder / "cities.csv"
    np.savetxt(file, 5 + 145 * apart, fmt="%.3f", delimiter=",")
    return str(file)


def experiment(given: argparse.Namespace, latencies: str) -> dict[str, Any]:
    """Return phones that train for ten seconds in a round and have 2 to 20 Mbit/s."""
    return {
        "seed": given.seed,
        "data": {"name": "synthetic", "clients": given.nodes, "max_samples": 60, "dimension": 5},
        "model": "softmax",
        "strategy": {
            "name": "modest",
            "sample_size": given.sample_size,
            "aggregators": given.aggregators,
            "success_fraction": 0.8,
            "aggregator_timeout_s": 300.0,
            "resend_s": 900.0,
            "local": {"steps": 5, "batch_size": 20},
        },
        "topology": "empty",
        "network": {
            "overlay": True,
            "latency_matrix": latencies,
            "latency_unit": "one_way",
            "up_mbps": {"distribution": "uniform", "low": 2, "high": 20},
            "down_mbps": {"distribution": "uniform", "low": 10, "high": 50},
            "header_bytes": 0,
        },
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.1, "sigma": 0.5}},
        "churn": {"name": "diurnal", "low": 0.2, "high": 0.8},
        "stop": {"sim_time_s": given.hours * 3600.0},
        "record": {"events": False, "report": False},
    }


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Run it and return the figures."""
    began = time.perf_counter()
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as out, Record(Path(out)) as record:
        setup = prepare(load(experiment(given, cities(Path(out)))), dry=True)
        setup.world.log.listen(lambda _time, kind, *_rest: kinds.update((kind,)))
        ready, ready_cpu = time.perf_counter(), time.process_time()
        observer = Observer(setup.experiment, setup.learner, setup.world, record)
        PeerRun(setup.world, setup.learner, setup.strategy, observer).run()
    return {
        "rounds": observer.round,
        "messages": kinds["send"],
        "switches": kinds["online"] + kinds["offline"],
        "gigabytes_up": setup.world.totals()["bytes_up"] / 1e9,
        "setup_s": ready - began,
        "run_s": time.perf_counter() - ready,
        "run_cpu_s": time.process_time() - ready_cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
