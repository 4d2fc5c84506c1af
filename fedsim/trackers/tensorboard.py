"""Event files that TensorBoard shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import parts
from fedsim.running.sinks import About, End, Sink, Told

FOLDER = "tensorboard"

FLUSH_S = 5
"""So long numbers stay in memory at most, in seconds of real time."""


class TensorBoard(Sink):
    """Write event files into the run's folder tensorboard; `tensorboard --logdir runs` shows all runs side by side.

    The wall time of every point is the simulated time in seconds, so that TensorBoard's relative axis shows it.

    Args:
        nodes: also write the distribution of each number that single nodes have.
    """

    def __init__(self, *, nodes: bool = True) -> None:
        parts.require("tensorboard")
        self.nodes = nodes
        self._settings: dict[str, Any] = {}
        self._writer: Any = None

    def start(self, about: About) -> None:
        """Begin the event files anew, with the settings as text."""
        folder = about.folder / FOLDER
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._settings = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in about.flat.items()
        }
        self._writer = _library().SummaryWriter(str(folder), flush_secs=FLUSH_S)
        lines = [f"| {key} | `{value}` |" for key, value in self._settings.items()]
        text = "\n".join(["| key | value |", "| --- | --- |", *lines])
        self._writer.add_text("settings", text, 0, walltime=0.0)

    def round(self, told: Told) -> None:
        """Write the numbers of a round."""
        place: dict[str, Any] = {"global_step": told.round, "walltime": told.sim_time_s}
        for name, value in told.numbers.items():
            self._writer.add_scalar(name, value, new_style=True, **place)
        for name, each in told.nodes.items() if self.nodes else ():
            values = np.fromiter(each.values(), float)
            values = values[np.isfinite(values)]
            if len(values):
                self._writer.add_histogram(f"{name}_of_nodes", values, **place)

    def end(self, end: End) -> None:
        """Write settings and final numbers for the page of hyperparameters, and close the files."""
        if self._writer is None:
            return
        if end.summary:
            final = {f"final/{name}": value for name, value in end.numbers.items()}
            when: Any = end.summary.get("rounds"), end.summary.get("sim_time_s")
            for name, value in final.items():
                self._writer.add_scalar(name, value, *when, new_style=True)
            for summary in _library("summary").hparams(self._settings, final):
                self._writer.file_writer.add_summary(summary, *when[:1], walltime=when[1])
        self._writer.close()


def _library(inner: str = "") -> Any:
    return parts.library(".".join(filter(None, ["torch.utils.tensorboard", inner])))


def files(run: Path) -> list[Path]:
    """Return the event files of a run."""
    return sorted((run / FOLDER).glob("events.out.tfevents.*"))
