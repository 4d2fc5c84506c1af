"""A run from t = 0 to its folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedsim.errors import RunError
from fedsim.learn.trial import check_unchanged
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.peer import PeerStrategy
from fedsim.methods.rounds import Rounds
from fedsim.pulse import beats
from fedsim.record import weights
from fedsim.record.reports import try_report
from fedsim.record.result import Result
from fedsim.record.store import FILE, Record
from fedsim.running.build import Setup, adapter, describe, ordering, places
from fedsim.running.checkpoint import Keeper
from fedsim.running.ending import Ending
from fedsim.running.garbage import settled
from fedsim.running.models import write_models
from fedsim.running.observer import Observer
from fedsim.running.patience import limited
from fedsim.running.peers import PeerRun
from fedsim.running.progress import Progress
from fedsim.running.servers import run_method
from fedsim.running.updates import updates_of
from fedsim.world.log import FAULTS, KINDS
from fedsim.world.world import World

IDENTITY = "identity"
"""The fact that says what the final models are, as follows from all that has led to them."""

ORIGIN = "origin"
"""The fact that says how a run began: its experiment, and what its results depend on."""


def run_setup(
    setup: Setup,
    ending: Ending,
    progress: Callable[[Progress], None] | None,
    keeper: Keeper,
    origin: Mapping[str, Any] | None,
) -> Result:
    """Run what is ready to begin, from t = 0 to its folder.

    Args:
        setup: the run.
        ending: writes what it leaves.
        progress: called after every round, or None.
        keeper: saves it now and then.
        origin: what the run is to be known by later; None goes on with a run that is known already.
    """
    world, path = setup.world, ending.folder
    with Record(path) as record:
        if origin is None:
            record.restart(keep=[ORIGIN])
        else:
            record.fact(ORIGIN, origin)
        _record_start(setup, record)
        keeper.begin(world, record)
        observer = Observer(setup.experiment, setup.learner, world, record, progress, keeper)
        try:
            with scenes(setup, observer), keeper.last_words():
                drive(setup, observer)
                observer.close()
            keeper.ends()
            summary = summarise(setup, observer)
            if not setup.learner.dry:
                summary["weights_hash"] = _save_weights(setup, observer, ending)
                record.fact(IDENTITY, identity_of(observer))
        finally:
            with ending.tried(FILE):
                _record_end(setup, record)
                record.close()
    marks = f"{summary['event_hash']}{summary['weights_hash']}"
    summary["run_hash"] = hashlib.sha256(marks.encode()).hexdigest()
    return Result(path, ending.finish(summary, try_report))


@contextmanager
def scenes(setup: Setup, observer: Observer) -> Iterator[None]:
    """Say where a run hangs, or where somebody's code wants to end the whole program."""
    clock = setup.world.clock

    def signs() -> int:
        return clock.signs + beats()

    def now() -> tuple[int, float]:
        return observer.round + 1, clock.now_s

    try:
        with limited(setup.experiment.compute.patience_s, signs, now):
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise RunError(f"{type(error).__name__}: {error}", None, *now()) from error


def drive(setup: Setup, observer: Observer) -> None:
    """Run a method until its experiment's stop condition, whatever kind of method it is."""
    strategy, experiment = setup.strategy, setup.experiment
    with settled():
        if isinstance(strategy, PeerStrategy):
            PeerRun(setup.world, setup.learner, strategy, observer).run()
            return
        given = updates_of(strategy, experiment), setup.world, setup.learner, observer
        if isinstance(strategy, Rounds | Arrivals):
            run_method(experiment, strategy, *given)
        else:
            adapter().run(experiment, strategy, *given)


def _record_start(setup: Setup, record: Any) -> None:

    for table, rows in describe(setup).items():
        record.write(table, rows)
    for name, value in ordering(setup).items():
        record.fact(name, value)
    if setup.notes:
        record.fact("notes", setup.notes)
    where = places(setup.graph)
    if where:
        record.fact("places", where)
    if setup.experiment.stop.target is not None:
        record.fact("target_accuracy", setup.experiment.stop.target.accuracy)
    record_events(setup.world, record, setup.experiment.record.events)


