"""All numbers of a run as one tidy table of text."""

from __future__ import annotations

import csv
from typing import IO, Any

from fedsim.running.sinks import About, End, Sink, Told

FILE = "numbers.csv"
COLUMNS = ("round", "sim_time_s", "name", "node", "value")


class CSV(Sink):
    """Write numbers.csv, which grows with the run: a row for each number; the whole system's have no node.

    Args:
        nodes: also write the numbers of single nodes.
    """

    def __init__(self, *, nodes: bool = True) -> None:
        self.nodes = nodes
        self._file: IO[str] | None = None
        self._rows: Any = None

    def start(self, about: About) -> None:
        """Begin the table anew."""
        self._file = (about.folder / FILE).open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def round(self, told: Told) -> None:
        """Write the rows of a round."""
        assert self._file is not None  # it has started
        place = told.round, told.sim_time_s
        self._rows.writerows((*place, name, None, value) for name, value in told.numbers.items())
        if self.nodes:
            for name, each in told.nodes.items():
                self._rows.writerows((*place, name, node, value) for node, value in each.items())
        self._file.flush()

    def end(self, end: End) -> None:
        """Close the table."""
        if self._file is not None:
            self._file.close()
