"""A run of any kind, as it is written down: its start, its rounds, its end and its summary."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fedsim.methods.metrics import SYSTEM
from fedsim.record.store import Record
from fedsim.running.progress import Progress
from fedsim.running.sinks import Sinks
from fedsim.spec.experiment import Experiment
from fedsim.world.clock import MICRO
from fedsim.world.log import FAULTS, KINDS
from fedsim.world.world import World

PRESENCE = ("online", "offline")


class Run:
    """What is written of a run, whatever runs: an experiment's own method, or a user's app.

    Args:
        experiment: what runs, and when it is to stop.
        world: where; it counts bytes and work.
        record: where everything is written.
        progress: called after every round, or None.
        sinks: hear of every round, or None.

    Attributes:
        round: the latest round that has begun to be written down.
        scores: the latest numbers by name.
        best_accuracy: the highest finite accuracy so far, or None.
        time_to_target_s: when the target accuracy was reached, or None.
        stalled: why nothing has happened any more, if so.
        dropped: how many updates the server has not used.
    """

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        record: Record,
        progress: Callable[[Progress], None] | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        self.sinks = sinks or Sinks()
        self.experiment, self.world, self.record, self.progress = experiment, world, record, progress
        self.round = 0
        self.scores: dict[str, float] = {}
        self.best_accuracy: float | None = None
        self.time_to_target_s: float | None = None
        self.stalled = ""
        self.dropped = 0
        self._began = time.perf_counter()

    @property
    def wall_time_s(self) -> float:
        """Real seconds since the run began."""
        return time.perf_counter() - self._began

    def start(self, tables: Mapping[str, Iterable[Any]], facts: Mapping[str, Any]) -> None:
        """Write what is true at the start, and from then on what happens.

        Args:
            tables: rows by the record's tables.
            facts: what else is known, by name; what is None or empty is left out.
        """
        for table, rows in tables.items():
            self.record.write(table, rows)
        for name, value in facts.items():
            if value is not None and value != [] and value != {}:
                self.record.fact(name, value)
        every = self.experiment.record.events

        def listen(time_us: int, kind: str, node: int, peer: int, size: int, round: int) -> None:
            if kind in PRESENCE:
                self.record.presence(time_us, node, kind == "online")
            if every or kind in FAULTS:
                self.record.event(time_us, kind, node, peer, size, round)

        for event in self.world.log.early:
            if event[1] in FAULTS:  # who is online at the start is in the tables
                listen(*event)
        self.world.log.listen(listen, KINDS if every else (*PRESENCE, *FAULTS))

    def write_round(self, round: int, updates: int) -> None:
        """Write the end of a round; 0 is the start.

        Args:
            round: its number.
            updates: client updates that have arrived since the start.
        """
        self.round = round
        if round:
            self.world.log.add("round", SYSTEM, round=round)
        self.record.round(round, self.world.clock.now, clients=updates, **self.world.totals())

    def tell(self, updates: int) -> None:
        """Tell whoever waits how far the run has come."""
        self.sinks.tell(self.round)
        if self.progress is None:
            return
        stop, totals = self.experiment.stop, self.world.totals()
        endless = stop.rounds is None or stop.rounds >= ENDLESS
        self.progress(
            Progress(
                self.round,
                None if endless else stop.rounds,
                self.world.clock.now_s,
                stop.sim_time_s,
                self.scores.get("accuracy"),
                self.scores.get("loss"),
                totals["bytes_up"],
                totals["bytes_down"],
                updates,
                self.wall_time_s,
            )
        )

    def judge(self, accuracy: float | None, time_us: int) -> None:
        """Take note of an accuracy: whether it is the best so far, and whether the target is reached."""
        if accuracy is None or not math.isfinite(accuracy):
            return
        self.best_accuracy = max(accuracy, self.best_accuracy or 0.0)
        target = self.experiment.stop.target
        if target is not None and accuracy >= target.accuracy:
            self.time_to_target_s = time_us / MICRO

    def end(self, facts: Mapping[str, Any]) -> None:
        """Write what each node and link has done, and other facts that are known at the end.

        Args:
            facts: by name; what is None is left out.
        """
        world, traffic = self.world, self.world.network.traffic
        counts = [
            (traffic[n.id].up, traffic[n.id].down, traffic[n.id].lost, n.work, n.wasted) for n in world.nodes
        ]
        self.record.write(
            "nodes",
            [(n.id, n.role, *count, *world.usage(n)) for n, count in zip(world.nodes, counts, strict=True)],
        )
        self.record.write("links", [(a, b, count) for (a, b), count in sorted(world.network.links.items())])
        self.record.fact("sim_time_us", world.clock.now)
        for name, value in facts.items():
            if value is not None:
                self.record.fact(name, value)

    def summary(self, scored: bool, weights_hash: str | None, **own: Any) -> dict[str, Any]:
        """Return a run's final numbers by name: the same names for all runs, and those that only some have.

        Args:
            scored: whether the scores are of models that were computed.
            weights_hash: the SHA-256 of the final models, if there are any.
            **own: what this kind of run knows besides, or in the place of what stands here.
        """
        world, event_hash = self.world, self.world.log.hexdigest()
        return {
            "name": self.experiment.name,
            "strategy": self.experiment.strategy.name,
            "seed": self.experiment.seed,
            "rounds": self.round,
            "sim_time_s": world.clock.now_s,
            "wall_time_s": round(self.wall_time_s, 3),
            "accuracy": self.scores.get("accuracy") if scored else None,
            "best_accuracy": self.best_accuracy if scored else None,
            "loss": self.scores.get("loss") if scored else None,
            "assumed": None,
            "notes": world.notes or None,
            "time_to_target_s": self.time_to_target_s,
            **costs(world),
            "dropped_updates": self.dropped,
            "error_replies": 0,
            "stalled": self.stalled or None,
            "memory_mb": None,
            "metrics": self.scores if scored else {},
            **own,
            "event_hash": event_hash,
            "weights_hash": weights_hash,
            "run_hash": hashlib.sha256(f"{event_hash}{weights_hash}".encode()).hexdigest(),
        }


ENDLESS = 10**9
"""So many rounds stand for no limit, where the run itself knows when it is done."""


def costs(world: World) -> dict[str, Any]:
    """Return what a run has cost by name: bytes, work, and the nodes' time."""
    totals = world.totals()
    traffic = world.network.traffic
    per_node = [traffic[n.id].up + traffic[n.id].down for n in world.members]
    return {
        "bytes_up": totals["bytes_up"],
        "bytes_down": totals["bytes_down"],
        "bytes_lost": totals["bytes_lost"],
        "bytes_max_node": max(per_node),
        "bytes_min_node": min(per_node),
        "work_samples": totals["work"],
        "wasted_samples": totals["wasted"],
        **world.spent(),
    }
