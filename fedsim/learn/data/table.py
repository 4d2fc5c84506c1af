"""Tables: CSV and Parquet files with one sample in each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue, clip, did_you_mean
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, damaged, dataset, library, located
from fedsim.learn.several import leaves
from fedsim.machine import require_room

Kind = Literal["number", "category"]
Array = NDArray[Any]

ENDINGS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
"""What reads a file, by its ending."""

NOTHING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"]
"""What stands in a CSV file where a value is missing."""

MOST_BLOCK = 2**31 - 1


def table(
    *,
    path: str,
    label: str,
    features: list[str] | None = None,
    group: str | None = None,
    types: dict[str, Kind] | None = None,
    standardise: bool = False,
    test_path: str | None = None,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return the rows of a CSV or Parquet file; needs pyarrow.

    A column of numbers is one input. A column of text, dates or truth values is a category: one input for each of its
    distinct values in their order, 1 where a row has it and 0 elsewhere; a value that only the test has gives zeros.

    Args:
        path: the file, ending in .csv, .tsv or .parquet, from the current folder or from ``data.root``; its first
            row names the columns.
        label: the column to be predicted: whole numbers or text are classes, other numbers are targets.
        features: the columns that are inputs, in this order; null is all but the label and the group.
        group: the column that says whose a row is, for ``partition: natural``; where the second file has it, too, it
            says whose test a row is.
        types: columns that are not what they look like, as number or category: ``{postcode: category}``; a label of
            whole numbers that is to be predicted as a number is ``number``.
        standardise: whether to subtract the training rows' mean from each column of numbers, and divide by their
            standard deviation.
        test_path: a second file with the test; where it is null, a test is split off.
        test_share: the part of each class that becomes the test, where there is no second file.
        seed: which rows those are.
        root: the data folder.

    Returns:
        Inputs [N, D] in float32.

    Raises:
        BadValue: if a file or a column is not there, or a value is missing.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
    ...     print("age,town,ill", *["30,Rome,no", "50,Oslo,yes"] * 5, sep=chr(10), file=file, flush=True)
    ...     made = table(path=file.name, label="ill", seed=0)
    >>> made.x[0].tolist(), made.y[0].item(), made.classes
    ([50.0, 1.0, 0.0], 1, 2)
    """
    known = [_Table(path, "path", root)]
    known += [_Table(test_path, "test_path", root, known[0])] if test_path is not None else []
    kinds = dict(types or {})
    names = known[0].names
    for key, wanted in (("label", [label]), ("group", [group] if group else []), ("types", list(kinds))):
        for name in wanted:
            _require(key, name, names)
    chosen = [one for one in names if one not in (label, group)] if features is None else features
    for name in chosen:
        _require("features", name, names)
    if not chosen or label in chosen:
        raise BadValue(
            "features", chosen, f"there must be columns besides the label {label}, and not that one"
        )
    # Standardised first and rounded then: what differs in large numbers, such as times, would be gone.
    inputs, numbers = _inputs(known, chosen, kinds, np.float64 if standardise else np.float32)
    labels = [one.column(label) for one in known]
    if kinds.get(label) == "category":
        _require_alike(known, label, [column.dtype.kind for column in labels])
    labels = [_label(values, label, kinds.get(label)) for values in labels]
    groups = [one.column(group) if group in one.names else None for one in known]
    if group and groups[-1] is not None:
        _require_alike(known, group, [values.dtype.kind for values in groups if values is not None])
    parts = [Samples(x, y, whose) for x, y, whose in zip(inputs, labels, groups, strict=True)]
    train, test = parts[0], parts[1] if parts[1:] else None
    made = dataset(Path(path).stem, train, test, test_share=test_share, seed=seed)
    return _standardised(made, numbers) if standardise else made


class _Table:
    """The columns of a file; text in one that it is to be like is text here, even if it looks like numbers."""

    def __init__(self, path: str, key: str, root: Path | None, like: _Table | None = None) -> None:
        self.path, self.key = path, key
        self._columns = _read(path, key, located(path, root, key), {} if like is None else like.kinds())
        try:
            self.names: list[str] = self._columns.column_names
        except UnicodeDecodeError as error:
            raise damaged(key, path, ValueError("its first line is no text")) from error
        double = next((name for name in self.names if self.names.count(name) > 1), None)
        if double is not None:
            raise BadValue(key, path, f"has two columns with the name {clip(double)}")
        if not self._columns.num_rows:
            raise BadValue(key, path, "has no rows")

    def kinds(self) -> dict[str, Any]:
        """Return what each column holds that is not numbers."""
        is_ = library("pyarrow.types")
        fields = [(field.name, field.type) for field in self._columns.schema]
        numbers = (is_.is_integer, is_.is_floating, is_.is_null)
        return {name: kind for name, kind in fields if not any(one(kind) for one in numbers)}

    def column(self, name: str) -> Array:
        """Return the values of a column, all of which must be there."""
        _require(self.key, name, self.names)
        found = self._plain(name)
        values = np.asarray(found.to_pylist() if str(found.type) == "bool" else found.to_numpy())
        gone = np.asarray(found.is_null())
        if values.dtype.kind == "f":
            gone = gone | np.isnan(values)
        if gone.any():
            rule = f"row {int(gone.argmax()) + 1} has no value in the column {clip(name)}"
            rule += f", nor have {gone.sum() - 1} more" if gone.sum() > 1 else ""
            raise BadValue(
                self.key, self.path, rule, "fill it in, leave the row out, or leave the column out"
            )
        return values if values.dtype.kind in "iufb" else values.astype(str)

    def _plain(self, name: str) -> Any:
        """Return a column of numbers, truth values, text or dates: what is one of those in another form becomes so."""
        arrow, is_ = (library(module) for module in ("pyarrow", "pyarrow.types"))
        found = self._columns[name]
        if is_.is_dictionary(found.type):
            found = found.cast(found.type.value_type)
        if is_.is_decimal(found.type):
            return found.cast(arrow.float64())
        if is_.is_nested(found.type):
            rule = f"the column {clip(name)} holds {clip(str(found.type))}, not one number or text in a row"
            raise BadValue(self.key, self.path, rule, "leave it out")
        if not (is_.is_binary(found.type) or is_.is_large_binary(found.type)):
            return found
        try:
            return found.cast(arrow.string())
        except arrow.ArrowException as error:
            rule = f"the column {clip(name)} is no text in UTF-8"
            raise BadValue(self.key, self.path, rule, "save the file in UTF-8, or leave it out") from error


