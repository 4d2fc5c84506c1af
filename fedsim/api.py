"""What a notebook user calls: run, check, load, report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim import parts as _parts
from fedsim.beside import place
from fedsim.errors import BadValue, ConfigError, Problem, RunError, ValueNeeded
from fedsim.record.files import write_text
from fedsim.running.ending import Ending, clock
from fedsim.running.progress import Progress
from fedsim.spec.experiment import Experiment
from fedsim.spec.experiment import load as _load

if TYPE_CHECKING:
    from fedsim.running.build import Setup
    from fedsim.running.observer import Observer
    from fedsim.world.world import World

__all__ = ["Progress", "Result", "check", "load", "parts", "remarks", "report", "run"]

Source = str | Path | Mapping[str, Any]

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Args:
        path: the run's folder.
        summary: final numbers by name, as in ``summary.json``.
    """

    path: Path
    summary: dict[str, Any]

    def metrics(self, every_round: bool = False) -> dict[str, np.ndarray]:
        """Return one row per evaluation as columns of equal length, ready for ``pandas.DataFrame``.

        Args:
            every_round: add the rounds between evaluations, for what strategies and clients say in every round; what
                was not measured there is NaN.
        """
        from fedsim.record.store import metrics

        return metrics(self.path, every_round)

    def weights(self) -> dict[str, np.ndarray]:
        """Return the final model by name, as in the model's ``state_dict``; of peers, their average model.

        Frozen weights and buffers are there, too: so ``load_state_dict`` takes it, strict, as tensors.

        Raises:
            ValueNeeded: if there are none, with the reason.
            BadValue: if their file is not whole, or no run's.
        """
        from fedsim.record.weights import FILE, read_arrays

        if self.summary.get("weights_hash") is None:
            own = "the app has saved its model itself, or nowhere: only what strategy.start aggregates is kept here"
            is_app = self.summary.get("engine") == "flower"
            raise ValueNeeded(own if is_app else "a timing-only run has no weights")
        file = Path(self.path) / FILE
        if not file.exists():
            raise ValueNeeded(
                f"{file} is not there: the model has arrays that cannot be saved, or somebody deleted it"
            )
        return read_arrays(file)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in self.summary.items())
        return f"<table>{rows}</table>"


def load(source: Source, **overrides: Any) -> Experiment:
    """Load an experiment; see :func:`run` for the arguments."""
    return _load(source, _dotted(overrides))


def check(
    source: Source, overrides: Mapping[str, Any] | None = None, *, timing_only: bool = False, **more: Any
) -> Experiment:
    """Check everything about an experiment that can be checked before it runs.

    Args:
        source, overrides, more: as for :func:`run`.
        timing_only: check it for a run that only keeps time.

    Raises:
        ConfigError: with the line, the value and the rule of what is wrong.

    >>> check({"data": {"clients": 5}, "strategy": "fedavg", "topology": "ring", "stop": {"rounds": 2}}).name
    'experiment'
    """
    from fedsim.running.build import prepare

    experiment = _load(source, {**(overrides or {}), **_dotted(more)})
    prepare(experiment, dry=timing_only)
    return experiment


def remarks(experiment: Experiment) -> list[str]:
    """Return what is allowed in an experiment and may still not be what is wanted, one line each.

    >>> remarks(_load({"data": {"clients": 5}, "strategy": "fedavg", "stop": {"rounds": 2}}))
    []
    """
    from fedsim.running.threads import remark

    threads = experiment.compute.threads
    said = remark(threads)
    return [str(experiment.problem(("compute",), BadValue("threads", threads, said)))] if said else []


def run(
    source: Source,
    *,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    timing_only: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **more: Any,
) -> Result:
    """Run an experiment and leave a folder with its record and a report.

    Args:
        source: a YAML file, or the same content as a dictionary.
        overrides: values by dotted key, such as ``{"strategy.p": 0.5}``.
        out: the folder in which the run gets a folder of its own.
        timing_only: run the event plane alone: times, bytes and availability, but no training.
        progress: called after every round.
        more: overrides as keywords; two underscores stand for a dot: ``strategy__p=0.5``.

    Returns:
        The result.

    Raises:
        ConfigError: for a mistake in the experiment, before anything has run.
        RunError: if the run breaks; its ``run_path`` is the folder with what was recorded until then. A
            ``DiskError`` if something could not be written.

    >>> import tempfile
    >>> experiment = {
    ...     "data": {"clients": 4}, "model": "softmax", "stop": {"rounds": 2},
    ...     "strategy": {"name": "fedavg", "fraction_evaluate": 0.0}, "record": {"report": False},
    ... }
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = run(experiment, out=folder, seed=3)
    ...     (result.summary["seed"], result.summary["rounds"], sorted(result.metrics())[:2])
    (3, 2, ['accuracy', 'bytes_down'])
    """
    began = clock()
    experiment = _load(source, {**(overrides or {}), **_dotted(more)})
    from fedsim.running.build import prepare
    from fedsim.running.garbage import leave
    from fedsim.running.threads import limited

    with limited(experiment.compute.threads):
        setup = prepare(experiment, dry=timing_only)
        path = make_folder(Path(out), experiment, timing_only)
        ending = Ending(path, experiment, began)
        try:
            return _run(setup, ending, progress)
        except (RunError, KeyboardInterrupt) as error:
            error.run_path = path  # type: ignore[union-attr]
            ending.add_to(error)
            raise
        finally:
            leave(setup.learner.nbytes)


