"""How fast D-PSGD trains many nodes, against a plain loop over nodes with the same arithmetic.

Softmax regression on digits over a random regular graph. The plain loop trains one module for each node in turn and
averages vector by vector; it keeps no time, sends no messages and records nothing. Both are run in turn in one
process, the largest difference between their weights is printed, and the ratio is the median over paired repeats.
``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedsim.learn.deferred import compute
from fedsim.learn.engines import Stacked
from fedsim.record.store import Record
from fedsim.rng import stream
from fedsim.running.build import Setup, prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.spec.experiment import load
from topologies.mixing import neighbour_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--degree", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rates, jobs, differences = [], [], []
    simulated(prepare(load(experiment(given) | {"stop": {"rounds": 1}})))  # warms up
    for _ in range(given.repeats):
        setup = prepare(load(experiment(given)))
        fast_s, stacks, models = simulated(setup)
        began = time.perf_counter()
        plain = plain_loop(setup, given.rounds)
        slow_s = time.perf_counter() - began
        rates.append((given.rounds / fast_s, given.rounds / slow_s))
        jobs.append(stacks / given.rounds)
        differences.append(float((models - plain).abs().max()))
    found = {
        "rounds_per_s": statistics.median(fast for fast, _ in rates),
        "plain_rounds_per_s": statistics.median(slow for _, slow in rates),
        "speedup": statistics.median(fast / slow for fast, slow in rates),
        "stacked_jobs_per_round": max(jobs),
        "largest_difference": max(differences),
    }
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    if given.json:
        print(json.dumps(found | vars(given)))


def experiment(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": {"name": "digits", "clients": given.nodes},
        "model": "softmax",
        "strategy": {"name": "dpsgd", "local": {"steps": given.steps, "batch_size": 8, "lr": 0.1}},
        "topology": {"name": "random_regular", "degree": given.degree},
        "network": {"latency_ms": 20, "up_mbps": 10, "down_mbps": 10},
        "stop": {"rounds": given.rounds},
        "evaluate": {"every": 10**6, "nodes": 1e-6},  # one node, at the start
        "compute": {"engine": "stacked", "slots": given.nodes, "device": given.device, "workers": 1},
        "record": {"events": False, "report": False},
    }


def simulated(setup: Setup) -> tuple[float, int, torch.Tensor]:
    """Return the seconds of a run, how many stacks it trained, and the nodes' final weights [n, P]."""
    engine, stacks = setup.learner.engine, []
    assert isinstance(engine, Stacked)
    whole = engine.stack
    engine.stack = lambda jobs: (stacks.append(len(jobs)), whole(jobs))[1]  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out, Record(Path(out)) as record:
        observer = Observer(setup.experiment, setup.learner, setup.world, record)
        began = time.perf_counter()
        run = PeerRun(setup.world, setup.learner, setup.strategy, observer)
        run.run()
        compute(run.latest.values())
        values = [model.value() for model in run.latest.values()]
        if setup.learner.engine.task.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds, len(stacks), torch.stack(values).cpu()


def plain_loop(setup: Setup, rounds: int) -> torch.Tensor:
    """Train and average node by node, as one would without a simulator, and return the weights [n, P]."""
    learner, update = setup.learner, setup.strategy.update
    task, data = learner.engine.task, learner.engine.data
    module, lr = task.module, update.local.lr
    mixing = neighbour_weights(setup.graph)
    models = [task.initial.clone() for _ in mixing]
    for round in range(1, rounds + 1):
        trained = []
        for node, weights in enumerate(models):
            nn.utils.vector_to_parameters(weights.clone(), module.parameters())
            rows = update.batches(learner.sizes[node], stream(learner.seed, "batches", node, round))
            optimiser = torch.optim.SGD(module.parameters(), lr=lr)
            for row in rows:
                batch = data.owned[node][torch.from_numpy(row[row >= 0]).to(task.device)]
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(data.x[batch]), data.y[batch]).backward()
                optimiser.step()
            trained.append(nn.utils.parameters_to_vector(module.parameters()).detach().clone())
        models = [sum(trained[j] * share for j, share in mixing[i].items()) for i in mixing]
    return torch.stack(models).cpu()


if __name__ == "__main__":
    main()
