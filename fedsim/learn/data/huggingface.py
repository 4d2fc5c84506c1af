"""Datasets of Hugging Face that are on this machine already."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import MISSING, BadValue, clip, did_you_mean, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, dataset, library, pictures
from fedsim.learn.several import Several
from fedsim.machine import require_room

Array = NDArray[Any]


def huggingface(
    *,
    path: str,
    x: str | list[str] | dict[str, str],
    y: str,
    group: str | None = None,
    inputs: Literal["numbers", "tokens"] = "numbers",
    config: str | None = None,
    train: str = "train",
    test: str = "test",
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return a dataset of Hugging Face's that was downloaded before; needs datasets.

    Args:
        path: a folder that ``save_to_disk`` has written, from the current folder or from ``data.root``; or the name of
            a dataset that is in the cache.
        x: the column of the inputs: an image, a number, or a list of numbers of one length; or several columns of
            numbers, which are put together; or columns by the names that a model has for several inputs:
            ``{input_ids: input_ids, attention_mask: attention_mask}``.
        y: the column of the labels or targets, one or a list of one length for each sample.
        group: the column that says whose a sample is, for ``partition: natural``.
        inputs: what whole numbers in x are: numbers, which become float32, or tokens, which stay whole.
        config: which configuration of a dataset in the cache.
        train, test: the names of its splits; where there is none of the second name, a test is split off.
        test_share: the part of each class that becomes the test then.
        seed: which samples those are.
        root: the data folder.

    Returns:
        Images [N, C, H, W] between 0 and 1, or vectors [N, D], in float32; or tokens [N, D] in int64.

    Raises:
        BadValue: if the dataset is not on this machine, or a column is not there or is text.
    """
    found = _load(path, config, root)
    if not hasattr(found, "keys"):  # one split alone
        found = {train: found}
    if train not in found:
        raise BadValue("train", train, "there is no such split", did_you_mean(train, list(found)))
    columns = [x] if isinstance(x, str) else list(x.values()) if isinstance(x, dict) else x
    if not columns:
        raise BadValue("x", MISSING, "name at least one column of inputs")
    for split in (found[one] for one in (train, test) if one in found):
        for key, names in (("x", columns), ("y", [y]), ("group", [group] if group else [])):
            for name in names:
                if name not in split.column_names:
                    where = "" if split is found[train] else f" in the split {test}"
                    hint = did_you_mean(name, split.column_names)
                    raise BadValue(key, name, f"there is no such column{where}", hint)
    parts = [
        Samples(_inputs(found[split], x, inputs), *_labels(found[split], y, group))
        for split in (train, test)
        if split in found
    ]
    known = getattr(found[train].features[y], "names", None)
    count, second = len(known) if known else None, parts[1] if parts[1:] else None
    return dataset(Path(path).name, parts[0], second, classes=count, test_share=test_share, seed=seed)


def _load(path: str, config: str | None, root: Path | None) -> Any:
    hub = library("datasets")
    for place in [Path(path), *([root / path] if root is not None else [])]:
        if place.is_dir():
            try:
                return hub.load_from_disk(str(place))
            except Exception as error:  # of many kinds, by what the folder holds instead
                rule = f"is not a folder that save_to_disk has written ({clip(str(error))})"
                raise BadValue("path", path, rule) from error
    try:
        return hub.load_dataset(path, config, download_config=hub.DownloadConfig(local_files_only=True))
    except Exception as error:  # of many kinds, by what is not there
        hint = "download it with datasets.load_dataset, and write it to a folder with save_to_disk"
        rule = f"is neither a folder nor in the cache ({type(error).__name__})"
        raise BadValue("path", path, rule, hint) from error


def _inputs(split: Any, x: str | list[str] | dict[str, str], kind: str) -> Array | Several:
    """Return one input, or several by the names that a model has for them."""
    if isinstance(x, dict):
        return Several({key: _input([_column(split, name)], [name], kind, False) for key, name in x.items()})
    columns = [x] if isinstance(x, str) else x
    return _input([_column(split, name) for name in columns], columns, kind, True)


def _input(pieces: list[Array], columns: list[str], kind: str, alone: bool) -> Array:
    """Return columns as one input; beside tokens, other inputs stay what they are."""
    if len(pieces) == 1 and pieces[0].ndim > 2 and pieces[0].dtype == np.uint8:
        return pictures(pieces[0])
    if kind == "tokens" and all(piece.dtype.kind in "iu" for piece in pieces):
        return np.concatenate([piece.reshape(len(piece), -1) for piece in pieces], axis=1, dtype=np.int64)
    if kind == "tokens" and alone:
        raise BadValue("inputs", kind, f"tokens are whole numbers, and {few(columns)} has others")
    if kind == "tokens":
        return pieces[0] if pieces[0].ndim > 1 else pieces[0][:, None]
    if len(pieces) == 1 and pieces[0].ndim > 2:
        return pictures(pieces[0])
    return np.concatenate([piece.reshape(len(piece), -1) for piece in pieces], axis=1, dtype=np.float32)


def _labels(split: Any, y: str, group: str | None) -> tuple[Array, Array | None]:
    try:
        labels = np.asarray(split[y][:])
    except ValueError:  # lists of different lengths
        labels = np.asarray(None)
    if labels.dtype.kind not in "iufbU":
        raise BadValue("y", y, "must be a column of numbers or text without gaps")
    if not group:
        return labels, None
    whose = split[group][:]
    _require_whole("group", group, whose)
    return labels, np.asarray(whose).astype(str)


def _require_whole(key: str, name: str, values: list[Any]) -> None:
    """Refuse a column in which a value is missing."""
    gap = next((i for i, value in enumerate(values) if None in np.asarray(value).reshape(-1)), None)
    if gap is not None:
        raise BadValue(key, name, f"sample {gap} has no value", "fill it in, or leave the sample out")


def _column(split: Any, name: str) -> Array:
    """Return a column as an array of numbers [N, …]."""
    first = np.asarray(split[0][name])
    if first.dtype.kind == "O":
        _require_whole("x", name, [first])
    if first.dtype.kind not in "iufb":
        raise BadValue("x", name, "must be numbers or an image, and is not", "turn text into tokens first")
    require_room("x", name, 12.0 * first.size * len(split), f"{len(split)} samples")
    values = [np.asarray(value) for value in split[name]]
    other = next((value.shape for value in values if value.shape != first.shape), None)
    if other is not None:
        raise BadValue(
            "x", name, f"all samples must be of one shape, and one is {first.shape}, another {other}"
        )
    if any(value.dtype.kind == "O" for value in values):
        _require_whole("x", name, values)
    return np.stack(values)