def _read(path: str, key: str, place: Path, kinds: Mapping[str, Any]) -> Any:
    """Return what pyarrow makes of a file; of CSV, columns of the kinds given are of those kinds."""
    ending = place.suffix.lower()
    if ending not in ENDINGS:
        raise BadValue(key, path, f"must end in {', '.join(ENDINGS)}")
    arrow, reader = (library(name) for name in ("pyarrow", f"pyarrow.{ENDINGS[ending]}"))
    try:
        size = place.stat().st_size
        require_room(key, path, 4.0 * size, "its rows")
        if ENDINGS[ending] == "parquet":
            return reader.read_table(place)
        # As one block: else the type of a column would depend on where a block ends.
        options = reader.ReadOptions(block_size=min(max(size + 1, 1 << 20), MOST_BLOCK))
        parse = reader.ParseOptions(delimiter="\t" if ending == ".tsv" else ",")
        convert = reader.ConvertOptions(
            column_types=dict(kinds), strings_can_be_null=True, null_values=NOTHING
        )
        return reader.read_csv(place, options, parse, convert)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise damaged(key, path, error) from error


def _require(key: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise BadValue(key, name, "there is no such column", did_you_mean(name, names))


def _require_alike(known: list[_Table], name: str, kinds: list[Any]) -> None:
    """Refuse a column whose categories would be written in one way in training, and in another in the test."""
    if len(set(kinds)) > 1:
        rule = f"the column {clip(name)} holds values of another type than in {clip(known[0].path)}"
        raise BadValue(known[1].key, known[1].path, rule, "write it alike in both files")


def _inputs(
    known: list[_Table], chosen: list[str], kinds: Mapping[str, Kind], dtype: type[np.floating[Any]]
) -> tuple[list[Array], list[int]]:
    """Return the inputs of each file [N, D], and which of them are numbers as they stand in the file."""
    pieces: list[list[Array]] = [[] for _ in known]
    numbers, width = [], 0
    for name in chosen:
        columns = [one.column(name) for one in known]
        kind = kinds.get(name) or ("number" if columns[0].dtype.kind in "iuf" else "category")
        values = np.unique(columns[0])
        if kind == "category":
            _require_alike(known, name, [column.dtype.kind == "U" for column in columns])
        numbers += [width] if kind == "number" else []
        width += 1 if kind == "number" else len(values)
        require_room("features", name, 4.0 * width * sum(map(len, columns)), f"{width} inputs of each row")
        for piece, column in zip(pieces, columns, strict=True):
            if kind == "category":
                piece.append(column[:, None] == values)
            elif column.dtype.kind not in "iufb":
                hint = f"say types: {{{name}: category}}"
                raise BadValue("types", name, f"is not a column of numbers: {clip(str(column[0]))}", hint)
            else:
                piece.append(column[:, None])
    return [np.concatenate(piece, axis=1, dtype=dtype, casting="unsafe") for piece in pieces], numbers


def _label(values: Array, name: str, kind: Kind | None) -> Array:
    """Return labels as :func:`samples.dataset` takes them: whole numbers or text for classes."""
    if kind == "category":
        return values.astype(str)
    if kind == "number":
        if values.dtype.kind not in "iufb":
            raise BadValue("types", name, f"is not a column of numbers: {clip(str(values[0]))}")
        return values.astype(np.float32)
    return values


def _standardised(made: Dataset, columns: list[int]) -> Dataset:
    """Shift and scale columns by what they are in training; one that never changes becomes 0."""
    [whole], [test] = leaves(made.x), leaves(made.x_test)
    numbers = whole[:, columns]
    same = numbers.amin(0) == numbers.amax(0)  # a mean of equal numbers need not be one of them
    mean = numbers.mean(0).where(~same, numbers[0])
    deviation = numbers.std(0, correction=0).where(~same, numbers.new_ones(()))
    for x in (whole, test):
        x[:, columns] = (x[:, columns] - mean) / deviation
    return replace(made, x=whole.float(), x_test=test.float())
