"""Lets the run of an app go on that was stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from fedsim.errors import MISSING, BadValue, ConfigError, Problem
from fedsim.flower.apps.app import Begun, Source, explained, simulated
from fedsim.flower.apps.origin import REPLIES, lasting_s, read_origin
from fedsim.flower.apps.project import importable
from fedsim.flower.apps.worldfile import foreign
from fedsim.record.files import write_text
from fedsim.record.result import Result
from fedsim.record.store import FILE
from fedsim.record.tape import Tape
from fedsim.running.begin import check_same
from fedsim.running.folder import written
from fedsim.running.lock import locked
from fedsim.running.progress import Progress
from fedsim.spec.experiment import Experiment


def resume_app(
    run: Path,
    experiment: Experiment,
    changed: Iterable[str],
    progress: Callable[[Progress], None] | None,
    began: float,
    longer: bool,
) -> Result:
    """Let the run of an app go on: its ServerApp starts again, and is told what its clients have replied.

    Args:
        run: its folder.
        experiment: its world; it may stop and record in another way.
        changed: the dotted keys that are given now.
        progress: called after every round.
        began: when whoever waits for the run began to wait.
        longer: whether the run may have ended.

    Raises:
        BadValue: if the folder holds no run of an app that can go on.
        ConfigError: if something is given that cannot change.
        RunError: if the app breaks, or does not do again what it did.
    """
    if not (run / REPLIES).is_file():
        rule = "is that of a Flower app, and the replies of its clients were not kept"
        raise BadValue("run", str(run), rule, "begin it anew, with --checkpoint")
    problems = [
        Problem(key, MISSING, "an app brings this itself", source=str(run))
        for key in sorted(foreign(changed))
    ]
    if problems:
        raise ConfigError(problems)
    with locked(run), Tape(run / REPLIES, lasting_s(experiment)) as tape:
        origin = read_origin(run, tape)
        check_same(run, {"experiment": origin.experiment}, experiment)
        if (run / "summary.json").exists() and not longer:
            hint = "where the world has a stop.sim_time_s, it can be longer with --extend sim_time_s=+N"
            raise BadValue("run", str(run), "has ended; there is nothing to go on with", hint)
        source = Source.of(origin.project(run), origin.command)
        origin.remark()
        _clear(run, experiment)
        with importable(source.project.root), explained(source):
            return simulated(source, experiment, Begun(run, tape, origin.start_s), began, progress)


def _clear(run: Path, experiment: Experiment) -> None:
    """Take away what is written again from the start."""
    try:
        write_text(run / "experiment.yaml", written(experiment))
        for name in ("summary.json", FILE, f"{FILE}-wal", f"{FILE}-shm"):
            (run / name).unlink(missing_ok=True)
    except OSError as error:
        raise BadValue("run", str(run), f"cannot be written ({error.strerror})") from error