def report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run from what was recorded, finished or not, and return its path.

    Args:
        run: the run's folder.
        out: the folder in which report and figures are written, the run's own if it is None.

    Raises:
        ConfigError: if the folder is not a run, its record is damaged, or the report cannot be written.
    """
    from fedsim.record.report import write_report

    try:
        return write_report(Path(run), None if out is None else Path(out))
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint)]) from error
    except OSError as error:
        rule = f"its report cannot be written ({error.strerror or error})"
        raise ConfigError([Problem("run", str(run), rule)]) from error
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        # Of the right kind, but no run gives such numbers: ages before its beginning, the bytes of a galaxy.
        rule = f"its report cannot be drawn ({type(error).__name__}: {error}); its record may be damaged"
        raise ConfigError([Problem("run", str(run), rule)]) from error


def try_report(run: Path) -> None:
    """Write the report of a run that is over; should that fail, warn, for the run itself has all that it needs."""
    try:
        report(run)
    except Exception as error:
        why = error if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        log.warning("the run is done, but its report failed (%s); to try again: fedsim report %s", why, run)


def parts(kind: str) -> list[tuple[str, str]]:
    """Return name and one-line description of every installed part of a kind.

    >>> parts("churn")[0]
    ('always', 'Every node stays online.')
    """
    return [(name, _parts.summary(kind, name)) for name in _parts.names(kind)]


def _dotted(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in keywords.items()}


def make_folder(out: Path, experiment: Experiment, timing_only: bool) -> Path:
    """Make the run's folder; a run never writes over another one."""
    stem = f"{experiment.name}-{experiment.digest()[:8]}" + ("-timing" if timing_only else "")
    number = 1
    try:
        out.mkdir(parents=True, exist_ok=True)
        while True:
            path = out / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
                continue
            write_text(path / "experiment.yaml", _dump(experiment))
            return path
    except OSError as error:
        raise ConfigError([Problem("out", str(out), f"cannot be written ({error.strerror})")]) from error


def _dump(experiment: Experiment) -> str:
    """Return an experiment as YAML for the run's folder, from where it can start again: it says where its parts are."""
    folder = experiment.folder
    if folder is not None and place(folder).files():
        experiment = experiment.model_copy(update={"beside": str(folder.absolute())})
    return experiment.dump()


def _run(setup: Setup, ending: Ending, progress: Callable[[Progress], None] | None) -> Result:
    from fedsim.record.store import FILE, Record
    from fedsim.running.observer import Observer

    world, path = setup.world, ending.folder
    with Record(path) as record:
        _record_start(setup, record)
        observer = Observer(setup.experiment, setup.learner, world, record, progress)
        try:
            with scenes(setup, observer):
                _drive(setup, observer)
                observer.close()
            summary = summarise(setup, observer)
            if not setup.learner.dry:
                summary["weights_hash"] = _save_weights(setup, observer, ending)
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
    from fedsim.pulse import beats
    from fedsim.running.patience import limited

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


def _drive(setup: Setup, observer: Observer) -> None:
    if setup.has_server:
        from fedsim.flower.simulate.server import run_server

        run_server(setup.experiment, setup.strategy, setup.world, setup.learner, observer)
    else:
        from fedsim.running.garbage import settled
        from fedsim.running.peers import PeerRun

        with settled():
            PeerRun(setup.world, setup.learner, setup.strategy, observer).run()


def _record_start(setup: Setup, record: Any) -> None:
    from fedsim.running.build import describe, ordering

    for table, rows in describe(setup).items():
        record.write(table, rows)
    for name, value in ordering(setup).items():
        record.fact(name, value)
    if setup.notes:
        record.fact("notes", setup.notes)
    if setup.experiment.stop.target is not None:
        record.fact("target_accuracy", setup.experiment.stop.target.accuracy)
    record_events(setup.world, record, setup.experiment.record.events)


def record_events(world: World, record: Any, every: bool) -> None:
    """Write what happens in a world as it happens: presence and faults, and every other event if that is asked for."""
    from fedsim.world.log import FAULTS, KINDS

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
        "assumed": experiment.assume.numbers or None if dry else None,
        "notes": setup.notes or None,
        "time_to_target_s": observer.time_to_target_s,
        **costs(world),
        "dropped_updates": observer.dropped,
        "stalled": observer.stalled or None,
        "memory_mb": None if setup.needs_mb is None else max(setup.needs_mb),
        "engine": type(setup.learner.engine).__name__.lower(),
        "event_hash": world.log.hexdigest(),
        "weights_hash": None,
        "run_hash": None,
    }


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


def _save_weights(setup: Setup, observer: Observer, ending: Ending) -> str:
    """Write the final weights and return their SHA-256."""
    from fedsim.learn.trial import check_unchanged
    from fedsim.record.weights import FILE, save_arrays

    check_unchanged(setup.learner.engine.task)
    vectors = {node: model.value().detach().cpu().numpy() for node, model in sorted(observer.models.items())}
    stack = np.stack(list(vectors.values()))
    average = stack[0] if len(stack) == 1 else stack.mean(0, dtype=np.float64).astype(stack.dtype)
    tensors, start = {}, 0
    for name, shape in setup.learner.engine.task.layout:
        size = int(np.prod(shape, dtype=np.int64))
        tensors[name] = np.asarray(average[start : start + size].reshape(shape), order="C")
        start += size
    whole = setup.learner.engine.task.state(tensors)
    tensors = dict(whole)
    if not setup.has_server:
        tensors["peers/weights"] = stack
        tensors["peers/ids"] = np.array(list(vectors), dtype=np.int64)
    with ending.tried(FILE):
        save_arrays(ending.folder / FILE, tensors, list(whole))
    return hashlib.sha256(stack.tobytes()).hexdigest()
