"""What a notebook user calls: run, check, load, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim import parts as _parts
from fedsim.errors import MISSING, BadValue, ConfigError, Problem
from fedsim.inspection import differences, export, happened, replay_job
from fedsim.inspection import late as _late
from fedsim.inspection import told as _told
from fedsim.machine import remark_on_threads, remark_on_workers
from fedsim.record.reports import report
from fedsim.record.result import Result
from fedsim.running.ending import clock
from fedsim.running.progress import Progress
from fedsim.running.shown import telling
from fedsim.spec.experiment import Experiment
from fedsim.spec.experiment import load as _load
from fedsim.study.results import results
from fedsim.study.schema import schema
from fedsim.study.starter import write_starter

if TYPE_CHECKING:
    from fedsim.running.build import Setup

__all__ = [
    "Progress",
    "Result",
    "check",
    "differences",
    "export",
    "happened",
    "load",
    "outline",
    "parts",
    "remarks",
    "replay_job",
    "report",
]
__all__ += ["results", "resume", "retime", "run", "schema", "write_starter"]

Source = str | Path | Mapping[str, Any]


def load(source: Source, **overrides: Any) -> Experiment:
    """Load an experiment; see :func:`run` for the arguments."""
    return _load(source, _dotted(overrides))


def check(
    source: Source, overrides: Mapping[str, Any] | None = None, *, timing_only: bool = False, **more: Any
) -> Experiment:
    """Check everything about an experiment that can be checked before it runs.

    Args:
        source: as for :func:`run`.
        overrides: as for :func:`run`.
        timing_only: check it for a run that only keeps time.
        more: as for :func:`run`.

    Raises:
        ConfigError: with the line, the value and the rule of what is wrong.

    >>> check({"data": {"clients": 5}, "strategy": "fedavg", "topology": "ring", "stop": {"rounds": 2}}).name
    'experiment'
    """
    return _prepared(source, overrides, more, timing_only).experiment


def outline(
    source: Source, overrides: Mapping[str, Any] | None = None, *, timing_only: bool = False, **more: Any
) -> list[str]:
    """Check an experiment, and return that it is fine, what a run of it would use, and what it is warned of, by line.

    Args:
        source: as for :func:`run`.
        overrides: as for :func:`run`.
        timing_only: as for :func:`check`.
        more: as for :func:`run`.

    Raises:
        ConfigError: with the line, the value and the rule of what is wrong.

    >>> experiment = {"data": {"clients": 5}, "strategy": "fedavg", "model": "softmax", "stop": {"rounds": 2}}
    >>> [line.partition(":")[0] for line in outline(experiment)]
    ['experiment is fine', 'engine', 'memory', 'time']
    """
    setup = _prepared(source, overrides, more, timing_only)
    fine = f"{setup.experiment.name} is fine"
    return [
        fine,
        *_late("running.estimate").outline(setup),
        *(f"note: {line}" for line in remarks(setup.experiment)),
    ]


def _prepared(
    source: Source, overrides: Mapping[str, Any] | None, more: Mapping[str, Any], dry: bool
) -> Setup:
    setup: Setup = _late("running.begin").checked(_load(source, {**(overrides or {}), **_dotted(more)}), dry)
    return setup


def remarks(experiment: Experiment) -> list[str]:
    """Return what is allowed in an experiment and may still not be what is wanted, one line each.

    >>> remarks(_load({"data": {"clients": 5}, "strategy": "fedavg", "stop": {"rounds": 2}}))
    []
    """
    threads, workers = experiment.compute.threads, experiment.compute.workers
    said = (
        ("threads", threads, remark_on_threads(threads)),
        ("workers", workers, remark_on_workers(workers, threads)),
    )
    return [str(experiment.problem(("compute",), BadValue(*one))) for one in said if one[-1]]


def run(
    source: Source,
    *,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    timing_only: bool = False,
    progress: Callable[[Progress], None] | bool | None = None,
    store: str | Path | None = None,
    store_gb: float = 10.0,
    **more: Any,
) -> Result:
    """Run an experiment and leave a folder with its record and a report.

    Args:
        source: a YAML file, or the same content as a dictionary.
        overrides: values by dotted key, such as ``{"strategy.p": 0.5}``.
        out: the folder in which the run gets a folder of its own.
        timing_only: run the event plane alone: times, bytes and availability, but no training.
        progress: called after every round; True shows a bar, on a terminal and in a notebook.
        store: a folder of what runs have computed: what is there is not computed again, and what is not is left
            there. None takes the folder that the environment variable ``FEDSIM_STORE`` names, if it does.
        store_gb: how much the store may hold, in gigabytes of 10^9 bytes.
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
    how = began, _reuse(store, store_gb)
    with telling(progress) as told:
        result: Result = _late("running.begin").fresh(experiment, Path(out), timing_only, told, *how)
    return result


