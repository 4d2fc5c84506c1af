"""The record of a run: append-only facts in one SQLite file.

Anyone may read the file while the run goes on, and what has been flushed survives a kill of the process.
Simulated times are integer microseconds, sizes are bytes, work is counted in per-sample gradients.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pydantic

from fedsim.errors import MISSING, BadValue, DiskError, did_you_mean
from fedsim.record.files import from_json, replaced, to_json
from fedsim.record.plain import checked, columns_of, first, insert, plain
from fedsim.record.rows import arrays, located, rows, settled
from fedsim.record.schema import FILE, TABLES, Facts, Table

__all__ = ["FILE", "TABLES", "Record", "Table", "facts", "faults", "metrics", "read", "settled", "wide"]

WIDE = ("round", "time_s", "bytes_up", "bytes_down")
"""The first columns of :func:`wide`; no metric can have one of these names."""

ORDINARY = (
    *("send", "deliver", "lost", "late", "compute", "done", "aborted"),
    *("online", "offline", "round"),
)
"""The kinds of events that belong to every run; all others are faults."""

BATCH_ROWS = 5000


class Heard(Protocol):
    """Hears what is written of a run's rounds, as it is written."""

    def metric(self, round: int, time_us: int, name: str, value: float, node: int) -> None:
        """Hear of a measured value."""

    def round(self, round: int, time_us: int, counts: Mapping[str, float]) -> None:
        """Hear of the end of a round, and of what has been counted since the start."""


