"""Reads the SQLite file of a record: also one whose writer was killed, and nothing that no run can have written."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import BadValue
from fedsim.record.schema import FILE, LATER, TABLES, Table

KINDS = {"INTEGER": (int,), "REAL": (float, type(None)), "TEXT": (str,)}
"""What SQLite gives for the values of a column that are as they should be."""
DTYPES = {"INTEGER": np.int64, "REAL": np.float64, "TEXT": np.str_}
NAMES = {str: "text", bytes: "a blob", type(None): "null", float: "a fraction", int: "a whole number"}

PIECE = 20_000
"""So many rows are held as Python's objects at a time."""

UNFIT = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
"""How SQLite refuses a file that it would have to put in order first, where it may not write or the disk is full."""


def pieces(
    path: str | Path, table: str, where: str = "1", values: Sequence[Any] = ()
) -> Iterator[list[tuple[Any, ...]]]:
    """Yield the columns of a table, of the rows for which a condition holds, in pieces and in the order of writing.

    In pieces, as a table may have millions of rows, which Python would have to hold all at once.

    Args:
        path: the run's folder or its SQLite file.
        table: one of :data:`TABLES`.
        where: an SQL expression with a question mark for each of the values.
        values: what it compares with.

    Raises:
        BadValue: if the path holds no record, or one that no run can have written: with another table or column, or
            with a value of another kind.
    """
    with settled(path) as file:
        try:
            with contextlib.closing(_opened(file)) as db:
                if not _has(db, table, path):
                    return
                count, query = 0, f"SELECT * FROM {table} WHERE {where} ORDER BY rowid"
                cursor = db.execute(query, values)
                while some := cursor.fetchmany(PIECE):
                    held = list(zip(*some, strict=True))
                    _check(path, table, held, count)
                    count += len(some)
                    yield held
        except sqlite3.Error as error:
            raise _unreadable(path, error) from error


def _check(path: str | Path, table: str, held: Sequence[tuple[Any, ...]], before: int) -> None:
    """Refuse values that no run can have written, in rows before which there are so many others."""
    for (column, kind), given in zip(TABLES[table].items(), held, strict=True):
        for one in set(map(type, given)).difference(KINDS[_plain(kind)]):
            row = before + 1 + list(map(type, given)).index(one)
            raise _unreadable(path, f"{NAMES[one]} in column {column} of table {table}, row {row}")


def rows(path: str | Path, table: str, where: str = "1", values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Return the rows of a table for which a condition holds; see :func:`pieces`."""
    return [row for held in pieces(path, table, where, values) for row in zip(*held, strict=True)]


def arrays(path: str | Path, table: str, where: str = "1", values: Sequence[Any] = ()) -> Table:
    """Return the columns of a table by name, as arrays; see :func:`pieces`."""
    kinds = [DTYPES[_plain(kind)] for kind in TABLES[table].values()]
    found: list[list[np.ndarray]] = [[np.zeros(0, kind)] for kind in kinds]
    for held in pieces(path, table, where, values):
        for column, kind, given in zip(found, kinds, held, strict=True):
            column.append(np.array(given, kind))
    return {name: np.concatenate(column) for name, column in zip(TABLES[table], found, strict=True)}


def _plain(kind: str) -> str:
    return kind.partition(" ")[0]


@contextlib.contextmanager
def settled(path: str | Path) -> Iterator[Path]:
    """Yield a record's file; where SQLite could not read it in its place, a copy of it for a while.

    A writer that was killed while it left the write-ahead log, or any where nothing more can be written now, leaves a
    file that SQLite must first put in order. That is done in the copy: readers change nothing in a run's folder.

    Raises:
        BadValue: if the path holds no record that can be read.
    """
    file = located(path)
    if not file.is_file():
        raise BadValue("run", str(path), f"holds no {FILE}", "name a folder that a run has written")
    file = file.resolve()
    with contextlib.ExitStack() as stack:
        try:
            if not _fit(file):
                file = _copied(file, stack.enter_context(tempfile.TemporaryDirectory(prefix="fedsim-")))
        except (sqlite3.Error, OSError) as error:
            raise _unreadable(path, error) from error
        yield file


def located(path: str | Path) -> Path:
    """Return the file of a record, given it or the folder that holds it."""
    path = Path(path)
    return path / FILE if path.is_dir() else path


def _fit(file: Path) -> bool:
    try:
        with contextlib.closing(_opened(file)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in UNFIT:  # the lowest byte is the kind, the others are details
            return False
        raise
    return True


def _copied(file: Path, folder: str) -> Path:
    """Copy a record and what SQLite keeps beside it, and let SQLite put the copy in order."""
    copy = Path(folder) / FILE
    for suffix in ("", "-wal", "-journal"):
        part = Path(f"{file}{suffix}")
        if part.is_file():
            shutil.copyfile(part, f"{copy}{suffix}")
    with contextlib.closing(sqlite3.connect(copy)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    return copy


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)


def _has(db: sqlite3.Connection, table: str, path: str | Path) -> bool:
    """Tell whether there is anything yet: a run that was killed at its very start has left an empty file."""
    if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return False
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    if not columns and table in LATER:
        return False
    if columns != list(TABLES[table]):
        raise _unreadable(
            path, f"its table {table} has other columns" if columns else f"it has no table {table}"
        )
    return True


def _unreadable(path: str | Path, why: object) -> BadValue:
    return BadValue("run", str(path), f"holds no readable record ({why})")
