"""Begins runs, and lets those go on that were stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.beside import place
from fedsim.errors import MISSING, BadValue, ConfigError, DiskError, Problem, RunError, short
from fedsim.learn.book import Book
from fedsim.learn.engines.device import find_device
from fedsim.learn.identity import FORMAT
from fedsim.record.files import write_text
from fedsim.record.result import Result
from fedsim.record.rows import rows
from fedsim.record.store import FILE, facts
from fedsim.running import garbage, threads
from fedsim.running.build import Setup, prepare
from fedsim.running.checkpoint import Journal, Keeper, Saved, files, is_before, read
from fedsim.running.ending import Ending
from fedsim.running.folder import is_timing, make_folder, written
from fedsim.running.lock import locked
from fedsim.running.progress import Progress
from fedsim.running.run import ORIGIN, run_setup
from fedsim.running.store import GIGABYTE, Store
from fedsim.spec.experiment import Experiment
from fedsim.spec.yamlfile import flat
from fedsim.version import __version__

FREE = ("stop", "record", "evaluate")
"""The blocks that may be others when a run goes on."""

IDLE = ("workers", "state_bytes", "patience_s")
"""What may be another in the block compute."""

Told = Callable[[Progress], None] | None

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Reuse:
    """What other runs have computed.

    Args:
        folder: the store.
        limit_gb: how much it may hold, in gigabytes of 10^9 bytes.
        only: compute no local update that is not in the store.
    """

    folder: Path
    limit_gb: float = 10.0
    only: bool = False


def checked(experiment: Experiment, dry: bool) -> Setup:
    """Prepare an experiment as a run of it would, with as many threads.

    Args:
        experiment: the experiment.
        dry: as if for a run that keeps time only.

    Raises:
        ConfigError: if anything is to be refused.
    """
    with threads.limited(experiment.compute.threads):
        return prepare(experiment, dry)


def fresh(
    experiment: Experiment, out: Path, dry: bool, progress: Told, began: float, reuse: Reuse | None = None
) -> Result:
    """Begin a run in a folder of its own.

    Args:
        experiment: what to run.
        out: the folder in which the run gets its own.
        dry: keep time only.
        progress: called after every round, or None.
        began: when whoever waits for the run began to wait.
        reuse: what need not be computed, or None.
    """
    with threads.limited(experiment.compute.threads):
        setup = prepare(experiment, dry, None if dry else _book(experiment, reuse))
        path = make_folder(out, experiment, dry)
        with locked(path):
            return _begun(path, setup, progress, began)


def _book(experiment: Experiment, reuse: Reuse | None) -> Book:
    book = Book(store=_store(experiment, reuse))
    book.only_reuses = reuse is not None and reuse.only
    return book


def _store(experiment: Experiment, reuse: Reuse | None) -> Store | None:
    if reuse is None:
        return None
    try:
        device = find_device(experiment.compute.device)
        return Store(reuse.folder, device, reuse.limit_gb * GIGABYTE)
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint)]) from error


def _begun(path: Path, setup: Setup, progress: Told, began: float) -> Result:
    experiment, learner = setup.experiment, setup.learner
    keeper = Keeper(path, None if learner.dry else experiment.record.checkpoint, learner.book)
    with _kept(path, experiment, began, setup) as ending:
        return run_setup(setup, ending, progress, keeper, origin_of(setup))


def again(
    run: Path,
    experiment: Experiment,
    progress: Told,
    began: float,
    longer: bool,
    reuse: Reuse | None = None,
) -> Result:
    """Let a run go on that was stopped, or one that has ended, if it is to be longer now.

    Args:
        run: its folder.
        experiment: what to run; it may stop, record and evaluate in another way.
        progress: called after every round, or None.
        began: when whoever waits for the run began to wait.
        longer: whether the run may have ended.
        reuse: what need not be computed, or None.

    Raises:
        BadValue: if the folder holds no run that can go on with this experiment.
    """
    with locked(run):
        origin = origin_in(run)
        if origin is None:
            with threads.limited(experiment.compute.threads):
                dry = is_timing(run)
                setup = prepare(experiment, dry, None if dry else _book(experiment, reuse))
                return _begun(run, setup, progress, began)
        check_same(run, origin, experiment)
        if (run / "summary.json").exists() and not longer:
            hint = "let it be longer with --extend rounds=+N"
            raise BadValue("run", str(run), "has ended; there is nothing to go on with", hint)
        store = None if origin["timing_only"] else _store(experiment, reuse)
        try:
            write_text(run / "experiment.yaml", written(experiment))
            (run / "summary.json").unlink(missing_ok=True)
        except OSError as error:
            raise BadValue("run", str(run), f"cannot be written ({error.strerror})") from error
        with threads.limited(experiment.compute.threads):
            return _Again(run, experiment, origin, progress, began, store).run()


@dataclass
class _Again:
    """Tries one checkpoint after the other, the latest first, and begins from the start if none fits."""

    folder: Path
    experiment: Experiment
    origin: Mapping[str, Any]
    progress: Told
    began: float
    store: Store | None

    def run(self) -> Result:
        journal = Journal(rows(self.folder, "journal"))
        for goal in self._goals(journal):
            book = Book(journal.numbers, None if goal is None else goal.past, self.store)
            book.lenient = self.experiment.evaluate.model_dump() != self.origin["experiment"]["evaluate"]
            try:
                return self._attempt(goal, book, journal)
            except RunError as error:
                if goal is None or not is_before(error, book):
                    raise
                log.warning("%s does not fit this run: %s", goal.file.name, error.reason)
        raise AssertionError("the last attempt needs no checkpoint")

    def _attempt(self, goal: Saved | None, book: Book, journal: Journal) -> Result:
        dry = self.origin["timing_only"]
        setup = prepare(self.experiment, dry, book)
        check_data(self.origin, setup)
        rule = None if dry else self.experiment.record.checkpoint
        keeper = Keeper(self.folder, rule, book, journal, goal)
        if goal is not None:
            log.info("%s: all until round %d is repeated without training", self.folder, goal.past.round)
        with _kept(self.folder, self.experiment, self.began, setup) as ending:
            return run_setup(setup, ending, self.progress, keeper, None)

    def _goals(self, journal: Journal) -> Iterator[Saved | None]:
        device = find_device(self.experiment.compute.device)
        for file in files(self.folder):
            try:
                yield read(file, journal, device)
            except BadValue as error:
                log.warning("%s is not used: it %s", file.name, error.rule)
        yield None


@contextmanager
def _kept(path: Path, experiment: Experiment, began: float, setup: Setup) -> Iterator[Ending]:
    """Yield what writes the end of a run; let what ends it early say where it is."""
    ending = Ending(path, experiment, began)
    try:
        with ending.early():
            yield ending
    except DiskError as error:  # once there is room again
        error.go_on = f"fedsim resume {path}"  # type: ignore[attr-defined]
        raise
    finally:
        setup.learner.engine.close()
        garbage.leave(setup.learner.nbytes)


def origin_of(setup: Setup) -> dict[str, Any]:
    """Return what a run is to be known by when it goes on."""
    learner = setup.learner
    known = {"format": FORMAT, "version": __version__, "timing_only": learner.dry}
    known["experiment"] = json.loads(setup.experiment.model_dump_json(exclude={"beside"}))
    if code := place(setup.experiment.folder).code():
        known["code"] = code
    if not learner.dry:
        clients = [learner.names.client(client) for client in range(len(learner.sizes))]
        known["data"] = learner.book.name(learner.names.test, *clients).hex()
        known["model"] = learner.names.basis.hex()
    return known


def origin_in(run: Path) -> Mapping[str, Any] | None:
    """Return what a run is known by; None for one that was killed before anything happened.

    Raises:
        BadValue: if it was made by a version of fedsim that names what it computes in another way.
    """
    if not (run / FILE).exists() or not (rows(run, "rounds") or facts(run)):
        return None
    known = facts(run)
    if "app" in known:
        raise BadValue("run", str(run), "is that of a Flower app, whose local updates are not known")
    found = known.get(ORIGIN)
    if not isinstance(found, dict) or not {"format", "version", "experiment", "timing_only"} <= found.keys():
        raise BadValue("run", str(run), "was begun by a version of fedsim whose runs cannot be resumed")
    if found["format"] != FORMAT:
        then = found["version"]
        rule = f"was begun by fedsim {then}, whose runs this version ({__version__}) cannot resume"
        hint = f"install fedsim {then}"
        if then == __version__:  # its code has changed since, as in a clone
            rule, hint = (
                f"was begun by an earlier fedsim {then}, which named values otherwise",
                "begin a new run",
            )
        raise BadValue("run", str(run), rule, hint)
    return found


def check_same(run: Path, origin: Mapping[str, Any], experiment: Experiment) -> None:
    """Refuse an experiment that is not the one with which the run began.

    Raises:
        ConfigError: naming the keys that are others.
    """
    given = json.loads(experiment.model_dump_json(exclude={"beside"}))
    now, before = (dict(flat(_compared(one))) for one in (given, origin["experiment"]))
    others = [key for key in {**now, **before} if now.get(key, MISSING) != before.get(key, MISSING)]
    rule = "must be {}, as when the run began; only " + f"{', '.join(FREE[:-1])} and {FREE[-1]} may change"
    problems = [
        Problem(key, now.get(key, MISSING), rule.format(_said(before.get(key, MISSING))), source=str(run))
        for key in others
        if key.partition(".")[0] not in FREE
    ]
    if problems:
        raise ConfigError(problems)


def _said(value: Any) -> str:
    return "left out" if value is MISSING else short(value)


def _compared(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be equal; weights lie elsewhere for a run's folder, and are compared by what is in them."""
    model = given["model"]
    if isinstance(model, dict):
        given = {**given, "model": {key: value for key, value in model.items() if key != "weights"}}
    compute = {key: value for key, value in given["compute"].items() if key not in IDLE}
    return {**given, "compute": {**compute, "engine": _of_jobs(compute["engine"])}}


def _of_jobs(engine: Any) -> Any:
    """Return the engine that does the jobs: over which cluster they are done is no matter."""
    block = {"name": engine} if isinstance(engine, str) else engine
    return block.get("inner", "auto") if block["name"] == "ray" else engine


def check_data(origin: Mapping[str, Any], setup: Setup) -> None:
    """Refuse data or a model that are not those of the run.

    Raises:
        BadValue: saying which.
    """
    now = origin_of(setup)
    if now.get("data") != origin.get("data"):
        raise BadValue("data", setup.experiment.data.name, "are not the data with which the run began")
    if now.get("model") != origin.get("model"):
        rule = "is not that of the run: its code, its weights or the engine has changed"
        raise BadValue("model", setup.experiment.model.name, rule, "begin a new run")
