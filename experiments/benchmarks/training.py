"""How fast whole runs train, against plain loops over modules with the same work, one thread, no simulator.

Three workloads, each as ``fedsim run`` would do it (events, records, strategy and evaluation included) and as a script
with ``nn.Module``, ``torch.optim.SGD`` and an average of state dictionaries would. Both are run in turn; a run's first
half, in which its worker processes start, is left out. The ratio is that of the median seconds a round, its spread
that over the repeats. What a run takes beside its engine is told as a share of the engine's processor time, in one
process. ``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fedsim
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.engines.sequential import Sequential
from fedsim.rng import stream
from fedsim.running.progress import Progress

MODELS = {
    "lenet": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    ),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
}


@dataclass(frozen=True)
class Workload:
    """A cohort, what each of its clients has and does, and how long that goes on.

    Args:
        model: LeNet-5 with 61,706 weights, or an MLP 784-128-10.
        clients: how many there are.
        cohort: how many train in a round; None for D-PSGD, where all do.
        samples: of each client.
        batch: the batch size; one epoch.
        rounds: how many.
        every: rounds between evaluations, which are when what was put off is computed; they divide half the rounds.
    """

    model: str
    clients: int
    cohort: int | None
    samples: int
    batch: int
    rounds: int
    every: int

    @property
    def half(self) -> int:
        """The round after which a run is measured: one with an evaluation, before which nothing need be computed."""
        return self.rounds // self.every // 2 * self.every


WORKLOADS = {
    "W1": Workload("lenet", 100, 10, 600, 32, 20, 5),
    "W2": Workload("mlp", 1000, 100, 60, 20, 60, 10),
    "W3": Workload("mlp", 64, None, 300, 20, 20, 5),
}
DEGREE, TESTS, RATE = 4, 1000, 0.05


def images(*, clients: int, seed: int, samples: int) -> Dataset:
    """Return images of noise, 28 x 28, as many for each client."""
    rng = stream(seed, "images")
    x, y = (
        rng.standard_normal((clients * samples + TESTS, 1, 28, 28), np.float32),
        rng.integers(0, 10, clients * samples + TESTS),
    )
    split = clients * samples
    tensors = (torch.from_numpy(one) for one in (x[:split], y[:split], x[split:], y[split:]))
    return Dataset("images", *tensors, classes=10)


def net(*, kind: str) -> nn.Module:
    """Return one of the models."""
    return MODELS[kind]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in given.workloads:
        ratios, times = [], []
        for repeat in range(given.repeats):
            pair = plain(WORKLOADS[name], repeat), simulated(WORKLOADS[name], repeat, given.workers)
            ratios.append(pair[0] / pair[1])
            times.append(pair)
        slow, fast = (statistics.median(one) for one in zip(*times, strict=True))
        more = sorted(overhead(WORKLOADS[name], repeat) for repeat in range(given.repeats))
        found[name] = {"plain_s": slow, "fedsim_s": fast, "ratio": slow / fast, "ratios": sorted(ratios)}
        found[name] |= {"overhead": statistics.median(more), "overheads": more}
        spread = f"[{min(ratios):.2f}-{max(ratios):.2f}]"
        print(
            f"{name}: plain {slow:.3f} s a round, fedsim {fast:.3f} s, ratio {slow / fast:.2f} {spread}; beside the "
            f"engine {100 * statistics.median(more):.1f} % [{100 * more[0]:.1f}-{100 * more[-1]:.1f}]",
            flush=True,
        )
    if given.json:
        print(json.dumps({"workers": given.workers, "repeats": given.repeats, "found": found}))


class Spent:
    """Adds up the processor time of this process in an engine's training and evaluation, while it is entered."""

    def __init__(self) -> None:
        self.seconds, self._own = 0.0, {name: getattr(Sequential, name) for name in ("train", "evaluate")}

    def __enter__(self) -> Spent:
        for name, own in self._own.items():
            setattr(Sequential, name, self._timed(own))
        return self

    def __exit__(self, *_: object) -> None:
        for name, own in self._own.items():
            setattr(Sequential, name, own)

    def _timed(self, own: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(own)
        def timed(*args: Any) -> Any:
            began = time.process_time()
            try:
                return own(*args)
            finally:
                self.seconds += time.process_time() - began

        return timed


def overhead(work: Workload, seed: int) -> float:
    """Return what a run in one process takes beside its engine, as a share of what the engine takes."""
    began = time.process_time()
    with Spent() as engine:
        marks: list[tuple[float, float]] = []
        simulated(work, seed, 1, lambda: marks.append((time.process_time() - began, engine.seconds)))
    (all_before, before), *_, (all_after, after) = marks
    return (all_after - all_before) / (after - before) - 1


def simulated(work: Workload, seed: int, workers: int, at: Callable[[], None] = lambda: None) -> float:
    """Return the seconds of a round of a run; ``at`` is called at the beginning and at the end of what is measured."""
    local = {"epochs": 1, "batch_size": work.batch, "lr": RATE}
    strategy: dict[str, Any] = {"name": "dpsgd", "local": local}
    topology: Any = {"name": "random_regular", "degree": DEGREE}
    if work.cohort is not None:
        strategy = {"name": "strategies.server.fedavg:FedAvg", "participants": work.cohort, "local": local}
        topology = "star"
    experiment = {
        "beside": str(Path(__file__).parent),
        "seed": seed,
        "data": {"name": "training:images", "clients": work.clients, "samples": work.samples},
        "model": {"name": "training:net", "kind": work.model},
        "strategy": strategy,
        "topology": topology,
        "stop": {"rounds": work.rounds},
        "evaluate": {"every": work.every},
        "compute": {"workers": workers, "device": "cpu"},
        "record": {"report": False},
    }
    ends: dict[int, float] = {}

    def seen(progress: Progress) -> None:
        ends[progress.round] = time.perf_counter()
        if progress.round in (work.half, work.rounds):
            at()

    with tempfile.TemporaryDirectory() as out:
        fedsim.run(experiment, out=out, progress=seen)
    return (ends[work.rounds] - ends[work.half]) / (work.rounds - work.half)


def plain(work: Workload, seed: int) -> float:
    """Return the seconds of a round of a plain loop."""
    data = images(clients=work.clients, seed=seed, samples=work.samples)
    rng = stream(seed, "plain")
    model, rounds = MODELS[work.model](), work.half
    models = [copy.deepcopy(model) for _ in range(work.clients)]
    began = time.perf_counter()
    for round in range(rounds):
        if work.cohort is None:
            trained = [trained_on(one, data, work, i, rng) for i, one in enumerate(models)]
            for i, one in enumerate(models):
                one.load_state_dict(mean([trained[(i + step) % len(models)] for step in (-2, -1, 0, 1, 2)]))
            if round % work.every == work.every - 1:
                for one in models:
                    judged(one, data)
        else:
            cohort = rng.choice(work.clients, work.cohort, replace=False)
            model.load_state_dict(
                mean([trained_on(copy.deepcopy(model), data, work, i, rng) for i in cohort])
            )
    return (time.perf_counter() - began) / rounds


def trained_on(model: nn.Module, data: Dataset, work: Workload, client: int, rng: Any) -> dict[str, Any]:
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    order = torch.from_numpy(rng.permutation(work.samples) + client * work.samples)
    for batch in order.split(work.batch):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(data.x[batch]), data.y[batch]).backward()
        optimiser.step()
    return model.state_dict()


def mean(states: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


@torch.no_grad()
def judged(model: nn.Module, data: Dataset) -> float:
    return float((model(data.x_test).argmax(-1) == data.y_test).float().mean())


if __name__ == "__main__":
    main()
