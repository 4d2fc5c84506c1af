"""Hand-made quadratics for server strategies: client i has f_i(x) = h_i/2 (x - c_i)^2.

One sample a = sqrt(h_i) with target a c_i, as often as it says.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fedsim.flower import compat
from fedsim.flower.records import pack, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.flower.simulate.grid import SimGrid
from fedsim.learn.engines import Sequential, Shard
from fedsim.learn.learner import Learner
from fedsim.learn.models.builtin import linear
from fedsim.learn.task import Task
from fedsim.spec.experiment import Local, load
from fedsim.world import world as worlds
from topologies.graphs import star

H, C = (1.0, 2.0, 4.0), (1.0, -1.0, 2.0)
OPTIMUM = sum(h * c for h, c in zip(H, C)) / sum(H)


def quadratics(h=H, c=C, copies=(1, 1, 1), start=0.0, engine=Sequential):
    """Return the clients as a learner that starts where it says."""
    rows = [(math.sqrt(a), math.sqrt(a) * b) for a, b, n in zip(h, c, copies) for _ in range(n)]
    x, y = (torch.tensor([row[i] for row in rows], dtype=torch.float64) for i in (0, 1))
    ends = np.cumsum(copies[: len(h)]).tolist()
    owned = [torch.arange(end - n, end) for n, end in zip(copies, ends)]
    module = linear(shape=(1,)).double()
    module[1].weight.data[:] = start
    task = Task(module, "half_square", dtype=torch.float64)
    shard = Shard(x[:, None], y, owned)
    made = engine(task, shard) if engine is Sequential else engine(task, shard, 4)
    return Learner(made, shard.x, shard.y, 0)


def walk(strategy, learner, rounds, script=None, crash=None):
    """Run a strategy, and return the model after every round; the script says who is online in each."""
    size = len(learner.sizes)
    strategy.check(size)
    file = {"data": {"clients": size}, "strategy": "fedavg", "stop": {"rounds": 1}}
    world = worlds.build(load(file), star(size + 1), True)
    clients, models = BuiltinClients(learner, strategy.updates, getattr(strategy, "queries", None)), []

    def note(round, arrays):
        models.append(float(unpack(arrays).value()))
        for node in world.members:
            if script is not None and round < len(script):
                node.set_online(node.id in script[round])
        if crash is not None and round == crash[0]:
            world.clock.after(1, world.nodes[crash[1]].crash)  # while it works

    grid = SimGrid(world, clients, detect_s=1.0)
    start = pack(learner.initial, learner.engine.task.layout, "float64")
    with compat.session(0, grid.server.id, grid.sleep):
        strategy.start(grid, start, num_rounds=rounds, timeout=3600, evaluate_fn=note)
    return models, clients.local


def local(steps=2, lr=0.1, **more):
    return Local(steps=steps, batch_size=None, lr=lr, **more)


def trained(h, c, x, steps=2, lr=0.1, pull=0.0, shift=0.0):
    """Return where gradient steps lead from x, held by ``pull`` and moved by ``shift``."""
    y = x
    for _ in range(steps):
        y = y - lr * (h * (y - c) + pull * (y - x) + shift)
    return y