class Record:
    """Append-only facts about a run; an existing record is continued.

    Args:
        path: the SQLite file, or the run's folder, where it is called ``record.sqlite``.
        heard: hears of all numbers, too, or None.

    Rows are buffered: :meth:`flush` writes them in one transaction, and happens by itself at every
    :meth:`round` and every few thousand rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     with Record(run) as record:
    ...         record.metric(1, 2_000_000, "accuracy", 0.5)
    ...         record.round(1, 2_000_000, 80, 70, 10, 640, 0, 2)
    ...     table = metrics(run)
    >>> {name: column.tolist() for name, column in table.items()}
    {'round': [1], 'time_s': [2.0], 'bytes_up': [80], 'bytes_down': [70], 'accuracy': [0.5]}
    """

    def __init__(self, path: str | Path, heard: Heard | None = None) -> None:
        self._heard = heard
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        self._events: list[tuple[Any, ...]] = self._rows.setdefault("events", [])
        self._waiting = 0
        self._open = True
        self._file = located(path)
        with _told():
            # A server may have threads; one of them runs at a time.
            self._db = sqlite3.connect(self._file, check_same_thread=False)
            self._place = _place(self._file)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
        with self._writing():
            self._db.execute("BEGIN")  # a reader finds all tables or none
            for table, columns in TABLES.items():
                spec = ", ".join(f"{name} {kind}" for name, kind in columns.items())
                self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({spec})")

    def metric(self, round: int, time_us: int, name: str, value: float, node: int = -1) -> None:
        """Add a measured value.

        Args:
            round: the round, 0 for the initial model.
            time_us: simulated time in microseconds.
            name: what was measured, such as ``"accuracy"`` or ``"loss"``.
            value: the number; NaN and infinity are stored as "not a number".
            node: the node whose model was measured, -1 for the whole system.

        Raises:
            BadValue: if the name is the name of one of the columns that every metrics table has.
        """
        if name in WIDE:
            raise BadValue("name", name, f"is a column of every table of metrics ({', '.join(WIDE)})")
        self._add("metrics", (int(round), int(time_us), name, plain(float(value)), int(node)))
        if self._heard is not None:
            self._heard.metric(int(round), int(time_us), name, float(value), int(node))

    def round(
        self,
        round: int,
        time_us: int,
        bytes_up: int,
        bytes_down: int,
        bytes_lost: int,
        work: float,
        wasted: float,
        clients: int,
    ) -> None:
        """Add the end of a round, and write everything that is buffered.

        Args:
            round: the round that has ended.
            time_us: simulated time in microseconds.
            bytes_up: bytes sent by all nodes since the start.
            bytes_down: bytes received by all nodes since the start.
            bytes_lost: bytes that were sent and never received since the start.
            work: per-sample gradients computed since the start, wasted ones included.
            wasted: those whose result nobody used.
            clients: client updates since the start.
        """
        counts = (int(bytes_up), int(bytes_down), int(bytes_lost), float(work), float(wasted), int(clients))
        self._add("rounds", (int(round), int(time_us), *counts))
        self.flush()
        if self._heard is not None:
            names = ("bytes_up", "bytes_down", "bytes_lost", "work", "wasted", "clients")
            self._heard.round(int(round), int(time_us), dict(zip(names, counts, strict=True)))

    def event(
        self, time_us: int, kind: str, node: int, peer: int = -1, size: int = 0, round: int = -1
    ) -> None:
        """Add a message, a computation or a fault.

        Args:
            time_us: simulated time in microseconds.
            kind: ``"send"``, ``"deliver"``, ``"lost"``, ``"compute"``, ``"done"``, ``"crash"`` …
            node: where it happened.
            peer: the other end of a message, or -1.
            size: bytes of a message, per-sample gradients of a computation, or 0.
            round: the round, or -1.
        """
        self._events.append((int(time_us), kind, int(node), int(peer), int(size), int(round)))
        if len(self._events) >= BATCH_ROWS:
            self.flush()

    def presence(self, time_us: int, node: int, online: bool) -> None:
        """Add that a node came (or is, at time 0) online or offline."""
        self._add("presence", (int(time_us), int(node), int(online)))

    def write(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        """Add many rows to one table at once.

        Args:
            table: one of :data:`TABLES`.
            rows: values in the order of the table's columns.

        Raises:
            BadValue: if there is no such table, or a row is too short or too long.
        """
        columns = columns_of(table)
        self.flush()
        with self._writing():
            self._db.executemany(insert(table), checked(table, rows, len(columns)))

    def rename(self, old: str, new: str) -> None:
        """Give a metric another name, also where it has been written."""
        self.flush()
        with self._db:
            self._db.execute("UPDATE metrics SET name = ? WHERE name = ?", (new, old))

    def fact(self, key: str, value: Any) -> None:
        """Set a fact: anything that JSON can hold, and null for what is NaN or infinite; the last value stays."""
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, to_json(value)))

    def add(self, table: str, *row: int | str) -> None:
        """Add one row to a table, to be written with all that is buffered."""
        self._add(table, row)

    def restart(self, keep: Sequence[str] = ()) -> None:
        """Forget all but the journal and the facts with some keys: the run is repeated from its start."""
        marks = ", ".join("?" * len(keep))
        with self._writing():
            for table in TABLES:
                if table not in ("journal", "facts"):
                    self._db.execute(f"DELETE FROM {table}")
            self._db.execute(f"DELETE FROM facts WHERE key NOT IN ({marks})", tuple(keep))

    def flush(self) -> None:
        """Write the buffered rows in one transaction, so that readers see them.

        Raises:
            DiskError: if that cannot be; the rows stay in the buffer.
        """
        with self._writing():
            for table, rows in self._rows.items():
                if rows:
                    self._db.executemany(insert(table), rows)
        for rows in self._rows.values():
            rows.clear()
        self._waiting = 0

    def close(self) -> None:
        """Write what is buffered and close the file; a second call does nothing.

        A file that was deleted in the meantime is written once more.

        Raises:
            DiskError: if it cannot be written; what had been flushed before can still be read.
        """
        if not self._open:
            return
        self._open = False
        with contextlib.closing(self._db):
            self.flush()
            if _place(self._file) != self._place:
                self._write_again()
                return
            # Without a log beside it, the file can be copied and read anywhere; a reader may be in the way.
            self._db.execute("PRAGMA busy_timeout = 0")
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA journal_mode = DELETE")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*(() if error is None else (DiskError,))):  # the first error tells more
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with _told(), self._db:
            yield

    def _write_again(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replaced(self._file) as part, contextlib.closing(sqlite3.connect(part)) as copy:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
        except (OSError, sqlite3.OperationalError) as error:
            raise DiskError.of(FILE, error) from None

    def _add(self, table: str, row: tuple[Any, ...]) -> None:
        self._rows.setdefault(table, []).append(row)
        self._waiting += 1
        if self._waiting >= BATCH_ROWS:
            self.flush()


def read(path: str | Path, table: str, **equal: Any) -> Table:
    """Return a table, in the order in which its rows were written.

    Args:
        path: the run's folder or its SQLite file; the run may still be going on.
        table: one of :data:`TABLES`.
        **equal: keep only the rows with these values, for example ``kind="crash"``.

    Returns:
        An array for each column: int64, float64 (NaN for "none") or text; empty arrays if there are no rows.

    Raises:
        BadValue: if there is no such table or column, or the path holds no record that a run can have written.
    """
    columns = columns_of(table)
    for key in equal:
        if key not in columns:
            raise BadValue(key, MISSING, f"{table} has no such column", did_you_mean(key, columns))
    where = " AND ".join(f"{key} = ?" for key in equal) or "1"
    return arrays(path, table, where, tuple(equal.values()))


def facts(path: str | Path) -> dict[str, Any]:
    """Return all facts of a run by key; what was NaN or infinite is None.

    Raises:
        BadValue: if the path holds no record that a run can have written.
    """
    found: dict[str, Any] = {}
    for key, value in sorted(rows(path, "facts")):
        try:
            found[key] = from_json(value)
        except ValueError as error:
            raise BadValue(
                "run", str(path), f"holds no readable record (fact {key} is no JSON: {error})"
            ) from error
    try:
        Facts.model_validate(found)
    except pydantic.ValidationError as error:
        raise BadValue("run", str(path), f"holds no readable record (fact {first(error)})") from error
    return found


def faults(path: str | Path) -> Table:
    """Return the events that no ordinary run has, such as crashes, with the columns of the table ``events``.

    Raises:
        BadValue: if the path holds no record.
    """
    marks = ", ".join("?" * len(ORDINARY))
    return arrays(path, "events", f"kind NOT IN ({marks})", ORDINARY)


def metrics(path: str | Path, every_round: bool = False) -> Table:
    """Return the measurements of the whole system, one row for each evaluated round: see :func:`wide`.

    Args:
        path: the run's folder or its SQLite file.
        every_round: add the rounds between evaluations, in which strategies and clients have said something.

    If there are none, as in a run that only keeps time, there is one row for each round that has ended, with
    the columns ``round``, ``time_s``, ``bytes_up`` and ``bytes_down`` alone.

    Raises:
        BadValue: if the path holds no record.
    """
    rounds = read(path, "rounds")
    table = wide(_evaluated(path, every_round), rounds)
    if len(table["round"]):
        return table
    ended = {"round": rounds["round"], "time_s": rounds["time_us"] / 1e6}
    return {**ended, "bytes_up": rounds["bytes_up"], "bytes_down": rounds["bytes_down"]}


def _evaluated(path: str | Path, every_round: bool) -> Table:
    """Return the table of metrics, without the rounds that have nothing but what is said in every round."""
    found = read(path, "metrics")
    if every_round:
        return found
    rest = found["round"][~np.isin(found["name"], facts(path).get("every_round", []))]
    kept = np.isin(found["round"], rest) if len(rest) else np.full(len(found["round"]), True)
    return {name: column[kept] for name, column in found.items()}


def wide(metrics: Table, rounds: Table) -> Table:
    """Turn the tables ``metrics`` and ``rounds`` into one row for each round that was evaluated.

    Returns:
        Columns ``round``, ``time_s`` (of the round's last measurement, simulated seconds), ``bytes_up`` and
        ``bytes_down`` (sent and received by all nodes until the round's end) and one for each metric of the
        whole system, by name; NaN where it was not measured. Of two measurements the last one counts.
    """
    whole = metrics["node"] < 0
    chosen = {name: column[whole] for name, column in metrics.items()}
    evaluated, row = np.unique(chosen["round"], return_inverse=True)
    time_us = np.zeros(len(evaluated), dtype=np.int64)
    np.maximum.at(time_us, row, chosen["time_us"])
    order = np.argsort(rounds["round"], kind="stable")
    ended = np.searchsorted(rounds["round"][order], evaluated, side="right")
    table: Table = {"round": evaluated, "time_s": time_us / 1e6}
    for name in ("bytes_up", "bytes_down"):
        table[name] = np.concatenate(([0], rounds[name][order]))[ended].astype(np.int64)
    for name in sorted(set(chosen["name"].tolist())):
        mine = chosen["name"] == name
        table[name] = np.full(len(evaluated), math.nan)
        table[name][row[mine]] = chosen["value"][mine]
    return table


def _place(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from another one that has its name later, or None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Let a disk that is full, or gone, be told as that."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskError.of(FILE, error) from None
