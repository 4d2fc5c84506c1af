"""Trace files: when recorded devices were online, and how fast they were. The formats are in docs/traces.md."""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.errors import BadValue, did_you_mean

MOST_NODES = 1_000_000
MOST = 1e12
"""No time or rate is larger: 30,000 years in seconds."""
SESSION = ("node", "start_s", "end_s")
DEVICE = ("node", "seconds_per_sample", "up_mbps", "down_mbps")
RATES = DEVICE[2:]
SETTINGS = ("period_s", "nodes")
"""What comments of a CSV file can set."""
CONVERT = "fedsim trace convert turns FedScale's pickles into one of these"

Session = tuple[float, float]


@dataclass(frozen=True)
class Availability:
    """When devices were online, over one period that repeats itself.

    Args:
        period_s: the length of the period in seconds.
        sessions: for each device its sessions, (start, end) in seconds, in order and without overlap.
    """

    period_s: float
    sessions: tuple[tuple[Session, ...], ...]


class Device(NamedTuple):
    """What a device is capable of.

    Args:
        seconds_per_sample: how long the gradient of one sample takes it, in seconds.
        up_mbps: its upload in Mbit/s, or None if that was not recorded.
        down_mbps: its download in Mbit/s, or None.
    """

    seconds_per_sample: float
    up_mbps: float | None = None
    down_mbps: float | None = None


Trace = Availability | tuple[Device, ...]
"""Either kind of trace."""


def read(path: str | Path) -> Trace:
    """Read a trace of either kind, in CSV or JSON.

    Args:
        path: the file, ending in .csv or .json.

    Returns:
        The availability or the capacity of the recorded devices.

    Raises:
        BadValue: with the key ``path``; the rule names the file, the line (in JSON the device) and the value.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     print("# period_s: 60", "node,start_s,end_s", "0,5,20.5", sep=chr(10), file=file, flush=True)
    ...     read(file.name)
    Availability(period_s=60.0, sessions=(((5.0, 20.5),),))
    """
    text = _text(path)
    return _parse_csv(path, text) if _suffix(path) == ".csv" else _parse_json(path, text)


def read_availability(path: str | Path) -> Availability:
    """Read an availability trace.

    Raises:
        BadValue: as :func:`read` does, or if the file is a capacity trace.
    """
    trace = read(path)
    if not isinstance(trace, Availability):
        raise _Place(path).bad("is a capacity trace, not one of availability")
    return trace


def read_capacity(path: str | Path) -> tuple[Device, ...]:
    """Read a capacity trace.

    Raises:
        BadValue: as :func:`read` does, or if the file is an availability trace.
    """
    trace = read(path)
    if isinstance(trace, Availability):
        raise _Place(path).bad("is an availability trace, not one of capacity")
    return trace


def write(path: str | Path, trace: Trace) -> None:
    """Write a trace so that :func:`read` returns an equal one.

    Args:
        path: the file, ending in .csv or .json.
        trace: the trace.

    Raises:
        BadValue: if the name ends otherwise or the file cannot be written.
    """
    text = _to_csv(trace) if _suffix(path) == ".csv" else _to_json(trace)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _Place(path).bad(f"cannot be written ({error.strerror or error})") from None


def require_format(path: str | Path) -> None:
    """Raise :class:`BadValue` unless a file's name ends in .csv or .json."""
    _suffix(path)


@dataclass(frozen=True)
class _Place:
    """Somewhere in a file, and how to complain about what is there."""

    path: str | Path
    where: str = ""

    def bad(self, rule: str, hint: str = "") -> BadValue:
        name = Path(self.path).name
        return BadValue(
            "path", str(self.path), f"{name}, {self.where}: {rule}" if self.where else f"{name} {rule}", hint
        )

    def number(self, name: str, given: Any, positive: bool = False) -> float:
        """Return a number from 0 (or from just above it) to :data:`MOST`, written as a number or as text."""
        try:
            number = math.nan if isinstance(given, bool) else float(given)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number <= MOST or (positive and number == 0):
            bound = "above 0" if positive else "of at least 0"
            raise self.bad(f"{name} is {_shown(given)}, must be a number {bound} and at most {MOST:g}")
        return number

    def whole(self, name: str, text: str) -> int:
        if not re.fullmatch("[0-9]{1,7}", text) or int(text) > MOST_NODES:
            raise self.bad(f"{name} is {text or 'empty'}, must be a whole number from 0 to {MOST_NODES}")
        return int(text)

    def session(self, start: Any, end: Any, before: Sequence[Session], period_s: float) -> Session:
        """Return a session after checking it against the one before and the period."""
        start_s, end_s = self.number("start_s", start), self.number("end_s", end)
        if end_s <= start_s:
            raise self.bad(f"end_s is {end_s:.15g}, must be after start_s ({start_s:.15g})")
        if before and start_s < before[-1][1]:
            raise self.bad(f"start_s is {start_s:.15g}, must not be before {before[-1][1]:.15g}, {_LAST_END}")
        if end_s > period_s:
            raise self.bad(f"end_s is {end_s:.15g}, must be at most the period of {period_s:.15g} s")
        return start_s, end_s


