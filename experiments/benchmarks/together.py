"""What several runs cost that advance together, against runs by themselves: ``fedsim sweep --together``.

Two comparisons. Ten seeds of W2 (FedAvg, 1,000 clients, 100 a round, 60 samples each, an MLP 784-128-10, batches of 20)
together against one of them alone, in one process each time, or with as many workers as ``--workers`` says. And forty
short runs on digits together against ``fedsim run`` for each of them in a process of its own, of which a few are
measured and the rest are taken to cost the same. Both count processor time, this process's and its children's; seconds
of real time are printed beside it, and mean something on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fedsim
from fedsim.learn.data.dataset import Dataset
from fedsim.rng import stream

CLIENTS, SAMPLES, TESTS = 1000, 60, 1000
MEASURED = 3
"""So many of the separate runs are measured."""


def images(*, clients: int, samples: int) -> Dataset:
    """Return images of noise, 28 x 28, the same for every seed."""
    rng, split = stream(0, "images"), clients * samples
    x = torch.from_numpy(rng.standard_normal((split + TESTS, 1, 28, 28), "float32"))
    y = torch.from_numpy(rng.integers(0, 10, split + TESTS))
    return Dataset("images", x[:split], y[:split], x[split:], y[split:], classes=10)


def w2(rounds: int, workers: int) -> dict[str, Any]:
    """Return the experiment of W2."""
    local = {"epochs": 1, "batch_size": 20, "lr": 0.05}
    return {
        "name": "w2",
        "beside": str(Path(__file__).parent),
        "data": {"name": "together:images", "clients": CLIENTS, "samples": SAMPLES},
        "model": {"name": "mlp", "hidden": 128},
        "strategy": {"name": "strategies.server.fedavg:FedAvg", "participants": 100, "local": local},
        "stop": {"rounds": rounds},
        "evaluate": {"every": rounds},
        "compute": {"workers": workers, "device": "cpu"},
        "record": {"report": False, "events": False},
    }


def short(seed: int = 0) -> dict[str, Any]:
    """Return a short run on digits."""
    return {
        "name": "short",
        "seed": seed,
        "data": {"clients": 10},
        "model": "mlp",
        "strategy": {
            "name": "strategies.server.fedavg:FedAvg",
            "participants": 5,
            "local": {"epochs": 1, "batch_size": 20, "lr": 0.05},
        },
        "stop": {"rounds": 10},
        "compute": {"device": "cpu"},
        "record": {"report": False},
    }


def spent() -> tuple[float, float]:
    """Return processor time and real time, in seconds."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system, time.perf_counter()


def measured(do: Any) -> tuple[float, float]:
    """Return what a call takes of both."""
    before = spent()
    do()
    return tuple(b - a for a, b in zip(before, spent(), strict=True))  # type: ignore[return-value]


def seeds(count: int, rounds: int, workers: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return what one run and what several together take, in this process."""
    base = w2(rounds, workers)
    with tempfile.TemporaryDirectory() as out:
        fedsim.run(w2(1, 1), out=out)  # what is loaded once, and belongs to neither
        one = measured(lambda: fedsim.run(base, out=out, seed=100))
        study = {"base": base, "vary": {"seed": list(range(count))}}
        many = measured(lambda: fedsim.sweep(study, out=out, jobs=count, together=True))
    return one, many


def shorts(count: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return what ``fedsim run`` takes for each of some runs, and ``fedsim sweep --together`` for all."""
    with tempfile.TemporaryDirectory() as out:
        runs, study = Path(out) / "short.yaml", Path(out) / "study.yaml"
        runs.write_text(json.dumps(short()))
        study.write_text(json.dumps({"base": short(), "vary": {"seed": list(range(count))}}))

        def call(*words: str) -> None:
            command = [sys.executable, "-m", "fedsim", *words, "--out", out, "--quiet"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        apart = [
            measured(lambda i=i: call("run", str(runs), "--set", f"seed={100 + i}")) for i in range(MEASURED)
        ]
        whole = tuple(sum(one) * count / MEASURED for one in zip(*apart, strict=True))
        return whole, measured(lambda: call("sweep", str(study), "--together", "--jobs", str(count)))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--short", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for label, (one, many) in {
        f"{given.seeds} seeds of W2 ({given.rounds} rounds) together, one alone = 1": seeds(
            given.seeds, given.rounds, given.workers
        ),
        f"{given.short} short runs together, apart = 1": shorts(given.short),
    }.items():
        ratios = [b / a for a, b in zip(one, many, strict=True)]
        print(f"{label}: processor time {ratios[0]:.2f} ({one[0]:.1f} s to {many[0]:.1f} s),", end=" ")
        print(f"real time {ratios[1]:.2f} ({one[1]:.1f} s to {many[1]:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
