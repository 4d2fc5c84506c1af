"""What many runs have measured, as one tidy table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.errors import BadValue, ConfigError, Problem, short
from fedsim.record.store import FILE, facts
from fedsim.spec.yamlfile import flat
from fedsim.spec.yamlfile import read as read_yaml
from fedsim.study.file import Point
from fedsim.study.kept import DONE, FAILED, POINTS
from fedsim.study.ran import Ran, ran, rest, setting

if TYPE_CHECKING:
    from pandas import DataFrame

RUN = "run"
"""The setting that every run has: its own name."""

ALIKE = ("name", "seed", "data.", "compute.", "record.", "beside")
"""What may differ between runs that are averaged, or is spoken of elsewhere."""

MOST = 5
"""So much is said of what sets runs apart."""


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
    whole, twice = _once(whole)
    if twice:
        left["left out, as the same run is there already"] = twice
    notes = [f"{why}: {', '.join(names)}" for why, names in left.items()]
    if not whole:
        shown = ", ".join(map(str, folders))
        hint = "; ".join(notes) or "fedsim run or fedsim sweep makes some"
        raise ConfigError([Problem("runs", shown, "there is no finished run", hint)])
    return whole, notes


def _once(runs: Sequence[Ran]) -> tuple[list[Ran], list[str]]:
    """Return each run once, and the names of others of the same experiment that came to the same, bit for bit."""
    places = list({one.path.resolve(): one for one in runs}.values())
    known: set[str] = set()
    kept, twice = [], []
    for one in places:
        experiment = re.sub(r"(-[0-9a-f]{8}(-timing)?)-\d+$", r"\1", one.path.name)
        what = f"{experiment} {one.summary.get('run_hash') or one.path.resolve()} {rest(one, ())}"
        if what in known:
            twice.append(one.path.name)
        else:
            known.add(what)
            kept.append(one)
    return kept, twice


def remarks(runs: Sequence[Ran], by: str) -> list[str]:
    """Say what sets runs apart, in their data or among those that are averaged, without being one of their settings.

    Args:
        runs: what is compared.
        by: the setting whose values are compared.
    """
    known = {key for one in runs for key in one.settings}
    origins = [facts(one.path).get("origin") or {} for one in runs]
    given = [dict(flat(one.get("experiment", {}))) for one in origins]
    apart = _apart(given, lambda key: key.startswith("data.") and key not in known)
    data = (
        [] if known & {"data", "data.name"} else [f"{key} is {' or '.join(values)}" for key, values in apart]
    )
    said = [f"these runs have other data: {', '.join(data[:3])}"] if data else []
    longer = [one.path.name for one, block in zip(runs, given, strict=True) if _is_longer(one, block)]
    said += [f"went on for longer than when they began: {', '.join(longer)}"] if longer else []
    groups: dict[str, list[dict[str, Any]]] = {}
    for one, block in zip(runs, given, strict=True):
        if "name" in one.settings:  # of no study, which would have said what it averages over
            groups.setdefault(setting(one, by), []).append(block)
    for name, blocks in groups.items():
        for key, values in _apart(blocks, lambda key: not key.startswith(ALIKE) and key not in (*known, by)):
            said.append(
                f"averaged within {name}, though {key} is {' or '.join(values)}; --by {key} keeps them apart"
            )
    return said[:MOST]


def _is_longer(one: Ran, begun: Mapping[str, Any]) -> bool:
    ends = ((one.summary.get(key), begun.get(f"stop.{key}")) for key in ("rounds", "sim_time_s"))
    return any(came is not None and end is not None and came > end for came, end in ends)


def _apart(blocks: Sequence[dict[str, Any]], counts: Callable[[str], bool]) -> list[tuple[str, list[str]]]:
    """Return the keys that have several values, and these as text."""
    blocks = [block for block in blocks if block]
    keys = dict.fromkeys(key for block in blocks for key in block if counts(key))
    said = {key: dict.fromkeys(short(block.get(key)) for block in blocks) for key in keys}
    return [(key, list(values)) for key, values in said.items() if len(values) > 1]


def told_by(runs: Sequence[Ran], key: str) -> list[Ran]:
    """Return runs that know a setting, also one that only their experiments know: a dotted key, or ``run``."""
    if all(key in one.settings for one in runs):
        return list(runs)
    values = [one.path.name if key == RUN else _value(one.path, key) for one in runs]
    if all(value is None for value in values):
        return list(runs)
    told = ["default" if value is None else value for value in values]
    return [
        replace(one, settings={**one.settings, key: value}) for one, value in zip(runs, told, strict=True)
    ]


def _value(run: Path, key: str) -> Any:
    """Return what a run's experiment says under a dotted key, or None."""
    try:
        found: Any = read_yaml(run / "experiment.yaml").data
    except ConfigError:
        return None
    for step in key.split("."):
        if isinstance(found, str) and step == "name":  # a part that is written as just its name
            return found
        found = found.get(step) if isinstance(found, dict) else None
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