_LAST_END = "where the node's last session ended"


def _shown(given: Any) -> str:
    text = str(given) or "empty"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".json"):
        raise _Place(path).bad("must end in .csv or .json", CONVERT)
    return suffix


def _text(path: str | Path) -> str:
    _suffix(path)
    place = _Place(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise place.bad("does not exist") from None
    except UnicodeDecodeError as error:
        raise place.bad(f"is not UTF-8 at byte {error.start + 1}") from None
    except (OSError, ValueError) as error:
        raise place.bad(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None


class _Row(NamedTuple):
    place: _Place
    cells: dict[str, str]


def _parse_csv(path: str | Path, text: str) -> Trace:
    settings: dict[str, _Row] = {}
    rows: list[_Row] = []
    columns: list[str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        place = _Place(path, f"line {number}")
        comment = re.fullmatch(r"\s*#\s*(\w+)\s*([:=])(.*)", line)
        if comment and _is_setting(place, comment[1], comment[2]):
            if comment[1] in settings:
                raise place.bad(f"{comment[1]} is there twice")
            settings[comment[1]] = _Row(place, {"": comment[3].strip()})
        elif line.strip() and not line.lstrip().startswith("#"):
            cells = [cell.strip() for cell in _split(place, line)]
            if columns is None:
                columns = _header(place, cells)
            elif len(cells) != len(columns):
                raise place.bad(f"has {len(cells)} values, must have {len(columns)}: {','.join(columns)}")
            else:
                rows.append(_Row(place, dict(zip(columns, cells))))
    if columns is None:
        raise _Place(path).bad("is empty", f"the first line is {','.join(SESSION)} or {','.join(DEVICE)}")
    if "start_s" in columns:
        return _sessions(path, settings, rows)
    return _devices(path, rows)


def _is_setting(place: _Place, name: str, sign: str) -> bool:
    """Tell a setting from other comments; a misspelt one is refused, as nobody would see that it is not obeyed."""
    near = difflib.get_close_matches(name.lower(), SETTINGS, n=1, cutoff=0.85)
    if near and (name, sign) != (near[0], ":"):
        raise place.bad(f"# {_shown(name)} {sign} sets nothing", f"write # {near[0]}: 60")
    return bool(near)


def _split(place: _Place, line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise place.bad(f"is not CSV ({error})") from None


def _header(place: _Place, columns: list[str]) -> list[str]:
    known = SESSION if {"start_s", "end_s"} & set(columns) else DEVICE
    for missing in (name for name in known if name not in (*RATES, *columns)):
        raise place.bad(f"the column {missing} is missing", f"the first line is {','.join(known)}")
    for column in columns:
        if column not in known:
            raise place.bad(f"unknown column {column or '(empty)'}", did_you_mean(column, known))
        if columns.count(column) > 1:
            raise place.bad(f"the column {column} is there twice")
    return columns


def _sessions(path: str | Path, settings: dict[str, _Row], rows: list[_Row]) -> Availability:
    period_s = math.inf
    if "period_s" in settings:
        place, cells = settings["period_s"]
        period_s = place.number("period_s", cells[""], positive=True)
    nodes: int | None = None
    if "nodes" in settings:
        place, cells = settings["nodes"]
        nodes = place.whole("nodes", cells[""])
    found: dict[int, list[Session]] = {}
    for place, cells in rows:
        node = place.whole("node", cells["node"])
        if nodes is not None and node >= nodes:
            raise place.bad(f"node is {node}, must be below {nodes}, the number of nodes")
        own = found.setdefault(node, [])
        own.append(place.session(cells["start_s"], cells["end_s"], own, period_s))
    if not found and (not nodes or math.isinf(period_s)):
        raise _Place(path).bad(
            "is empty: it has no session", "say how many nodes are never online: # nodes: 3"
        )
    if nodes is None:
        nodes = len(found)
        for node in sorted(set(range(nodes)) - set(found))[:1]:
            hint = f"if it is never online, say so: # nodes: {max(found) + 1}"
            raise _Place(path).bad(f"has no session of node {node}, but one of node {max(found)}", hint)
    if math.isinf(period_s):
        period_s = max(own[-1][1] for own in found.values())
    return Availability(period_s, tuple(tuple(found.get(node, ())) for node in range(nodes)))


def _devices(path: str | Path, rows: list[_Row]) -> tuple[Device, ...]:
    devices: list[Device] = []
    for place, cells in rows:
        node = place.whole("node", cells["node"])
        if node != len(devices):
            raise place.bad(f"node is {node}, must be {len(devices)}", "nodes are listed in order, from 0")
        devices.append(_device(place, {**cells, **{key: cells.get(key) or None for key in RATES}}))
    if not devices:
        raise _Place(path).bad("is empty: it has no node")
    return tuple(devices)


def _device(place: _Place, given: dict[str, Any]) -> Device:
    rates = [None if given.get(k) is None else place.number(k, given[k], positive=True) for k in RATES]
    return Device(place.number("seconds_per_sample", given["seconds_per_sample"], positive=True), *rates)


def _parse_json(path: str | Path, text: str) -> Trace:
    try:
        data = json.loads(text, object_pairs_hook=partial(_once, path))
    except json.JSONDecodeError as error:
        raise _Place(path, f"line {error.lineno}").bad(f"is not JSON ({error.msg})") from None
    except BadValue:
        raise
    except (ValueError, RecursionError) as error:
        raise _Place(path).bad(f"is not JSON ({error})") from None
    nodes = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(nodes, list) or set(data) - {"period_s", "nodes"}:
        raise _Place(path).bad("must be {period_s, nodes} with a list of nodes, or only {nodes}")
    if not nodes:
        raise _Place(path).bad("is empty: it has no node")
    if "period_s" not in data and all(isinstance(one, dict) for one in nodes):
        return tuple(_device(*pair) for pair in _dicts(path, nodes))
    return _json_sessions(path, data.get("period_s"), nodes)


def _once(path: str | Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Place(path).bad(f"{_shown(next(one for one in names if names.count(one) > 1))} is there twice")
    return found


def _dicts(path: str | Path, nodes: list[dict[str, Any]]) -> Iterator[tuple[_Place, dict[str, Any]]]:
    for node, given in enumerate(nodes):
        place = _Place(path, f"node {node}")
        for key in given:
            if key not in DEVICE[1:]:
                raise place.bad(f"unknown key {_shown(key)}", did_you_mean(key, DEVICE[1:]))
        if "seconds_per_sample" not in given:
            raise place.bad("seconds_per_sample is missing")
        for key, value in given.items():
            if isinstance(value, str):
                raise place.bad(f"{key} is the text {_shown(value)}, must be a number")
        yield place, given


def _json_sessions(path: str | Path, period: Any, nodes: list[Any]) -> Availability:
    place = _Place(path, "top level")
    if isinstance(period, str) or period is None:
        raise place.bad("period_s is missing" if period is None else f"period_s is the text {_shown(period)}")
    period_s = place.number("period_s", period, positive=True)
    found: list[list[Session]] = []
    for node, sessions in enumerate(nodes):
        if not isinstance(sessions, list):
            raise _Place(path, f"node {node}").bad(f"is {_shown(sessions)}, must be a list of sessions")
        own: list[Session] = []
        for index, given in enumerate(sessions):
            place = _Place(path, f"node {node}, session {index}")
            if not isinstance(given, list) or len(given) != 2 or any(isinstance(t, str) for t in given):
                raise place.bad(f"is {_shown(given)}, must be [start, end] in seconds")
            own.append(place.session(given[0], given[1], own, period_s))
        found.append(own)
    return Availability(period_s, tuple(map(tuple, found)))


def _to_csv(trace: Trace) -> str:
    text = StringIO()
    out = csv.writer(text, lineterminator="\n")
    if isinstance(trace, Availability):
        text.write(f"# period_s: {trace.period_s!r}\n# nodes: {len(trace.sessions)}\n")
        out.writerow(SESSION)
        for node, sessions in enumerate(trace.sessions):
            out.writerows((node, start, end) for start, end in sessions)
    else:
        out.writerow(DEVICE)
        out.writerows((node, *device) for node, device in enumerate(trace))
    return text.getvalue()


def _to_json(trace: Trace) -> str:
    data: dict[str, Any]
    if isinstance(trace, Availability):
        data = {"period_s": trace.period_s, "nodes": trace.sessions}
    else:
        data = {"nodes": [{k: v for k, v in one._asdict().items() if v is not None} for one in trace]}
    return json.dumps(data, allow_nan=False) + "\n"