def record_events(world: World, record: Any, every: bool) -> None:
    """Write what happens in a world as it happens: presence and faults, and every other event if that is asked for."""

    def listen(time_us: int, kind: str, node: int, peer: int, size: int, round: int) -> None:
        if kind in presence:
            record.presence(time_us, node, kind == "online")
        if every or kind in FAULTS:
            record.event(time_us, kind, node, peer, size, round)

    presence = ("online", "offline")

    for event in world.log.early:
        if event[1] in FAULTS:  # who is online at the start has been written above
            listen(*event)
    world.log.listen(listen, KINDS if every else (*presence, *FAULTS))


def _record_end(setup: Setup, record: Any) -> None:
    record_totals(setup.world, record)
    if setup.learner.dry and setup.experiment.assume.numbers:
        record.fact("assumed", setup.experiment.assume.numbers)


def record_totals(world: World, record: Any) -> None:
    """Write what each node and link has done in a world, at the end of a run."""
    traffic = world.network.traffic
    record.write(
        "nodes",
        [
            (
                n.id,
                n.role,
                traffic[n.id].up,
                traffic[n.id].down,
                traffic[n.id].lost,
                n.work,
                n.wasted,
                *world.usage(n),
            )
            for n in world.nodes
        ],
    )
    record.write("links", [(a, b, count) for (a, b), count in sorted(world.network.links.items())])
    record.fact("sim_time_us", world.clock.now)


def summarise(setup: Setup, observer: Observer) -> dict[str, Any]:
    """Return a run's final numbers by name."""
    experiment, world, dry = setup.experiment, setup.world, setup.learner.dry
    return {
        "name": experiment.name,
        "strategy": experiment.strategy.name,
        "seed": experiment.seed,
        "rounds": observer.round,
        "sim_time_s": world.clock.now_s,
        "wall_time_s": round(observer.wall_time_s, 3),
        "accuracy": None if dry else observer.scores.get("accuracy"),
        "best_accuracy": None if dry else observer.best_accuracy,
        "loss": None if dry else observer.scores.get("loss"),
        **observer.final,
        **{name: value for name, value in observer.scores.items() if name.startswith("client_")},
        "assumed": experiment.assume.numbers or None if dry else None,
        "notes": setup.notes or None,
        "time_to_target_s": observer.time_to_target_s,
        **costs(world),
        **reuse(setup),
        "dropped_updates": observer.dropped,
        "stalled": observer.stalled or None,
        "memory_mb": None if setup.needs_mb is None else max(setup.needs_mb),
        "engine": setup.learner.engine.name,
        "event_hash": world.log.hexdigest(),
        "weights_hash": None,
        "run_hash": None,
    }


def reuse(setup: Setup) -> dict[str, Any]:
    """Return how many local updates were computed and how many were not, by name, where there is a store of them."""
    book = setup.learner.book
    if book.store is None:
        return {}
    counts = {"jobs": book.jobs, "jobs_reused": book.reused, "gradients_saved": book.gradients_saved}
    return {**counts, "unnamed": book.unnamed or None}


def costs(world: World) -> dict[str, Any]:
    """Return what a run has cost by name: bytes, work, and the nodes' time."""
    totals = world.totals()
    per_node = [world.network.traffic[n.id].up + world.network.traffic[n.id].down for n in world.members]
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


def identity_of(observer: Observer) -> str:
    """Return what the models of the latest round are, as 64 hexadecimal digits; no number of theirs is looked at."""
    return observer.learner.book.name({node: model.identity for node, model in observer.models.items()}).hex()


def _save_weights(setup: Setup, observer: Observer, ending: Ending) -> str:
    """Write the final weights and return their SHA-256."""
    check_unchanged(setup.learner.engine.task)
    vectors = {node: model.value().detach().cpu().numpy() for node, model in sorted(observer.models.items())}
    with ending.tried(weights.FILE):
        write_models(ending.folder / weights.FILE, setup.learner.engine.task, vectors, not setup.has_server)
    return hashlib.sha256(np.stack(list(vectors.values())).tobytes()).hexdigest()
