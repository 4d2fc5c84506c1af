"""FedScale's device traces, read from its pickles without running anything that such a file may contain.

See Lai et al., "FedScale: Benchmarking Model and System Performance of Federated Learning at Scale", ICML 2022.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from fedsim.errors import BadValue
from fedsim.world.traces.files import MOST, Availability, Device, Session, Trace

MOST_SESSIONS = 10_000_000
PASSES = 3
"""A gradient takes three times as long as a forward pass, which is what FedScale measured."""


def read_fedscale(path: str | Path) -> Trace:
    """Read ``client_device_capacity`` or ``client_behave_trace``.

    A device that computes a forward pass of one sample in c ms and communicates k kbit/s becomes one of 3c / 1000
    seconds per sample and k / 1000 Mbit/s in both directions. A client is online from each time of ``active`` to
    the next one of ``inactive``, and from the start if the first ``inactive`` comes first. Clients whose
    ``finish_time`` is shorter than the longest one start again until that is reached.

    Args:
        path: the pickle: a dictionary of client ids, of which only the order matters: numbers, also as text, and then
            names in their natural order.

    Returns:
        The capacity or the availability of the devices.

    Raises:
        BadValue: with the key ``path``, if the file is not one of the two, or holds anything but dictionaries,
            lists, tuples, text, numbers and None.
    """
    clients = _load(path)
    if not isinstance(clients, dict) or not all(isinstance(one, dict) for one in clients.values()):
        raise _bad(path, "must be a dictionary with a dictionary for each client")
    if not clients:
        raise _bad(path, "is empty: it has no client")
    rows = sorted(clients.items(), key=_natural)
    if all("computation" in one for _, one in rows):
        return tuple(_device(path, id, one) for id, one in rows)
    if all("active" in one for _, one in rows):
        return _availability(path, rows)
    rule = "must give every client computation and communication, or active, inactive and finish_time"
    raise _bad(path, rule)


class PlainUnpickler(pickle.Unpickler):
    """Unpickles nothing but plain data: whatever names a class or a function is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every global."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only plain data are admitted")

    def persistent_load(self, id: Any) -> NoReturn:
        """Refuse references to anything outside the file."""
        raise pickle.UnpicklingError(f"it refers to the object {id!r} outside the file")


def _load(path: str | Path) -> Any:
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        return PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a broken pickle can raise nearly anything
        reason = str(error) or type(error).__name__
        raise _bad(path, f"is not a pickle of plain data ({reason})") from None


def _bad(path: str | Path, rule: str, where: str = "") -> BadValue:
    return BadValue(
        "path", str(path), f"{Path(path).name}{where and ', '}{where}{':' if where else ''} {rule}"
    )


def _natural(row: tuple[Any, Any]) -> tuple[float, list[str | int]]:
    """Return what clients are ordered by: numbers, also as text, and then names, client_2 before client_10."""
    id = row[0]
    if isinstance(id, int | float):
        return id, []
    if re.fullmatch("[-+]?[0-9]{1,300}", str(id)):
        return int(id), [str(id)]
    # Text and numbers alternate, so that like is compared with like.
    parts = re.split("([0-9]{1,300})", str(id))
    return math.inf, [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _number(path: str | Path, id: Any, key: str, given: Any, positive: bool = False) -> float:
    fits = isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given <= MOST
    if not fits or (positive and given == 0):
        bound = "above 0" if positive else "of at least 0"
        raise _bad(
            path, f"{key} is {given!r:.40}, must be a number {bound} and at most {MOST:g}", f"client {id}"
        )
    return float(given)


def _device(path: str | Path, id: Any, given: Mapping[str, Any]) -> Device:
    ms = _number(path, id, "computation", given["computation"], positive=True)
    mbps = _number(path, id, "communication", given.get("communication"), positive=True) / 1000
    return Device(PASSES * ms / 1000, mbps, mbps)


def _availability(path: str | Path, rows: list[tuple[Any, dict[str, Any]]]) -> Availability:
    ends = [_number(path, id, "finish_time", one.get("finish_time"), positive=True) for id, one in rows]
    period_s = max(ends)
    repeated, total = [], 0
    for (id, one), end in zip(rows, ends):
        own = _sessions(path, id, one, end)
        total += len(own) * math.ceil(period_s / end)
        if total > MOST_SESSIONS:
            raise _bad(path, f"repeated until {period_s:g} s, there are more than {MOST_SESSIONS} sessions")
        repeated.append(_repeated(own, end, period_s))
    return Availability(period_s, tuple(repeated))


def _sessions(path: str | Path, id: Any, given: Mapping[str, Any], end_s: float) -> list[Session]:
    """Pair the times at which a client becomes active with those at which it becomes inactive."""
    times = {}
    for key in ("active", "inactive"):
        if not isinstance(given.get(key), list | tuple):
            raise _bad(path, f"{key} is {given.get(key)!r:.40}, must be a list of seconds", f"client {id}")
        times[key] = [_number(path, id, key, time) for time in given[key]]
    active, inactive = times["active"], times["inactive"]
    if inactive and (not active or inactive[0] < active[0]):
        active = [0.0, *active]
    if len(active) == len(inactive) + 1:
        inactive = [*inactive, max(end_s, active[-1])]
    order = [time for pair in zip(active, inactive) for time in pair]
    if len(active) != len(inactive) or order != sorted(order):
        raise _bad(path, "active and inactive must take turns and rise", f"client {id}")
    clipped = [(start, min(stop, end_s)) for start, stop in zip(active, inactive)]
    return [(start, stop) for start, stop in clipped if start < stop]


def _repeated(sessions: list[Session], end_s: float, period_s: float) -> tuple[Session, ...]:
    found = []
    for turn in range(math.ceil(period_s / end_s) if sessions else 0):
        shift = turn * end_s
        last = min((turn + 1) * end_s, period_s)  # exactly where the next repetition begins
        found += [(start + shift, min(stop + shift, last)) for start, stop in sessions]
    return tuple((start, stop) for start, stop in found if start < stop)
