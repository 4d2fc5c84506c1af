"""What many runs have measured, as one tidy table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.errors import BadValue, ConfigError, Problem
from fedsim.spec.yamlfile import read as read_yaml
from fedsim.study.ran import Ran, ran
from fedsim.study.sweep import POINTS

if TYPE_CHECKING:
    from pandas import DataFrame


def runs(*folders: str | Path) -> list[Ran]:
    """Return all finished runs below some folders; those of a study know what sets them apart.

    A study's runs that came to a standstill, or whose weights became infinite, count as far as they came.

    Args:
        folders: of studies, of runs, or with runs in them. A study's runs for tuning are left out.

    Raises:
        ConfigError: if there is no finished run.
    """
    found: list[Ran] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError([Problem("runs", str(folder), "no such folder")])
        for path, settings in _places(folder):
            found.append(ran(path, settings))
    if not found:
        shown = ", ".join(map(str, folders))
        raise ConfigError(
            [Problem("runs", shown, "there is no finished run", "fedsim run or fedsim sweep makes some")]
        )
    return found


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
    return pd.concat([pd.DataFrame(_rows(one)) for one in runs(*folders)], ignore_index=True)


def _rows(one: Ran) -> dict[str, Any]:
    table, rounds = one.metrics, one.rounds
    rows = np.searchsorted(rounds["round"], table["round"], side="right")
    settings = {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in one.settings.items()
    }
    return {
        "run": one.path.name,
        **settings,
        "round": table["round"],
        "sim_time_s": table["time_us"] / 1e6,
        "bytes": np.concatenate([[0], rounds["bytes_up"]])[rows],
        "gradients": np.concatenate([[0], rounds["work"]])[rows],
        "node": table["node"],
        "metric": table["name"],
        "value": table["value"],
    }


def _places(folder: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    """Return the finished runs of a folder with their settings."""
    if (folder / "summary.json").exists():
        return [(folder, _settings(folder))]
    if (folder / POINTS).exists():
        rows = json.loads((folder / POINTS).read_text(encoding="utf-8"))
        return [(folder / row["folder"], row["settings"]) for row in rows if row["folder"]]
    return [place for inner in sorted(folder.iterdir()) if inner.is_dir() for place in _places(inner)]


def _settings(run: Path) -> dict[str, Any]:
    """Return what sets a run apart that belongs to no study."""
    data = read_yaml(run / "experiment.yaml").data
    strategy = data.get("strategy", {})
    return {
        "name": data.get("name"),
        "method": strategy.get("name") if isinstance(strategy, dict) else strategy,
        "seed": data.get("seed", 0),
    }
