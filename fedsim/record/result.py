"""What a run left behind, as a notebook shows it."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import ValueNeeded
from fedsim.record.store import metrics
from fedsim.record.weights import FILE, of_round, read_arrays


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Args:
        path: the run's folder.
        summary: final numbers by name, as in ``summary.json``.
    """

    path: Path
    summary: dict[str, Any]

    def metrics(self, every_round: bool = False) -> dict[str, np.ndarray]:
        """Return one row per evaluation as columns of equal length, ready for ``pandas.DataFrame``.

        Args:
            every_round: add the rounds between evaluations, for what strategies and clients say in every round; what
                was not measured there is NaN.
        """
        return metrics(self.path, every_round)

    def weights(self, round: int | None = None) -> dict[str, np.ndarray]:
        """Return the final model by name, as in the model's ``state_dict``; of peers, their average model.

        Args:
            round: the round whose model is wanted; ``record.weights_every`` says which are kept. None is the end.

        Frozen weights and buffers are there, too: so ``load_state_dict`` takes it, strict, as tensors.
        Buffers that are not persistent are not: torch leaves it to a module's constructor to make them.

        Raises:
            ValueNeeded: if there are none, with the reason.
            BadValue: if their file is not whole, or no run's.
        """
        if self.summary.get("weights_hash") is None:
            own = "the app has saved its model itself, or nowhere: only what strategy.start aggregates is kept here"
            is_app = self.summary.get("engine") == "flower"
            raise ValueNeeded(own if is_app else "a timing-only run has no weights")
        file = Path(self.path) / FILE if round is None else of_round(Path(self.path), round)
        if round is not None and not file.exists():
            raise ValueNeeded(f"{file} is not there: record.weights_every says which rounds' models are kept")
        if not file.exists():
            raise ValueNeeded(
                f"{file} is not there: the model has arrays that cannot be saved, or somebody deleted it"
            )
        return read_arrays(file)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the curves, if they are drawn, and the numbers that there are."""
        given = {key: value for key, value in self.summary.items() if value not in (None, [], {})}
        rows = "".join(
            f"<tr><th>{html.escape(key)}</th><td>{html.escape(_short(value))}</td></tr>"
            for key, value in given.items()
        )
        page = Path(self.path) / "report.html"
        link = f"<p>report: {html.escape(str(page))}</p>" if page.is_file() else ""
        return f"{self._curves()}<table>{rows}</table>{link}"

    def _curves(self) -> str:
        picture = Path(self.path) / "figures" / "curves.png"
        if not picture.is_file():
            return ""
        data = base64.b64encode(picture.read_bytes()).decode()
        return f'<img alt="learning curves" style="max-width: 100%" src="data:image/png;base64,{data}">'


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
