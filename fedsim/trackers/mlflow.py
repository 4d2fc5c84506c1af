"""Runs in a database that MLflow shows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.logs import quiet
from fedsim.running.sinks import DONE, STOPPED, About, End, Sink, Told

FILE = "mlflow.db"
KEPT = "mlflow-run"
"""The file of a run's folder that holds the run's name in the database."""

WAIT_S = 2.0
"""So long numbers stay in memory at most, in seconds of real time: the database takes its time for each call."""

MOST_METRICS, MOST_PARAMS, LONGEST = 1000, 100, 6000
"""What MLflow takes at once."""

TIME = "sim_time_s"

LOUD = "mlflow.store.db.utils"
"""Makes the database, and says so."""


class MLflow(Sink):
    """Write the run into an SQLite database beside the runs, which MLflow shows; it reaches no server.

    What is in the database of a run that goes on is not written again. The timestamp of every number is the simulated
    time in milliseconds, so that MLflow's relative axis shows it.

    Args:
        folder: the folder of the database mlflow.db and of copied files; a relative path counts from the folder
            in which the run has its own.
        experiment: the name of MLflow's experiment that the run is a part of.
        files: files of the run's folder that are copied when it is done.
    """

    def __init__(
        self,
        *,
        folder: str = "mlflow",
        experiment: str = "fedsim",
        files: list[str] = ["experiment.yaml", "report.html"],  # noqa: B006, never changed
    ) -> None:
        if "://" in folder:
            raise BadValue("folder", folder, "must be a folder on this machine")
        if not experiment.strip():
            raise BadValue("experiment", experiment, "must not be empty")
        parts.require("mlflow", "sqlalchemy", "alembic")
        self.folder, self.experiment, self.files = folder, experiment, files
        self._client: Any = None
        self._run, self._last = "", -1
        self._waiting: list[tuple[str, float, int, int]] = []
        self._written_s = 0.0

    def start(self, about: About) -> None:
        """Open the database, and the run in it, with the settings as parameters."""
        self._home, self._about = about.folder.parent / self.folder, about
        self._home.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._home / ".lock", timeout=60)
        with self._alone():
            self._client = _library("mlflow").MlflowClient(f"sqlite:///{(self._home / FILE).absolute()}")
            self._open(about)

    def _open(self, about: About) -> None:
        kept = about.folder / KEPT
        self._run = kept.read_text(encoding="utf-8").strip() if kept.exists() else ""
        known: set[str] = set()
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
            known = set(self._client.get_run(self._run).data.params)
            self._last = max(
                (one.step for one in self._client.get_metric_history(self._run, TIME)), default=-1
            )
        else:
            self._run = self._client.create_run(self._place(), run_name=about.folder.name).info.run_id
            kept.write_text(f"{self._run}\n", encoding="utf-8")
        param = _library("mlflow.entities").Param
        left = [
            param(key, str(value)[:LONGEST]) for key, value in about.flat.items() if key not in known
        ]  # what a longer run has changed stays as it was: MLflow lets nobody change a parameter
        for first in range(0, len(left), MOST_PARAMS):
            self._client.log_batch(self._run, params=left[first : first + MOST_PARAMS])

    def _place(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            artifacts = (self._home / "files").absolute().as_uri()
            return str(self._client.create_experiment(self.experiment, artifact_location=artifacts))
        return str(found.experiment_id)

    def round(self, told: Told) -> None:
        """Write the numbers of a round, together with others where rounds are short."""
        if told.round <= self._last:
            return
        when = round(told.sim_time_s * 1000), told.round
        new = [(name, value, *when) for name, value in {**told.numbers, TIME: told.sim_time_s}.items()]
        if len(self._waiting) + len(new) > MOST_METRICS:
            self._write()
        self._waiting += new
        if time.monotonic() - self._written_s >= WAIT_S:
            self._write()

    def _write(self) -> None:
        metric = _library("mlflow.entities").Metric
        with self._alone():
            for first in range(0, len(self._waiting), MOST_METRICS):
                some = self._waiting[first : first + MOST_METRICS]
                self._client.log_batch(self._run, metrics=[metric(*one) for one in some])
        self._waiting.clear()
        self._written_s = time.monotonic()

    def end(self, end: End) -> None:
        """Write the summary as numbers and tags, copy the files, and say how the run has ended."""
        if not self._run:
            return
        self._write()
        with self._alone():
            final = end.numbers
            when: Any = round(final.get(TIME, 0) * 1000), int(final.get("rounds", 0))
            for name, value in final.items():
                self._client.log_metric(self._run, f"final/{name}", value, *when)
            tags = {k: v for k, v in end.summary.items() if isinstance(v, str)} | {"reason": end.reason}
            for name, text in tags.items():
                if text:
                    self._client.set_tag(self._run, f"fedsim.{name}", text)
            for name in self.files if end.status == DONE else ():
                if (file := self._about.folder / name).is_file():
                    self._client.log_artifact(self._run, str(file))
            status = {DONE: "FINISHED", STOPPED: "KILLED"}.get(end.status, "FAILED")
            self._client.set_terminated(self._run, status)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other runs out of the database meanwhile, and MLflow from saying what it does."""
        _library(LOUD)
        with self._lock, parts.hushed(), quiet("mlflow"), quiet(LOUD), quiet("alembic"):
            yield


def _library(name: str) -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # it would reach for the network
    return parts.library(name)
