"""Runs of MoDeST that are watched: what was sent, what happened, and what the observer was told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedsim.record.store import Record
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.peers import PeerRun
from fedsim.spec.experiment import load

sys.path.insert(0, str(Path(__file__).parent))  # tests and experiments name parts that live beside them


class Noting(Observer):
    """An observer that keeps what it is told."""

    def on_round(self, round, models, updates):
        self.ends = [*getattr(self, "ends", []), (round, self.world.clock.now_s, updates)]
        self.had = {**getattr(self, "had", {}), round: models}
        return super().on_round(round, models, updates)


class Watched(PeerRun):
    """A run that keeps its events, and its messages to nodes that are online and not their sender."""

    def watch(self):
        self.events, self.sent = [], []
        self.world.log.listen(lambda *event: self.events.append(event))
        self.world.network.hazards.append(self._note)

    def _note(self, transfer):
        message = transfer.message
        self.sent.append(
            SimpleNamespace(
                at_s=self.world.clock.now_s,
                src=transfer.src.id,
                dst=transfer.dst.id,
                size=transfer.size_bytes,
                kind=message.kind,
                round=message.round,
                payload=message.payload,
            )
        )

    def at(self, seconds, call, *args):
        self.world.clock.after(round(seconds * 1e6), call, *args)

    def member(self, node):
        """The protocol's state of a node."""
        return self.peers[node].waiting_for.__self__

    def of_kind(self, kind, round=None):
        return [one for one in self.sent if one.kind == kind and round in (None, one.round)]

    def model(self, round):
        return self.observer.had[round][-1].value()


@pytest.fixture
def modest(tmp_path):
    """Return a function that makes a run of MoDeST in which a round of training takes one second.

    Its keywords are blocks of the experiment, but for ``params``, which are the strategy's.
    """
    records = []

    def make(nodes=12, rounds=4, dry=True, seed=0, network=None, stop=None, params=None, **blocks):
        local = {"steps": 1, "batch_size": 10, "lr": 0.1}
        file = {
            "seed": seed,
            "data": {"clients": nodes},
            "model": "softmax",
            "strategy": {
                "name": "modest",
                "local": local,
                "sample_size": 4,
                "aggregators": 1,
                **(params or {}),
            },
            "topology": "empty",
            "network": {"overlay": True, "latency_ms": 10, "header_bytes": 0, **(network or {})},
            "devices": {"seconds_per_sample": 0.1},
            "stop": stop or {"rounds": rounds},
            "compute": {"engine": "sequential"},
            **blocks,
        }
        setup = prepare(load(file), dry=dry)
        folder = tmp_path / str(len(records))
        folder.mkdir()
        records.append(Record(folder).__enter__())
        observer = Noting(setup.experiment, setup.learner, setup.world, records[-1])
        run = Watched(setup.world, setup.learner, setup.strategy, observer)
        run.watch()
        return run

    yield make
    for record in records:
        record.__exit__(None, None, None)
