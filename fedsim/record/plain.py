"""Values and statements as SQLite takes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pydantic

from fedsim.errors import BadValue, did_you_mean
from fedsim.record.schema import TABLES


def first(error: pydantic.ValidationError) -> str:
    """Say in one line what the first mistake in some data is."""
    found = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg'][:1].lower()}{found['msg'][1:]}"


def columns_of(table: str) -> dict[str, str]:
    """Return the columns of a table and their types."""
    if table not in TABLES:
        raise BadValue("table", table, "there is no such table", did_you_mean(table, TABLES))
    return TABLES[table]


def insert(table: str) -> str:
    """Return the statement that adds a row to a table."""
    return f"INSERT INTO {table} VALUES ({', '.join('?' * len(TABLES[table]))})"


def checked(table: str, rows: Iterable[Sequence[Any]], width: int) -> Iterator[tuple[Any, ...]]:
    """Yield rows as SQLite takes them, each of so many values."""
    for row in rows:
        if len(row) != width:
            raise BadValue(table, row, f"a row of {table} has {width} values, this one {len(row)}")
        yield tuple(map(plain, row))


def plain(value: Any) -> Any:
    """Return a value as SQLite takes it: no NumPy, and null for what is no number."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
