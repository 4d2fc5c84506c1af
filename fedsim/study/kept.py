"""What a study's folder has already: runs that are done, were stopped, or failed, and whether they still count."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fedsim.beside import place
from fedsim.errors import ConfigError, FedsimError
from fedsim.record.store import FILE, facts
from fedsim.spec.experiment import Experiment, load
from fedsim.spec.objects import sources
from fedsim.spec.yamlfile import read

POINTS, STUDY = "points.json", "study.yaml"
FREE = {"stop", "record", "evaluate"}
"""The blocks that may change when a run goes on."""

DONE, FAILED, WAITING = "done", "failed", "waiting"


class Failure(NamedTuple):
    """What became of a run that failed before.

    Args:
        reason: why, in one line.
        folder: what it has left, or None.
        code: the digests of the own modules that it was run with, by path.
    """

    reason: str
    folder: Path | None
    code: dict[str, str]


def finished(out: Path, experiment: Experiment) -> Path | None:
    """Return the folder of a run of this very experiment, with the own code of today, that has come to its end."""
    found = (path for path in _folders(out, experiment) if (path / "summary.json").exists())
    return next((path for path in found if _is_of_today(path, experiment)), None)


def stopped(out: Path, experiment: Experiment) -> Path | None:
    """Return the folder of a run of this very experiment that was stopped before its end, or None."""
    begun = (path for path in _folders(out, experiment) if (path / FILE).exists())
    left = (path for path in begun if not (path / "summary.json").exists())
    return next((path for path in left if _is_of_today(path, experiment)), None)


def _folders(out: Path, experiment: Experiment) -> Iterator[Path]:
    for path in sorted(out.glob(f"{experiment.name}-{experiment.digest()[:8]}*")):
        if not re.search(r"-timing(-\d+)?$", path.name):
            yield path


def _is_of_today(path: Path, experiment: Experiment) -> bool:
    """Tell whether a run is still of this experiment, with the own modules and the script's objects of today."""
    if not _is_of(path, experiment):
        return False
    file = path / "objects.py"
    written = file.read_text(encoding="utf-8") if file.exists() else ""
    return written == sources(experiment.model_dump()) and is_same(code_of(path), experiment)


def _is_of(path: Path, experiment: Experiment) -> bool:
    """Tell whether a run is still of this experiment, as its folder's name says, in what may change on the way."""
    try:
        document = read(path / "experiment.yaml")
        document.data.pop("beside", None)  # where it has begun may be gone by now
        return load(document).model_dump(include=FREE) == experiment.model_dump(include=FREE)
    except ConfigError:  # of an earlier version
        return False


def code_of(path: Path) -> dict[str, str]:
    """Return the digests of the own modules that a run was begun with, by path; nothing if that is not known."""
    try:
        origin = facts(path).get("origin") or {}
    except (OSError, ValueError, FedsimError):  # of a run that was killed at once, or is none
        return {}
    code: dict[str, str] = origin.get("code", {})
    return code


def is_same(code: dict[str, str], experiment: Experiment) -> bool:
    """Tell whether own modules are still as they were."""
    return not code or place(experiment.folder).has(code)


def earlier(folder: Path) -> dict[str, Failure]:
    """Return the runs that failed before, by the digests of their experiments.

    What was refused before it ran is none of them: whether it still is shows at once.
    """
    file = folder / POINTS
    if not file.exists():
        return {}
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {
        row["experiment"]: Failure(
            row["reason"], folder / row["folder"] if row["folder"] else None, row["code"]
        )
        for row in rows
        if row["status"] == FAILED and row.get("experiment")
    }