def retime(
    folder: str | Path,
    *,
    store: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path = "runs",
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Run the experiment of a run in another world, without training: all local updates come from a store.

    Args:
        folder: the run's.
        store: the store that the run left its values in; None is that of ``FEDSIM_STORE``.
        overrides: values by dotted key, such as ``{"network.up_mbps": 2}``.
        out: the folder in which the new run gets its own.
        progress: called after every round.

    Raises:
        ConfigError: if there is no store, or the folder holds no run.
        RunError: where other choices are made in the new world, which would need training; says at which node and in
            which round.
    """
    began, file, held = clock(), Path(folder) / "experiment.yaml", store or os.environ.get("FEDSIM_STORE")
    if not file.is_file():
        raise ConfigError([Problem("run", str(folder), "holds no run: there is no experiment.yaml in it")])
    if not held:
        rule = "must be the folder in which the run has left its values"
        raise ConfigError([Problem("store", MISSING, rule, "give --store, or set FEDSIM_STORE")])
    begin = _late("running.begin")
    reuse = begin.Reuse(Path(held), only=True)
    result: Result = begin.fresh(_load(file, overrides), Path(out), False, progress, began, reuse)
    return result


def resume(
    folder: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    extend: Mapping[str, float] | None = None,
    progress: Callable[[Progress], None] | bool | None = None,
    store: str | Path | None = None,
    store_gb: float = 10.0,
) -> Result:
    """Let a run go on that was stopped, killed, or has ended and is to be longer.

    All that happened is repeated from the start without training; from the latest checkpoint on, the run goes on. It
    ends as it would have ended without a break, bit for bit. A Flower app's ServerApp starts again, and is told what
    its clients had replied.

    Args:
        folder: the run's.
        overrides: values by dotted key, of ``stop``, ``record`` and ``evaluate``; for a Flower app, of ``record`` and
            ``stop.sim_time_s``.
        extend: how much longer it is to be, such as ``{"rounds": 50}`` or ``{"sim_time_s": 600}``.
        progress: called after every round; True shows a bar.
        store: as for :func:`run`.
        store_gb: how much the store may hold.

    Raises:
        ConfigError: if the folder holds no run that can go on.
        RunError: if the run breaks.

    >>> import tempfile
    >>> experiment = {
    ...     "data": {"clients": 4}, "model": "softmax", "stop": {"rounds": 2}, "strategy": "dpsgd", "topology": "ring",
    ...     "record": {"report": False},
    ... }
    >>> with tempfile.TemporaryDirectory() as out:
    ...     first = run(experiment, out=out)
    ...     resume(first.path, extend={"rounds": 3}).summary["rounds"]
    5
    """
    began, file = clock(), Path(folder) / "experiment.yaml"
    with _told():
        if not file.is_file():
            raise BadValue("run", str(folder), "holds no run: there is no experiment.yaml in it")
        experiment = _load(file, overrides)
        changes = {f"stop.{key}": _longer(experiment, key, more) for key, more in (extend or {}).items()}
        experiment = _load(file, {**(overrides or {}), **changes})
        with telling(progress) as told:
            if _is_app(experiment):
                given = overrides or {}, told, began, bool(extend)
                result: Result = _late("flower.apps.resume").resume_app(Path(folder), experiment, *given)
            else:
                how = began, bool(extend), _reuse(store, store_gb)
                result = _late("running.begin").again(Path(folder), experiment, told, *how)
        return result


def _is_app(experiment: Experiment) -> bool:
    """Tell whether what runs is a Flower app."""
    return {"clientapp", "run_config"} <= experiment.strategy.params.keys()


def _reuse(store: str | Path | None, limit_gb: float) -> Any:
    """Return what need not be computed, or None."""
    folder = store or os.environ.get("FEDSIM_STORE")
    return _late("running.begin").Reuse(Path(folder), limit_gb) if folder else None


def _longer(experiment: Experiment, key: str, more: float) -> float:
    now = getattr(experiment.stop, key, None)
    if key == "rounds" and _is_app(experiment):
        rule, hint = "an app's own code says how many rounds it has", "begin it anew, as with --run-config"
        raise BadValue("extend", key, rule, hint)
    if key not in ("rounds", "sim_time_s") or now is None:
        ends = [name for name in ("rounds", "sim_time_s") if getattr(experiment.stop, name, None) is not None]
        raise BadValue(
            "extend", key, "is not among what ends this run", f"extend {' or '.join(ends)}" * bool(ends)
        )
    if not more > 0 or (key == "rounds" and more % 1):
        rule = "must be a whole number above 0" if key == "rounds" else "must be above 0"
        raise BadValue(f"extend.{key}", more, rule)
    return float(now + more) if key == "sim_time_s" else now + int(more)


def parts(kind: str) -> list[tuple[str, str]]:
    """Return name and one-line description of every installed part of a kind.

    >>> parts("churn")[0]
    ('always', 'Every node stays online.')
    """
    return [(name, _parts.summary(kind, name)) for name in _parts.names(kind)]


def _dotted(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in keywords.items()}
