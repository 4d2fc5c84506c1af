"""Offline runs of Weights & Biases."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.running.sinks import DONE, STOPPED, About, End, Sink, Told

FOLDER = "wandb"


class WandB(Sink):
    """Write an offline run into the run's folder wandb; nothing is sent, whatever the environment says.

    `wandb sync runs/*/wandb/offline-run-*` sends finished runs, if that is wanted.

    Args:
        project: the name of the project that the run is a part of.
        files: files of the run's folder that are copied when it is done.
    """

    def __init__(
        self,
        *,
        project: str = "fedsim",
        files: list[str] = ["experiment.yaml", "report.html"],  # noqa: B006, never changed
    ) -> None:
        if not project.strip():
            raise BadValue("project", project, "must not be empty")
        parts.require("wandb")
        self.project, self.files = project, files
        self._run: Any = None

    def start(self, about: About) -> None:
        """Begin the offline run anew; its id stays."""
        self._about = about
        id = _forget(about.folder / FOLDER)
        with parts.hushed():
            wandb = _library()
            own = wandb.Settings(
                console="off", disable_code=True, disable_git=True, silent=True, x_disable_stats=True
            )
            self._run = wandb.init(
                project=self.project,
                name=about.folder.name,
                dir=str(about.folder),
                id=id or secrets.token_hex(4),
                config=dict(about.settings),
                mode="offline",
                reinit="create_new",
                settings=own,
            )

    def round(self, told: Told) -> None:
        """Write the numbers of a round."""
        self._run.log({**told.numbers, "sim_time_s": told.sim_time_s}, step=told.round)

    def end(self, end: End) -> None:
        """Write the summary, copy the files, and close the run."""
        if self._run is None:
            return
        with parts.hushed():
            self._run.summary.update({f"final/{name}": value for name, value in end.numbers.items()})
            for name in self.files if end.status == DONE else ():
                if (file := self._about.folder / name).is_file():
                    copy = shutil.copy(file, self._run.dir)  # where a link would do, it warns of it
                    self._run.save(copy, base_path=self._run.dir, policy="now")
            self._run.finish(exit_code={DONE: 0, STOPPED: 255}.get(end.status, 1))


def _forget(folder: Path) -> str:
    """Remove what a run has left before it goes on, and return the id that it had."""
    id = ""
    for old in sorted(folder.glob("offline-run-*")):
        id = old.name.rpartition("-")[2]
        shutil.rmtree(old)
    return id


def _library() -> Any:
    os.environ["WANDB_ERROR_REPORTING"] = "false"  # it would reach for the network
    return parts.library("wandb")
