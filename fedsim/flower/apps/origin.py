"""What the run of an app is to be known by when it goes on: where the app is, its sources, and what it was told."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedsim.errors import BadValue
from fedsim.flower.apps.project import Project
from fedsim.record.store import FILE as RECORD
from fedsim.record.tape import Tape
from fedsim.spec.app import App
from fedsim.spec.experiment import Experiment
from fedsim.version import __version__

REPLIES = "replies.tape"
"""The file in a run's folder that has it all, and then what the clients have replied."""

FORMAT = 1
LIBRARIES = ("flwr", "numpy", "torch")
"""What replies and their sums are computed with, in almost every app."""

SHOWN = 10
"""No more files are named that have changed."""

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Origin:
    """How the run of an app began.

    Args:
        format: of the file.
        version: of fedsim.
        experiment: the world, as JSON has it.
        root: the app's folder.
        beside: the way to it from the run's folder, should both have been moved.
        name: of the app.
        serverapp: where its ServerApp is.
        clientapp: where its ClientApp is.
        run_config: what every part of it can read.
        settings: what the simulation was told of it.
        sources: the SHA-256 of each of its Python files, by path.
        libraries: their versions, by name.
        start_s: the date at which simulated time begins.
        command: what to type to run the app again.
    """

    format: int
    version: str
    experiment: Mapping[str, Any]
    root: str
    beside: str
    name: str
    serverapp: str
    clientapp: str
    run_config: dict[str, Any]
    settings: dict[str, Any]
    sources: Mapping[str, str]
    libraries: Mapping[str, str]
    start_s: int
    command: str

    @classmethod
    def of(cls, run: Path, project: Project, experiment: Experiment, start_s: int, command: str) -> Origin:
        """Return how a run begins now, in its folder."""
        given = json.loads(experiment.model_dump_json(exclude={"beside"}))
        app = project.name, project.serverapp, project.clientapp, project.run_config
        told = project.settings.model_dump(), sources(project.root), _libraries()
        beside = os.path.relpath(project.root, run.resolve())
        return cls(FORMAT, __version__, given, str(project.root), beside, *app, *told, start_s, command)

    def packed(self) -> bytes:
        """Return it as bytes."""
        return json.dumps(asdict(self)).encode()

    def project(self, run: Path) -> Project:
        """Return the app, if it is the one that it was.

        Raises:
            BadValue: if it is not where it was, or its sources are not what they were.
        """
        root = next((one for one in (Path(self.root), (run / self.beside).resolve()) if one.is_dir()), None)
        if root is None:
            rule = f"is that of the app in {self.root}, which is not there any more"
            raise BadValue("run", str(run), rule, "put it back")
        now = sources(root)
        others = sorted(file for file in {**now, **self.sources} if now.get(file) != self.sources.get(file))
        if others:
            named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if others[SHOWN:] else "")
            rule = f"is that of an app whose sources have changed since: {named}"
            raise BadValue("run", str(run), rule, f"put them back, or begin it anew: {self.command}")
        app = self.name, self.serverapp, self.clientapp, self.run_config
        return Project(root, *app, App.model_validate(self.settings))

    def remark(self) -> None:
        """Warn of libraries that are others now."""
        now = _libraries()
        others = [
            f"{name} {old}, now {now[name]}" for name, old in self.libraries.items() if now[name] != old
        ]
        if others:
            log.warning("the run was begun with %s: what they compute may differ", ", ".join(others))


def read_origin(run: Path, tape: Tape) -> Origin:
    """Read how a run began.

    Args:
        run: its folder.
        tape: of which nothing has been read yet.

    Raises:
        BadValue: if that cannot be read, or was written by a version of fedsim that writes it in another way.
    """
    data = tape.read()
    if data is None:
        rule = f"cannot go on: the beginning of its {REPLIES} is not what was written"
        raise BadValue("run", str(run), rule, "begin it anew")
    found = json.loads(data)
    if found["format"] != FORMAT:
        rule = f"was begun by fedsim {found['version']}, whose runs of apps this version ({__version__}) cannot resume"
        raise BadValue("run", str(run), rule, f"install fedsim {found['version']}")
    return Origin(**found)


def sources(root: Path) -> dict[str, str]:
    """Return the SHA-256 of the Python files in an app's folder by path, without those of environments and of runs."""
    found = {path.relative_to(root).as_posix(): path for path in _sources(root)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())}


def _sources(root: Path) -> Iterator[Path]:
    for folder, inner, files in os.walk(root):
        if "pyvenv.cfg" in files or RECORD in files:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not name.startswith((".", "__")) and name != "site-packages"]
        yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _libraries() -> dict[str, str]:
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def lasting_s(experiment: Experiment) -> float:
    """Return after how many seconds what is kept is to outlive a loss of power."""
    rule = experiment.record.checkpoint
    return float("inf") if rule is None or rule.every_wall_s is None else rule.every_wall_s
