"""The tables of a record as files that other programs read."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

from fedsim.errors import BadValue
from fedsim.parts import needed
from fedsim.record.files import replaced, to_json, write_text
from fedsim.record.store import TABLES, Table, facts, read

Format = Literal["csv", "json", "parquet"]
FORMATS = ("csv", "json", "parquet")
OWN = ("facts", "journal")
"""Tables that are not written as such: facts are not alike, and a journal says nothing to anybody else."""


def export(run: str | Path, out: str | Path, form: Format = "csv") -> list[Path]:
    """Write each table of a run's record into a file of its own, and its facts into ``facts.json``.

    Args:
        run: the run's folder; the run may still be going on.
        out: the folder for the files; it is made if it is not there.
        form: ``"csv"``, ``"json"`` (a list of rows as objects) or ``"parquet"``, which needs pyarrow. What was not a
            number is empty, null or NaN.

    Returns:
        The files.

    Raises:
        BadValue: if the folder holds no record, the format is unknown or needs what is not installed, or the files
            cannot be written.
    """
    if form not in FORMATS:
        raise BadValue("format", form, f"must be one of {', '.join(FORMATS)}")
    tables = {name: read(run, name) for name in TABLES if name not in OWN}
    known, folder = facts(run), Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.{form}" for name in tables]
        for file, table in zip(files, tables.values(), strict=True):
            _write(file, table, form)
        write_text(folder / "facts.json", to_json(known, indent=2) + "\n")
    except OSError as error:
        raise BadValue("out", str(out), f"cannot be written ({error.strerror})") from error
    return [*files, folder / "facts.json"]


def _write(file: Path, table: Table, form: Format) -> None:
    if form == "parquet":
        _write_parquet(file, table)
    elif form == "csv":
        write_text(file, _csv(table))
    else:
        rows = zip(*(column.tolist() for column in table.values()), strict=True)
        write_text(file, to_json([dict(zip(table, row, strict=True)) for row in rows]) + "\n")


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    columns = ([("" if one != one else one) for one in column.tolist()] for column in table.values())
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue()


def _write_parquet(file: Path, table: Table) -> None:
    try:
        from pyarrow import Table as Columns  # an extra, which few need
        from pyarrow import parquet  # so is this
    except ImportError as error:
        rule = "needs pyarrow, which is not installed"
        raise BadValue("format", "parquet", rule, needed("pyarrow")) from error
    with replaced(file) as part:
        parquet.write_table(Columns.from_pydict(table), part)
