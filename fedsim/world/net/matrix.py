"""Latencies between sites, from a matrix in a file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.errors import MISSING, BadValue, clip
from fedsim.world.clock import micros

Unit = Literal["one_way", "round_trip"]
Scale = Literal["s", "ms", "us"]
Missing = Literal["negative", "zero"]
MS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
"""Milliseconds in a unit."""
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
GONE = -1.0
MOST_MS = 1e9
"""No delay is larger: eleven days."""


class Matrix:
    """One-way delays between sites; node i stands at site i modulo the number of sites, if it is not placed elsewhere.

    Args:
        delays_ms: one-way delays from row to column in milliseconds [sites, sites]. A negative entry is missing:
            between two sites, the opposite direction's stands in for it, and where that is missing too, the median
            of all others; at one site (on the diagonal), 0.

    Raises:
        BadValue: if there are several sites, and every delay between two of them is missing.

    >>> matrix = Matrix(np.array([[-1.0, 20.0], [-1.0, 0.1]]))
    >>> matrix.delay_us(0, 1), matrix.delay_us(1, 0), matrix.delay_us(0, 2), matrix.delay_us(1, 3)
    (20000, 20000, 0, 100)
    """

    def __init__(self, delays_ms: np.ndarray) -> None:
        self.sites, alone = len(delays_ms), np.eye(len(delays_ms), dtype=bool)
        missing = (delays_ms < 0) & ~alone
        known = np.where(missing, delays_ms.T, delays_ms)
        between = known[~alone & (known >= 0)]
        if self.sites > 1 and not between.size:
            raise BadValue("latency_matrix", MISSING, "every delay between two sites is missing (negative)")
        self.typical_ms = float(np.median(between)) if between.size else 0.0
        self.reversed = int((missing & (known >= 0)).sum())
        self.guessed = int((missing & (known < 0)).sum())
        filled = np.where(known < 0, np.where(alone, 0.0, self.typical_ms), known)
        self._delays_us = [[micros(delay / 1000) for delay in row] for row in filled.tolist()]
        self._placed: dict[int, int] = {}

    def delay_us(self, src: int, dst: int) -> int:
        """Return the delay from one node to another in microseconds."""
        placed = self._placed
        return self._delays_us[placed.get(src, src) % self.sites][placed.get(dst, dst) % self.sites]

    def place(self, node: int, site: int | Literal["best"], key: str = "server.site") -> None:
        """Let a node stand at a site, or at the best one: that with the smallest median delay there and back.

        Args:
            node: its id.
            site: a row, or best.
            key: what says so.

        Raises:
            BadValue: if there is no such site.

        >>> matrix = Matrix(np.array([[0, 1, 9, 9], [1, 0, 2, 2], [9, 2, 0, 9], [9, 2, 9, 0]]))
        >>> matrix.place(7, "best")
        >>> matrix.delay_us(7, 2)
        2000
        """
        if site == "best":
            there = np.array(self._delays_us)
            site = int(np.argmin(np.median(there + there.T, axis=1)))
        if not site < self.sites:
            raise BadValue(key, site, f"must be less than {self.sites}, the number of sites")
        self._placed[node] = site


def read(path: str, unit: Unit = "one_way", scale: Scale = "ms", missing: Missing = "negative") -> Matrix:
    """Read a matrix of delays from a file without a header, its numbers separated by commas, tabs or spaces.

    Args:
        path: the file; if there is none of that name, it is looked for in the folder that FEDSIM_DATA names.
        unit: whether an entry is the delay in one direction, or the time there and back, of which half is taken.
        scale: the unit of an entry.
        missing: which entries are missing: negative ones, or zero between two sites as well.

    Raises:
        BadValue: if there is no such file, or it does not hold a square matrix of numbers.
    """
    lines = [line for line in _text(path).splitlines() if line.strip()]
    rows = [_row(path, number, line, scale) for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows):
            rule = f"must be square: it has {len(rows)} rows, and row {number} has {len(row)} numbers"
            raise BadValue("latency_matrix", path, rule)
    if not rows:
        raise BadValue("latency_matrix", path, "is empty")
    delays_ms = np.array(rows) * MS[scale] / (2 if unit == "round_trip" else 1)
    if missing == "zero":
        delays_ms[(delays_ms == 0) & ~np.eye(len(rows), dtype=bool)] = GONE
    return Matrix(delays_ms)


def note(path: str, unit: Unit, matrix: Matrix) -> str:
    """Say in one sentence what was made of a matrix.

    >>> note("a.csv", "round_trip", Matrix(np.array([[0.0, 5.0], [-1.0, 0.0]])))
    'latencies are half of the round trips in a.csv; 1 that is missing there is that of the opposite direction'
    """
    half = "half of the round trips" if unit == "round_trip" else "the one-way delays"
    parts = [f"latencies are {half} in {path}"]
    for count, what in (
        (matrix.reversed, "that of the opposite direction"),
        (matrix.guessed, f"the median of all, {matrix.typical_ms:g} ms"),
    ):
        be = "is" if count == 1 else "are"
        if count:
            parts.append(f"{count} that {be} missing there {be} {what}")
    return "; ".join(parts)


def _text(path: str) -> str:
    folder = os.environ.get("FEDSIM_DATA")
    for file in [Path(path), *([Path(folder) / path] if folder else [])]:
        try:
            return file.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadValue("latency_matrix", path, f"cannot be read ({reason})") from error
    raise BadValue(
        "latency_matrix", path, "no such file", "it may also be a path below the folder FEDSIM_DATA"
    )


def _row(path: str, number: int, line: str, scale: Scale) -> list[float]:
    row = []
    # A comma comes first: with tabs beside it, it may stand for a decimal point, and is refused.
    separator = next((one for one in (",", "\t") if one in line), None)
    for cell in line.split(separator):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not abs(value * MS[scale]) <= MOST_MS:
            rule = f"row {number} must hold numbers of {NAMES[scale]}, not {clip(repr(cell.strip()))}"
            raise BadValue("latency_matrix", path, rule, "separate them by commas, tabs or spaces")
        row.append(value)
    return row
