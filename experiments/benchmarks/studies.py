"""What studies cost: a sweep against separate runs, reading many folders, and the report of a long run.

* Short runs on digits by ``fedsim sweep`` against ``fedsim run`` for each of them in a process of its own, one after
  the other. A few of the separate runs are measured, before, in the middle of and after the sweeps, and the rest are
  taken to cost the same. Processor time counts, this process's and its children's; real time, beside it, means
  something on a machine that does nothing else.
* ``fedsim.results`` of many run folders, which are copies of one run's.
* ``fedsim report`` of a run with many rounds and nodes that come and go, a tenth of which train one step in each round.

``--json FILE`` writes the numbers, their limits, and whether they are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedsim

MEASURED = 3
"""So many of the separate runs are measured."""

RATIO, READ_S, REPORT_S, REPORT_MB = 0.6, 5.0, 10.0, 5.0
"""What is asked of 40 short runs, of 200 folders, and of a report of 2,000 rounds and 1,000 nodes."""

Spent = tuple[float, float]
"""Processor time and real time, in seconds."""


def short(seed: int = 0) -> dict[str, Any]:
    """Return a short run on digits."""
    local = {"epochs": 1, "batch_size": 20, "lr": 0.05}
    return {
        "name": "short",
        "seed": seed,
        "data": {"clients": 10},
        "model": "mlp",
        "strategy": {"name": "strategies.server.fedavg:FedAvg", "participants": 5, "local": local},
        "stop": {"rounds": 10},
        "compute": {"device": "cpu"},
        "record": {"report": False},
    }


def long(rounds: int, nodes: int) -> dict[str, Any]:
    """Return a long run of many nodes."""
    local = {"steps": 1, "batch_size": 1, "lr": 0.1}
    return {
        "name": "long",
        "data": {"clients": nodes},
        "model": "softmax",
        "strategy": {
            "name": "strategies.server.fedavg:FedAvg",
            "participants": max(1, nodes // 10),
            "local": local,
        },
        "network": {"latency_ms": 40, "up_mbps": 1, "down_mbps": 10},
        "churn": {"name": "exponential", "online_s": 300, "offline_s": 100},
        "stop": {"rounds": rounds},
        "compute": {"device": "cpu"},
        "record": {"report": False, "checkpoint": None},
    }


def spent() -> Spent:
    """Return processor time and real time until now."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system, time.perf_counter()


def measured(do: Callable[[], Any]) -> Spent:
    """Return what a call takes of both."""
    before = spent()
    do()
    after = spent()
    return after[0] - before[0], after[1] - before[1]


def call(*words: str) -> None:
    """Call fedsim as its users do."""
    subprocess.run([sys.executable, "-m", "fedsim", *words], check=True, stdout=subprocess.DEVNULL)


def sweeps(count: int, jobs: int) -> dict[str, Any]:
    """Return what a sweep takes, in processes and together, and what separate runs would."""
    with tempfile.TemporaryDirectory() as out:
        run, study = Path(out) / "short.yaml", Path(out) / "study.yaml"
        run.write_text(json.dumps(short()))
        seeds = {"seed": list(range(count))}
        apart: list[Spent] = []

        def alone() -> None:
            seed = f"seed={1000 + len(apart)}"
            words = "run", str(run), "--set", seed, "--out", out, "--quiet"
            apart.append(measured(lambda: call(*words)))

        def sweep(name: str, *how: str) -> Spent:
            study.write_text(json.dumps({"name": name, "base": short(), "vary": seeds}))
            return measured(lambda: call("sweep", str(study), "--out", out, "--quiet", *how))

        alone()
        pool = sweep("pool", "--jobs", str(jobs))
        alone()
        together = sweep("together", "--together")
        alone()
    whole = [sum(one) * count / len(apart) for one in zip(*apart, strict=True)]
    found = {"runs": count, "jobs": jobs, "apart_cpu_s": whole[0], "apart_real_s": whole[1]}
    for name, one in {"sweep": pool, "together": together}.items():
        found |= {f"{name}_cpu_s": one[0], f"{name}_real_s": one[1]}
        found |= {f"{name}_cpu_ratio": one[0] / whole[0], f"{name}_real_ratio": one[1] / whole[1]}
    return found


def reading(count: int) -> dict[str, Any]:
    """Return what it takes to read many folders into one table."""
    with tempfile.TemporaryDirectory() as out:
        first = fedsim.run(short(), out=out).path
        for number in range(1, count):
            shutil.copytree(first, first.with_name(f"{first.name}-{number + 1}"))
        fedsim.results(first)  # what is loaded once
        rows = 0

        def read() -> None:
            nonlocal rows
            rows = len(fedsim.results(out))

        cpu_s, real_s = measured(read)
    return {"folders": count, "rows": rows, "read_cpu_s": cpu_s, "read_real_s": real_s}


def report(rounds: int, nodes: int) -> dict[str, Any]:
    """Return what the report of a long run takes, and how large it is."""
    with tempfile.TemporaryDirectory() as out:
        path = fedsim.run(long(rounds, nodes), out=out).path
        record_mb = (path / "record.sqlite").stat().st_size / 1e6
        cpu_s, real_s = measured(lambda: call("report", str(path)))
        size_mb = (path / "report.html").stat().st_size / 1e6
    found = {"rounds": rounds, "nodes": nodes, "record_mb": record_mb, "report_mb": size_mb}
    return {**found, "report_cpu_s": cpu_s, "report_real_s": real_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="the file for the numbers")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for part in (
        lambda: sweeps(given.runs, given.jobs),
        lambda: reading(given.folders),
        lambda: report(given.rounds, given.nodes),
    ):
        new = part()
        print(", ".join(f"{name} {value:.4g}" for name, value in new.items()), flush=True)
        found |= new
    limits = {
        "sweep_cpu_ratio": RATIO,
        "read_cpu_s": READ_S,
        "report_cpu_s": REPORT_S,
        "report_mb": REPORT_MB,
    }
    kept = {name: found[name] <= limit for name, limit in limits.items()}
    for name, limit in limits.items():
        print(f"{name} {found[name]:.3g}, asked for is {limit:g}: {'kept' if kept[name] else 'NOT KEPT'}")
    if given.json is not None:
        given.json.write_text(json.dumps({**found, "limits": limits, "kept": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
