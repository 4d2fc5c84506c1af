"""A project to start from: a strategy of one's own, its test, an experiment and a study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedsim.errors import ConfigError, Problem
from fedsim.study.schema import schema

FILES = Path(__file__).with_suffix("")
SCHEMAS = {"experiment.schema.json": "experiment", "study.schema.json": "study"}


def write_starter(folder: str | Path) -> list[Path]:
    """Write the files of a project that runs as it is.

    Args:
        folder: one that does not exist yet, or is empty.

    Returns:
        The files written.

    Raises:
        ConfigError: if the folder has files in it.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError([Problem("DIR", str(folder), "must be new or empty")])
    folder.mkdir(parents=True, exist_ok=True)
    written = [Path(shutil.copy(one, folder / one.stem)) for one in sorted(FILES.glob("*.in"))]
    for name, kind in SCHEMAS.items():
        written.append(folder / name)
        written[-1].write_text(f"{json.dumps(schema(kind), indent=1)}\n", encoding="utf-8")
    return written
