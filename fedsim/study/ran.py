"""A run as it is compared with others: what it has measured, and what that had cost."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.record.store import Table, read
from fedsim.study.asked import text

COSTS = {
    "rounds": ("round", 1.0, "rounds"),
    "sim_time": ("time_us", 1e6, "simulated time (s)"),
    "bytes": ("bytes_up", 1e6, "sent (MB)"),
    "gradients": ("work", 1e3, "1,000 gradients"),
    "updates": ("clients", 1.0, "client updates"),
    "energy": ("joules", 1.0, "energy (J)"),
}
"""What a run costs: a column, how much of it one unit is, and what it is called."""

WHOLE = {"bytes": "bytes_up", "gradients": "work_samples"}
"""Costs that also grow after the last round, and what the summary calls them."""

TOTALS = {name: title for name, (_, _, title) in COSTS.items()} | {"wasted": "1,000 wasted gradients"}
"""What is known of whole runs, and what it is called."""


@dataclass(frozen=True, eq=False)  # arrays cannot be told equal; a run is itself
class Ran:
    """A run as it is compared with others.

    Args:
        path: its folder.
        settings: what sets it apart, by dotted key.
        summary: its final numbers; nothing if it broke off.
        metrics: the table ``metrics``.
        rounds: the table ``rounds``.
        nodes: the table ``nodes``.
    """

    path: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Table
    rounds: Table
    nodes: Table

    def curve(self, name: str) -> dict[str, np.ndarray]:
        """Return what was measured of the whole system, and what it had cost by then.

        Args:
            name: the metric.

        Returns:
            ``value`` and a column for each of :data:`COSTS`, all of one length.
        """
        at = (self.metrics["name"] == name) & (self.metrics["node"] < 0)
        at &= np.isfinite(self.metrics["value"])
        found = {"value": self.metrics["value"][at], "time_us": self.metrics["time_us"][at].astype(float)}
        found["round"] = self.metrics["round"][at].astype(float)
        # What a round had cost at its end; nothing before the first one.
        rows = np.searchsorted(self.rounds["round"], self.metrics["round"][at], side="right")
        for column in ("bytes_up", "work", "clients"):
            found[column] = np.concatenate([[0.0], self.rounds[column]])[rows]
        # Energy is counted in all, and not by round: its share goes with the simulated time.
        found["joules"] = self.total("energy") * np.minimum(1.0, found["time_us"] / self._end_us)
        return found

    @property
    def _end_us(self) -> float:
        """When the run ended, or its last round if it broke off."""
        end_s = self.summary.get("sim_time_s")
        return max(1.0, float(self.rounds["time_us"].max(initial=0)) if end_s is None else end_s * 1e6)

    def names(self) -> list[str]:
        """Return the metrics of the whole system that were ever a number."""
        at = (self.metrics["node"] < 0) & np.isfinite(self.metrics["value"])
        return sorted(set(self.metrics["name"][at].tolist()))

    def total(self, cost: str) -> float:
        """Return how much a run has cost in all; rounds, simulated time and updates are those of its last round.

        Args:
            cost: of :data:`TOTALS`; NaN if it is not known. Of a run that broke off, until its last round.
        """
        if cost == "wasted":
            return float(self.summary.get("wasted_samples", math.nan)) / 1e3
        column, unit, _ = COSTS[cost]
        if column == "joules":
            known = self.nodes[column][np.isfinite(self.nodes[column])]  # a server may have none
            return float(known.sum()) if len(known) else math.nan
        whole = self.summary.get(WHOLE.get(cost, ""))
        return float(self.rounds[column].max(initial=0) if whole is None else whole) / unit


def ran(path: Path, settings: Mapping[str, Any]) -> Ran:
    """Read a run, also one that broke off.

    Args:
        path: its folder.
        settings: what sets it apart.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        file = path / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return Ran(path, settings, summary, *(read(path, table) for table in ("metrics", "rounds", "nodes")))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("runs", str(path), f"its record cannot be read ({error})")]) from error


def rest(ran: Ran, but: Collection[str]) -> str:
    """Return all settings but some, as text: runs with the same are a pair."""
    return str(sorted((key, str(value)) for key, value in ran.settings.items() if key not in but))


def setting(ran: Ran, key: str) -> str:
    """Return a setting of a run as text.

    Raises:
        ConfigError: if it has none of that name.
    """
    if key not in ran.settings:
        hint = did_you_mean(key, list(ran.settings)) or f"its settings are {', '.join(ran.settings)}"
        raise ConfigError([Problem("by", key, f"is no setting of {ran.path.name}", hint)])
    return text(ran.settings[key])
