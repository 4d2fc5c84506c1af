"""Runs of peer strategies on small least-squares problems, whose numbers can be worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate
from fedsim.methods.peer import Peer
from fedsim.record.store import Record
from fedsim.running.build import Setup, prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.running.threads import limited
from fedsim.spec.experiment import load

LR = 0.1
LOCAL = {"steps": 1, "batch_size": None, "lr": LR}
HEADER = 64


class Stay(LocalUpdate):
    """A local update that changes nothing and takes no time."""

    def work(self, samples):
        return 0

    def batches(self, samples, rng):
        return np.zeros((1, 1), dtype=np.int64)

    def width(self, samples):
        return 1

    def init(self, given):
        return given

    def step(self, gradient, state, batch):
        return state

    def final(self, state):
        return {"arrays": state["arrays"], "train_loss": state["arrays"].sum() * 0}


class Placed(Peer):
    """A peer that starts where it is put."""

    @property
    def initial_model(self):
        return self.start_at


@dataclass
class Outcome:
    setup: Setup
    run: PeerRun
    models: np.ndarray

    @property
    def sent(self):
        """Bytes that each node has sent."""
        return [self.run.world.network.traffic[node].up for node in sorted(self.run.peers)]

    @property
    def lost(self):
        return self.run.world.totals()["bytes_lost"]


def experiment(name, clients, topology="complete", rounds=1, params=None, local=None, **more):
    data = {"name": "quadratic", "clients": clients, "dimension": 2, "samples": 4, "conditioning": 2.0}
    return {
        "data": {**data, "partition": "natural"},
        "model": "linear",
        "strategy": {"name": name, "local": local or LOCAL, **(params or {})},
        "topology": topology,
        "network": {"latency_ms": 10},
        "stop": {"rounds": rounds},
        "evaluate": {"every": 10**6},
        "compute": {"dtype": "float64", "engine": "sequential"},
        "record": {"report": False},
        **more,
    }


def drive(given, out, starts=None, stay=False):
    """Run an experiment; from these starts [n, 2] if there are any, and without training if it is to stay."""
    setup = prepare(load(given))
    if stay:
        setup.strategy.update = Stay()
    with Record(out) as record, limited(1):
        observer = Observer(setup.experiment, setup.learner, setup.world, record)
        run = PeerRun(setup.world, setup.learner, setup.strategy, observer)
        if starts is not None:
            for id, peer in run.peers.items():
                peer.__class__ = Placed
                peer.start_at = Deferred.known(torch.from_numpy(starts[id].copy()))
        run.run()
        models = np.stack([run.latest[id].value().numpy() for id in sorted(run.latest)])
    return Outcome(setup, run, models)


def spread(n):
    """Return n starting points [n, 2] that are all different."""
    return np.stack([np.arange(n, dtype=np.float64) ** 2, 1.0 / (1 + np.arange(n))], axis=1)


def gradient(setup, client, w):
    """Return the gradient of a client's mean loss 0.5 (a w - b)^2 by plain arithmetic."""
    data, own = setup.learner.engine.data, setup.owned[client]
    a, b = data.x[own].numpy(), data.y[own].numpy().reshape(-1)
    return a.T @ (a @ w - b) / len(own)


def step(setup, models):
    """Return every client's model after one full-batch gradient step."""
    return np.stack([w - LR * gradient(setup, i, w) for i, w in enumerate(models)])


def initial(setup):
    return np.stack([setup.learner.initial.value().numpy()] * len(setup.owned))
