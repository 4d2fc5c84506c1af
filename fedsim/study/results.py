"""What many runs have measured, as one tidy table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.errors import BadValue, ConfigError, Problem, short
from fedsim.record.store import FILE, facts
from fedsim.spec.yamlfile import flat
from fedsim.spec.yamlfile import read as read_yaml
from fedsim.study.file import Point
from fedsim.study.kept import DONE, FAILED, POINTS
from fedsim.study.ran import Ran, ran

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
    return found(*folders)[0]


def found(*folders: str | Path) -> tuple[list[Ran], list[str]]:
    """Return what :func:`runs` returns, and what has been left out, and why, in a line for each reason."""
    whole: list[Ran] = []
    left: dict[str, list[str]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            rule = "is not a folder" if folder.exists() else "no such folder"
            raise ConfigError([Problem("runs", str(folder), rule)])
        for one in _places(folder):
            how, why = "left out", one.why
            try:
                if one.path is not None:
                    settings = _settings(one.path) if one.settings is None else one.settings
                    whole.append(ran(one.path, settings))
                    how = "counted as far as they came"
            except ConfigError as error:
                [problem, *_] = error.problems
                why = problem.rule if problem.key == "runs" else f"its settings cannot be read ({problem})"
            if why is not None:
                left.setdefault(f"{how}, as {why}", []).append(one.name)
    notes = [f"{why}: {', '.join(names)}" for why, names in left.items()]
    if not whole:
        shown = ", ".join(map(str, folders))
        hint = "; ".join(notes) or "fedsim run or fedsim sweep makes some"
        raise ConfigError([Problem("runs", shown, "there is no finished run", hint)])
    return whole, notes


def other_data(runs: Sequence[Ran]) -> list[str]:
    """Say in a line what sets the data of runs apart without being one of their settings, if anything does."""
    known = {key for one in runs for key in one.settings}
    origins = [facts(one.path).get("origin") or {} for one in runs]
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


class _Place(NamedTuple):
    """A run that was found.

    Args:
        name: what it is called.
        path: where it can be read, or None.
        settings: what sets it apart, if a study says so.
        why: why it is not whole, if it is not.
    """

    name: str
    path: Path | None
    settings: dict[str, Any] | None
    why: str | None = None


def _places(folder: Path, named: bool = True) -> Iterator[_Place]:
    """Yield the runs of a folder; a tracker's copy of a summary is none of them."""
    if (folder / "summary.json").exists() and (named or (folder / FILE).exists()):
        yield _Place(folder.name, folder, None)
    elif (folder / FILE).exists():
        yield _Place(folder.name, None, None, "it has not come to its end")
    elif (folder / POINTS).exists():
        for row in json.loads((folder / POINTS).read_text(encoding="utf-8")):
            why = f"it failed ({row['reason']})" if row["status"] == FAILED else "it has not been run"
            path = folder / row["folder"] if row["folder"] else None
            name = Point(row["settings"], {}).label if path is None else path.name
            yield _Place(name, path, row["settings"], None if row["status"] == DONE else why)
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
