"""The end of a run: everything that was computed is written, each part in spite of the others."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import DiskError, RunError
from fedsim.record.files import finite, to_json, write_text
from fedsim.running.signals import terminable
from fedsim.spec.experiment import Experiment

log = logging.getLogger("fedsim")


def clock() -> float:
    """Return real seconds from any fixed moment."""
    return time.perf_counter()


class Ending:
    """Writes what a run leaves: its weights, the record's end, its summary, and then its figures and report.

    Args:
        folder: the run's.
        experiment: what has run.
        began: when whoever waits for the run began to wait, as :func:`clock` tells.
    """

    def __init__(self, folder: Path, experiment: Experiment, began: float) -> None:
        self.folder, self.experiment, self.began = folder, experiment, began
        self.failed: list[str] = []

    @contextlib.contextmanager
    def tried(self, name: str) -> Iterator[None]:
        """Write one part; should the disk refuse it, that is kept in mind and the other parts go on.

        Where somebody has deleted the folder in the meantime, it is made again.
        """
        with self._noted("experiment.yaml"):
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                write_text(self.folder / "experiment.yaml", self.experiment.dump())
                log.warning("%s was deleted while the run went on; it is written again", self.folder)
        with self._noted(name):
            yield

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        try:
            yield
        except DiskError as error:
            self.failed.append(error.reason)
        except OSError as error:
            self.failed.append(DiskError.of(name, error).reason)

    @contextlib.contextmanager
    def early(self, noted: bool = False) -> Iterator[None]:
        """Let what ends a run early say where its folder is, and what could not be written then.

        Args:
            noted: whether to say the former also in words, for whoever reads the traceback.
        """
        try:
            with terminable():
                yield
        except (RunError, KeyboardInterrupt) as error:
            if not isinstance(error, DiskError):
                for text in dict.fromkeys(self.failed):
                    error.add_note(text)
            if noted:
                error.add_note(f"what was recorded is kept in {self.folder}")
            error.run_path = self.folder  # type: ignore[union-attr]
            raise

    def finish(self, summary: dict[str, Any], report: Callable[[Path], None]) -> dict[str, Any]:
        """Write the summary, and then figures and report, if the experiment asks for them.

        Args:
            summary: the run's final numbers by name; ``wall_total_s`` is added.
            report: writes figures and report, and fails only with a warning.

        Returns:
            The summary as it was written, with None for what is NaN or infinite.

        Raises:
            DiskError: if any part could not be written; the others have been.
        """
        summary = self._write(summary)
        if self.experiment.record.report and not self.failed:
            report(self.folder)
            if (
                self.folder / "summary.json"
            ).exists():  # who has deleted a finished run wants none of it back
                summary = self._write(summary)  # once more, as the report takes its time, too
        if self.failed:
            raise DiskError("; ".join(dict.fromkeys(self.failed)))
        return summary

    def _write(self, summary: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = finite({**summary, "wall_total_s": round(clock() - self.began, 3)})
        with self.tried("summary.json"):
            write_text(self.folder / "summary.json", to_json(told, indent=2) + "\n")
        return told
