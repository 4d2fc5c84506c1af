"""The folder that a run gets."""

from __future__ import annotations

import re
from pathlib import Path

from fedsim.beside import place
from fedsim.errors import ConfigError, Problem
from fedsim.record.files import write_text
from fedsim.spec.experiment import Experiment
from fedsim.spec.objects import sources

TIMING = "-timing"


def make_folder(out: Path, experiment: Experiment, timing_only: bool) -> Path:
    """Make the run's folder; a run never writes over another one."""
    stem = f"{experiment.name}-{experiment.digest()[:8]}" + (TIMING if timing_only else "")
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
            write_text(path / "experiment.yaml", written(experiment))
            if own := sources(experiment.model_dump()):
                write_text(path / "objects.py", own)
            return path
    except OSError as error:
        raise ConfigError([Problem("out", str(out), f"cannot be written ({error.strerror})")]) from error


def is_timing(path: Path) -> bool:
    """Tell from a run's folder whether it keeps time only.

    >>> is_timing(Path("runs/quickstart-0a1b2c3d-timing-2")), is_timing(Path("runs/timing-0a1b2c3d"))
    (True, False)
    """
    return re.search(rf"-[0-9a-f]{{8}}{TIMING}(-\d+)?$", path.name) is not None


def written(experiment: Experiment) -> str:
    """Return an experiment as YAML for the run's folder, from where it can start again: it says where its parts are."""
    folder = experiment.folder
    if folder is not None and place(folder).files():
        experiment = experiment.model_copy(update={"beside": str(folder.absolute())})
    model = experiment.model.settled(experiment.home)
    return experiment.model_copy(update={"model": model}).dump()
