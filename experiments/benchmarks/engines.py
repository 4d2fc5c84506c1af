"""How much faster (or slower) each engine is than the sequential one, on this machine.

Each model trains a cohort of 10 clients with all engines in turn, in this process alone; medians are printed, and their
ratios to the sequential engine's.
``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch

from fedsim.learn.engines import Closed, Engine, Lean, Sequential, Shard, Stacked, TrainJob
from fedsim.learn.local import LocalSGD
from fedsim.learn.models.builtin import build, lenet5, mlp, softmax
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local

CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "softmax": (softmax, (1, 8, 8)),
    "mlp": (mlp, (1, 8, 8)),
    "lenet5": (lenet5, (1, 28, 28)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, (make, shape) in CASES.items():
        times = measure(make, shape, given)
        reference = times["sequential"]
        results[name] = {
            engine: {"seconds": took, "speedup": reference / took} for engine, took in times.items()
        }
        said = ", ".join(f"{engine} {took:.4f} s ({reference / took:.2f})" for engine, took in times.items())
        print(f"{name:8} {said}")
    if given.json:
        print(json.dumps({"clients": given.clients, "device": given.device, "results": results}))


def measure(make: Any, shape: tuple[int, ...], given: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a cohort's training with each engine."""
    rng = stream(0, "bench")
    x = torch.from_numpy(rng.standard_normal((given.clients * 80, *shape))).float().to(given.device)
    y = torch.from_numpy(rng.integers(0, 10, len(x))).to(given.device)
    owned = list(torch.arange(len(x), device=given.device).split(80))  # type: ignore[no-untyped-call]
    task = Task(build(make, {}, shape, 10, rng), device=given.device)
    update = LocalSGD(Local(epochs=1, batch_size=16, lr=0.05))
    jobs = [
        TrainJob(update, i, update.batches(80, rng), {"arrays": task.initial}) for i in range(given.clients)
    ]
    data = Shard(x, y, owned)
    engines = {one.name: one for one in (Sequential(task, data), Lean(task, data), Closed(task, data))}
    engines["stacked"] = Stacked(task, data, given.clients)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(given.repeats + 1):
        for name, engine in engines.items():
            seconds = timed(engine, jobs, given.device)
            if repeat:  # the first one warms up
                times[name].append(seconds)
    return {name: statistics.median(some) for name, some in times.items()}


def timed(engine: Engine, jobs: list[TrainJob], device: str) -> float:
    began = time.perf_counter()
    engine.train(jobs)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
