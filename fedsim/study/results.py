"""What many runs have measured, as one tidy table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import BadValue, ConfigError, Problem, did_you_mean, short
from fedsim.record.store import FILE, Table, facts, read
from fedsim.spec.yamlfile import flat
from fedsim.spec.yamlfile import read as read_yaml
from fedsim.study.file import Point
from fedsim.study.sweep import DONE, FAILED, POINTS

if TYPE_CHECKING:
    from pandas import DataFrame

COSTS = {
    "rounds": ("round", 1.0, "rounds"),
    "sim_time": ("time_us", 1e6, "simulated time (s)"),
    "bytes": ("bytes_up", 1e6, "sent (MB)"),
    "gradients": ("work", 1e3, "1,000 gradients"),
    "energy": ("joules", 1.0, "energy (J)"),
}
"""What a run costs: a column, how much of it one unit is, and what it is called."""


@dataclass(frozen=True)
class Ran:
    """A run as it is compared with others.

    Args:
        path: its folder.
        settings: what sets it apart, by dotted key.
        summary: its final numbers.
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
            ``value`` and a column for each of :data:`COSTS` that grows round by round, all of one length.
        """
        at = (self.metrics["name"] == name) & (self.metrics["node"] < 0)
        at &= np.isfinite(self.metrics["value"])
        found = {"value": self.metrics["value"][at], "time_us": self.metrics["time_us"][at].astype(float)}
        found["round"] = self.metrics["round"][at].astype(float)
        # What a round had cost at its end; nothing before the first one.
        rows = np.searchsorted(self.rounds["round"], self.metrics["round"][at], side="right")
        for column in ("bytes_up", "work"):
            found[column] = np.concatenate([[0.0], self.rounds[column]])[rows]
        return found

    def names(self) -> list[str]:
        """Return the metrics of the whole system."""
        return sorted(set(self.metrics["name"][self.metrics["node"] < 0].tolist()))


def runs(*folders: str | Path) -> list[Ran]:
    """Return all finished runs below some folders; those of a study know what sets them apart.

    Args:
        folders: of studies, of runs, or with runs in them. A study's runs for tuning are left out.

    Raises:
        ConfigError: if there is no finished run.
    """
    return found(*folders)[0]


def found(*folders: str | Path) -> tuple[list[Ran], list[str]]:
    """Return what :func:`runs` returns, and what has been left out, and why, in a line for each reason."""
    whole: list[Ran] = []
    left: dict[str, list[str]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            rule = "is not a folder" if folder.exists() else "no such folder"
            raise ConfigError([Problem("runs", str(folder), rule)])
        for path, settings, why in _places(folder):
            try:
                if why is None:
                    whole.append(_read(path, _settings(path) if settings is None else settings))
                    continue
            except ConfigError as error:
                [problem, *_] = error.problems
                why = problem.rule if problem.key == "runs" else f"its settings cannot be read ({problem})"
            left.setdefault(why, []).append(path.name)
    notes = [f"left out, as {why}: {', '.join(names)}" for why, names in left.items()]
    if not whole:
        shown = ", ".join(map(str, folders))
        hint = "; ".join(notes) or "fedsim run or fedsim sweep makes some"
        raise ConfigError([Problem("runs", shown, "there is no finished run", hint)])
    return whole, notes


def other_data(runs: Sequence[Ran]) -> list[str]:
    """Say in a line what sets the data of runs apart without being one of their settings, if anything does."""
    known = {key for ran in runs for key in ran.settings}
    origins = [facts(ran.path).get("origin") or {} for ran in runs]
    blocks = [dict(flat({"data": one["experiment"]["data"]})) for one in origins if "experiment" in one]
    said = {
        key: dict.fromkeys(short(block.get(key)) for block in blocks) for block in blocks for key in block
    }
    apart = [
        f"{key} is {' or '.join(values)}"
        for key, values in said.items()
        if len(values) > 1 and key not in known
    ]
    if not apart or known & {"data", "data.name"}:  # of other data all else may differ, too
        return []
    return [f"these runs have other data: {', '.join(apart[:3])}"]


def results(*folders: str | Path) -> DataFrame:
    """Return all that runs have measured as one tidy table.

    Args:
        folders: as for :func:`runs`.

    Returns:
        A row for each measured number: ``run`` (the folder's name), a column for each setting, ``round``,
        ``sim_time_s``, ``bytes`` (sent by all nodes by the end of that round), ``gradients``, ``node`` (-1 for the
        whole system), ``metric`` and ``value``.

    Raises:
        ConfigError: if there is no finished run.
        BadValue: if pandas is not installed.
    """
    try:
        import pandas as pd  # takes long, and most never need it
    except ModuleNotFoundError:
        raise BadValue("pandas", "missing", "is needed for tables", "pip install pandas") from None
    return pd.concat([pd.DataFrame(_rows(ran)) for ran in runs(*folders)], ignore_index=True)


def _rows(ran: Ran) -> dict[str, Any]:
    table, rounds = ran.metrics, ran.rounds
    rows = np.searchsorted(rounds["round"], table["round"], side="right")
    settings = {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in ran.settings.items()
    }
    return {
        "run": ran.path.name,
        **settings,
        "round": table["round"],
        "sim_time_s": table["time_us"] / 1e6,
        "bytes": np.concatenate([[0], rounds["bytes_up"]])[rows],
        "gradients": np.concatenate([[0], rounds["work"]])[rows],
        "node": table["node"],
        "metric": table["name"],
        "value": table["value"],
    }


def _places(folder: Path, named: bool = True) -> Iterator[tuple[Path, dict[str, Any] | None, str | None]]:
    """Yield the runs of a folder, with their settings if a study gave them, and why they cannot be read, if so.

    A tracker's copy of a summary is none of them.
    """
    if (folder / "summary.json").exists() and (named or (folder / FILE).exists()):
        yield folder, None, None
    elif (folder / FILE).exists():
        yield folder, None, "it has not come to its end"
    elif (folder / POINTS).exists():
        for row in json.loads((folder / POINTS).read_text(encoding="utf-8")):
            if row["status"] == DONE:
                yield folder / row["folder"], row["settings"], None
            else:
                why = f"it failed ({row['reason']})" if row["status"] == FAILED else "it has not been run"
                yield Path(Point(row["settings"], {}).label), row["settings"], why
    else:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir():
                yield from _places(inner, False)


def _settings(run: Path) -> dict[str, Any]:
    """Return what sets a run apart that belongs to no study."""
    data = read_yaml(run / "experiment.yaml").data
    strategy = data.get("strategy", {})
    return {
        "name": data.get("name"),
        "method": strategy.get("name") if isinstance(strategy, dict) else strategy,
        "seed": data.get("seed", 0),
    }


def _read(path: Path, settings: Mapping[str, Any]) -> Ran:
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        return Ran(path, settings, summary, *(read(path, table) for table in ("metrics", "rounds", "nodes")))
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("runs", str(path), f"its record cannot be read ({error})")]) from error


def setting(ran: Ran, key: str) -> str:
    """Return a setting of a run as text.

    Raises:
        ConfigError: if it has none of that name.
    """
    if key not in ran.settings:
        hint = did_you_mean(key, list(ran.settings)) or f"its settings are {', '.join(ran.settings)}"
        raise ConfigError([Problem("by", key, f"is no setting of {ran.path.name}", hint)])
    value = ran.settings[key]
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
