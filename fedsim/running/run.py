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
from fedsim.running.build import Setup, adapter
from fedsim.running.checkpoint import Keeper
from fedsim.running.cohorts import cohorts_of
from fedsim.running.described import describe, ordering, places
from fedsim.running.ending import Ending
from fedsim.running.garbage import settled
from fedsim.running.models import write_models
from fedsim.running.observer import Observer
from fedsim.running.patience import limited
from fedsim.running.peers import PeerRun
from fedsim.running.progress import Progress
from fedsim.running.servers import run_method
from fedsim.running.updates import updates_of

IDENTITY = "identity"
"""The fact that says what the final models are, as follows from all that has led to them."""

OWN = ("client_", "personal_", "tuned_")
"""What begins the names of scores on what clients have held out."""

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
    with setup.sinks.running(ending.folder, setup.experiment):
        observer, weights_hash = _recorded(setup, ending, progress, keeper, origin)
        summary = ending.finish(summarise(setup, observer, weights_hash), try_report)
        setup.sinks.finish(summary)
    return Result(ending.folder, summary)


def _recorded(
    setup: Setup,
    ending: Ending,
    progress: Callable[[Progress], None] | None,
    keeper: Keeper,
    origin: Mapping[str, Any] | None,
) -> tuple[Observer, str | None]:
    """Run, and write record and weights; return who has watched, and the SHA-256 of the latter, if there are any."""
    with Record(ending.folder, setup.sinks) as record:
        if origin is None:
            record.restart(keep=[ORIGIN])
        else:
            record.fact(ORIGIN, origin)
        given = setup.experiment, setup.learner, setup.world, record, progress, keeper, setup.sinks
        observer = Observer(*given)
        observer.start(describe(setup), _facts(setup))
        keeper.begin(setup.world, record)
        weights_hash = None
        try:
            with scenes(setup, observer), keeper.last_words():
                drive(setup, observer)
                observer.close()
            keeper.ends()
            if not setup.learner.dry:
                weights_hash = _save_weights(setup, observer, ending)
                record.fact(IDENTITY, identity_of(observer))
        finally:
            with ending.tried(FILE):
                observer.end({"assumed": _assumed(setup)})
                record.close()
    return observer, weights_hash


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
            if experiment.record.cohorts:
                counted = setup.learner.engine.task.trained
                observer.cohorts = cohorts_of(given[0], setup.dataset, setup.owned, counted)
            run_method(experiment, strategy, *given)
        else:
            adapter().run(experiment, strategy, *given)


def _facts(setup: Setup) -> dict[str, Any]:
    """Return what is known at the start, by name."""
    target = setup.experiment.stop.target
    return {
        **ordering(setup),
        "notes": setup.notes,
        "homes": setup.world.homes,
        "places": places(setup.graph),
        "target_accuracy": None if target is None else target.accuracy,
    }


def _assumed(setup: Setup) -> dict[str, float] | None:
    return setup.experiment.assume.numbers or None if setup.learner.dry else None


def summarise(setup: Setup, observer: Observer, weights_hash: str | None) -> dict[str, Any]:
    """Return a run's final numbers by name."""
    own = {name: value for name, value in observer.scores.items() if name.startswith(OWN)}
    return observer.summary(
        not setup.learner.dry,
        weights_hash,
        **observer.final,
        **own,
        assumed=_assumed(setup),
        notes=setup.notes or None,
        **reuse(setup),
        memory_mb=None if setup.needs_mb is None else max(setup.needs_mb),
        engine=setup.learner.engine.name,
    )


def reuse(setup: Setup) -> dict[str, Any]:
    """Return how many local updates were computed and how many were not, by name, where there is a store of them."""
    book = setup.learner.book
    if book.store is None:
        return {}
    counts = {"jobs": book.jobs, "jobs_reused": book.reused, "gradients_saved": book.gradients_saved}
    return {**counts, "unnamed": book.unnamed or None}


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
