"""Latencies between sites, from a matrix in a file."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.errors import BadValue
from fedsim.world.clock import micros


class Matrix:
    """One-way delays between sites; node i stands at site i modulo the number of sites, if it is not placed elsewhere.

    Args:
        delays_ms: delays from row to column in milliseconds [sites, sites]. A negative entry is missing: the
            opposite direction's stands in for it, and where that is missing too, the median of all others.

    >>> matrix = Matrix(np.array([[0.1, 20.0], [-1.0, 0.1]]))
    >>> matrix.delay_us(0, 1), matrix.delay_us(1, 0), matrix.delay_us(0, 2)
    (20000, 20000, 100)
    """

    def __init__(self, delays_ms: np.ndarray) -> None:
        known = np.where(delays_ms < 0, delays_ms.T, delays_ms)
        between = known[~np.eye(len(known), dtype=bool)]
        typical = float(np.median(between[between >= 0])) if (between >= 0).any() else 0.0
        filled = np.where(known < 0, typical, known)
        self.sites = len(filled)
        self._delays_us = [[micros(delay / 1000) for delay in row] for row in filled.tolist()]
        self._placed: dict[int, int] = {}

    def delay_us(self, src: int, dst: int) -> int:
        """Return the delay from one node to another in microseconds."""
        placed = self._placed
        return self._delays_us[placed.get(src, src) % self.sites][placed.get(dst, dst) % self.sites]

    def place(self, node: int, site: int | Literal["best"]) -> None:
        """Let a node stand at a site, or at the best one: that with the smallest median delay there and back.

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
            raise BadValue("server.site", site, f"must be less than {self.sites}, the number of sites")
        self._placed[node] = site


def read(path: str) -> Matrix:
    """Read a matrix of milliseconds from a CSV file without a header.

    Args:
        path: the file; if there is none of that name, it is looked for in the folder that FEDSIM_DATA names.

    Raises:
        BadValue: if there is no such file, or it does not hold a square matrix of numbers.
    """
    file = _find(path)
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue("latency_matrix", path, f"cannot be read ({error})") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1)]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows):
            rule = f"must be square: it has {len(rows)} rows, and row {number} has {len(row)} numbers"
            raise BadValue("latency_matrix", path, rule)
    if not rows:
        raise BadValue("latency_matrix", path, "is empty")
    return Matrix(np.array(rows))


def _find(path: str) -> Path:
    file = Path(path)
    folder = os.environ.get("FEDSIM_DATA")
    if not file.exists() and folder:
        file = Path(folder) / path
    if not file.is_file():
        raise BadValue(
            "latency_matrix", path, "no such file", "it may also be a path below the folder FEDSIM_DATA"
        )
    return file


def _row(path: str, number: int, line: str) -> list[float]:
    row = []
    for cell in line.split(","):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            rule = f"row {number} must hold numbers of milliseconds, not {cell.strip()!r}"
            raise BadValue("latency_matrix", path, rule)
        row.append(value)
    return row
