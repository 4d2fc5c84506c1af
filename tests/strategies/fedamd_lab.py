"""A little laboratory for FedAMD: problems with known gradients, forced roles, and what the server knew.

Client i of the hand-made problems has f_i(x) = h_i/2 (x - c_i)^2: one sample a = sqrt(h_i) with target a c_i.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.engines import Sequential, Shard, TrainJob
from fedsim.learn.learner import Learner
from fedsim.learn.models.builtin import linear
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local, load
from fedsim.world import world as worlds
from strategies.fedamd.fedamd import FedAMD
from topologies.graphs import star

H, C = (1.0, 2.0, 4.0), (1.0, -1.0, 2.0)
TOLERANCE = 1e-12


def learner(clients, start=0.0, seed=0):
    """Return least squares over the clients' samples (a [n, d], targets [n]), starting where it says."""
    x, y = (np.concatenate([np.asarray(part[i], dtype=float) for part in clients]) for i in (0, 1))
    ends = np.cumsum([len(a) for a, _ in clients])
    owned = [torch.arange(end - len(a), end) for (a, _), end in zip(clients, ends.tolist())]
    module = linear(shape=(x.shape[1],)).double()
    module[1].weight.data[:] = torch.as_tensor(start)
    task = Task(module, "half_square", dtype=torch.float64)
    shard = Shard(torch.from_numpy(x), torch.from_numpy(y), owned)
    return Learner(Sequential(task, shard), shard.x, shard.y, seed)


def scalars(h=H, c=C, start=0.0, copies=1):
    """Return the hand-made problem, every sample of client i as often as it says."""
    copies = [copies] * len(h) if isinstance(copies, int) else copies
    each = zip(h, c, copies)
    return learner([([[math.sqrt(a)]] * n, [math.sqrt(a) * b] * n) for a, b, n in each], start)


def random_problem(clients=4, samples=5, dimension=3, start=0.5):
    rng = stream(11, "problem")
    draws = [
        (rng.standard_normal((samples, dimension)), rng.standard_normal(samples)) for _ in range(clients)
    ]
    return learner(draws, start)


def gradients(lab, weights):
    """Return every client's full gradient [M, d]."""
    data, weights = lab.engine.data, torch.as_tensor(weights, dtype=torch.float64)
    rows = [data.x[own].T @ (data.x[own] @ weights - data.y[own]) / len(own) for own in data.owned]
    return torch.stack(rows)


class Script(SimGrid):
    """A grid on which the clients are online that the script names, look by look."""

    script = None

    def get_node_ids(self):
        return sorted(next(self.script)) if self.script is not None else super().get_node_ids()


class Forced(FedAMD):
    """FedAMD with forced roles: the anchors of each round."""

    anchors = None

    def is_anchor(self, round, node):
        return super().is_anchor(round, node) if self.anchors is None else node in self.anchors[round - 1]


class Lab:
    """Runs a strategy on a learner and keeps what the server knew after every round."""

    def __init__(
        self, lab, *, participants=None, anchors=None, cls=Forced, world=None, clients=None, **params
    ):
        params.setdefault("local", Local(steps=2, batch_size=None, lr=0.1))
        size = len(lab.sizes)
        self.strategy = cls(participants=size, **params)
        self.strategy.anchors = anchors
        self.strategy.check(size)
        file = {"data": {"clients": size}, "strategy": "fedamd", "stop": {"rounds": 1}, **(world or {})}
        self.learner, self.world = lab, worlds.build(load(file), star(size + 1), True)
        answering = (clients or BuiltinClients)(lab, self.strategy.updates)
        self.grid = Script(self.world, answering, detect_s=1.0)
        if participants is not None:
            looks = [range(size)] if self.strategy.start_with == "warm" else []
            self.grid.script = iter([*looks, *participants])
        self.x, self.caches, self.means = [], [], []

    def run(self, rounds):
        task = self.learner.engine.task
        start = pack(self.learner.initial, task.layout, "float64")
        with compat.session(0, self.grid.server.id, self.grid.sleep):
            self.strategy.start(self.grid, start, num_rounds=rounds, timeout=3600, evaluate_fn=self.note)
        return self

    def note(self, round, arrays):
        self.x.append(unpack(arrays).value().clone())
        caches = self.strategy.caches
        self.caches.append({node: value.value().clone() for node, value in sorted(caches.items())})
        self.means.append(self.strategy.anchor_mean().value().clone() if self.strategy.heard else None)


def close(found, wanted, tolerance=TOLERANCE):
    gap = (torch.as_tensor(found, dtype=torch.float64) - torch.as_tensor(wanted, dtype=torch.float64)).abs()
    return float(gap.max()) < tolerance


def golden():
    lab = Lab(scalars(), participants=[{0, 1}, {0, 2}, {1}], anchors=[{0}, {2}, {1}])
    return lab.run(3)


def job(lab, update, client, rows, **given):
    vectors = {name.replace("_", "-"): torch.tensor(v, dtype=torch.float64) for name, v in given.items()}
    return lab.engine.train([TrainJob(update, client, np.array(rows), vectors)])[0]
