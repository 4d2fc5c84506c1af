"""From what a file holds to a dataset: labels become classes, names of groups become numbers, a test is split off."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import MISSING, BadValue, clip, few
from fedsim.learn.data.dataset import PADDING, Dataset, check_finite
from fedsim.learn.data.partition import stratified_split
from fedsim.learn.several import Several
from fedsim.machine import require_room
from fedsim.parts import needed
from fedsim.rng import stream

Array = NDArray[Any]


class Samples(NamedTuple):
    """Samples as a file holds them.

    Args:
        x: inputs [N, *shape], numbers; or several arrays of such.
        y: labels [N] as whole numbers or text, or targets as floating-point numbers.
        groups: whose each sample is [N], as whole numbers or text, or None.
    """

    x: Array | Several
    y: Array
    groups: Array | None = None


def located(path: str, root: Path | None, key: str = "path", get: str = "") -> Path:
    """Return the file or folder with a path that counts from the current folder, or else from the data folder.

    Args:
        path: as the experiment gives it.
        root: the data folder, or None.
        key: what is to be blamed.
        get: where such a file comes from.

    Raises:
        BadValue: if there is none.

    >>> located("nowhere.npz", None)
    Traceback (most recent call last):
    fedsim.errors.BadValue: path: nowhere.npz: there is no such file; nothing is downloaded: give a path from the \
current folder, or from data.root
    """
    for place in [Path(path), *([root / path] if root is not None else [])]:
        try:
            os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise BadValue(
                key, path, f"cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from error
        return place
    hint = "nothing is downloaded: give a path from the current folder, or from data.root"
    hint += f"; {get}" if get else ""
    raise BadValue(key, path, "there is no such file", hint)


def dataset(
    name: str,
    train: Samples,
    test: Samples | None,
    *,
    classes: int | None = None,
    names: Sequence[Any] | None = None,
    test_share: float,
    seed: int,
    note: str = "",
) -> Dataset:
    """Make a dataset of samples, and split a test off where there is none.

    Args:
        name: what reports call it.
        train: the training samples; all samples if there is no test.
        test: the test samples, or None.
        classes: how many classes whole-numbered labels have; None counts from 0 to the largest.
        names: what the labels stand for, in the order of the classes; None is all distinct labels in their order
            where they are text.
        test_share: the part of each class, or of all samples where there are no classes, that becomes the test.
        seed: which samples those are.
        note: what whoever reads the results must know.

    Returns:
        The dataset; labels that are floating-point numbers are targets to be predicted, with the loss half_square.

    Raises:
        BadValue: if labels and classes do not fit together.

    >>> rows = Samples(np.zeros((10, 3), np.float32), np.array(["no", "yes"] * 5), np.array(["b", "a"] * 5))
    >>> made = dataset("ten", rows, None, test_share=0.4, seed=0)
    >>> made.y.bincount().tolist(), made.y_test.bincount().tolist(), made.groups.tolist()
    ([3, 3], [2, 2], [1, 1, 0, 0, 1, 0])
    """
    parts = [train] if test is None else [train, test]
    for part in parts:
        _check_lengths(part)
        if part.groups is not None:
            check_finite("groups", part.groups, "groups")
    labels, count, gap = _labels([part.y for part in parts], classes, names)
    whose = [part.groups for part in parts]
    inputs = [part.x for part in parts]
    if test is None:  # afterwards nobody could say where in the file a sample was
        for part in train.x.parts if isinstance(train.x, Several) else (train.x,):
            check_finite("x", part, "inputs")
        check_finite("y", labels[0], "targets")
        kept, held = _split(labels[0], count, test_share, stream(seed, "split"))
        require_room("name", name, 2.0 * train.x.nbytes, "its samples, divided into training and test")
        inputs, labels = [train.x[kept], train.x[held]], [labels[0][kept], labels[0][held]]
        whose = [None, None] if train.groups is None else [train.groups[kept], train.groups[held]]
    groups, test_groups = numbered_groups(whose[0], whose[1])
    x, x_test = (one.map(_tensor) if isinstance(one, Several) else _tensor(one) for one in inputs)
    y, y_test = map(_tensor, labels)
    loss = "cross_entropy" if count else "half_square"
    said = "; ".join(filter(None, (note, gap)))
    return Dataset(name, x, y, x_test, y_test, count, groups, loss, note=said, test_groups=test_groups)


def numbered_groups(
    train: Array | None, test: Array | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """Number the groups of training samples from 0, and name those of test samples by the same numbers.

    Args:
        train: whose each training sample is [N], or None.
        test: whose each test sample is [T], or None.

    Returns:
        Numbers [N] and [T]; -1 is a group that no training sample is of.

    >>> numbered_groups(np.array(["b", "a", "b"]), np.array(["a", "c"]))
    (array([1, 0, 1]), array([ 0, -1]))
    """
    if train is None:
        return None, None
    names, groups = np.unique(train, return_inverse=True)
    if test is None:
        return groups, None
    places = np.searchsorted(names, test).clip(max=len(names) - 1)
    return groups, np.where(names[places] == test, places, -1)


def pictures(x: Array) -> Array:
    """Return images with their channels first, [N, C, H, W]; bytes become numbers from 0 to 1.

    >>> pictures(np.full((2, 4, 5, 3), 255, np.uint8)).shape, pictures(np.zeros((2, 4, 5))).shape
    ((2, 3, 4, 5), (2, 1, 4, 5))
    """
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[-1] in (1, 3, 4) and (x.dtype == np.uint8 or x.shape[1] not in (1, 3)):
        x = np.moveaxis(x, -1, 1)
    return np.ascontiguousarray(x, np.float32) / np.float32(255) if x.dtype == np.uint8 else x


def _check_lengths(part: Samples) -> None:
    for key, held in (("y", part.y), ("groups", part.groups)):
        if held is not None and held.shape[:1] != (len(part.x),):
            rule = f"there must be one for each of the {len(part.x)} samples, and there are {len(held)}"
            raise BadValue(key, MISSING, rule)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(_plain(values))


def _plain(values: Array) -> Array:
    """Return an array as torch takes it, without a copy if that can be."""
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        values = values.astype(np.float32)
    if values.dtype.byteorder not in "=|" or values.dtype.kind == "u":
        kind = values.dtype.newbyteorder("=") if values.dtype.kind != "u" else np.dtype(np.int64)
        values = values.astype(kind)
    return values if values.flags.writeable and values.flags.c_contiguous else np.array(values, order="C")


def _split(
    labels: Array, classes: int, share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    alike = labels if classes and labels.ndim == 1 else np.zeros(len(labels), np.int64)
    if len(labels) < 2:
        raise BadValue("test_share", share, f"there must be 2 samples to split a test off, not {len(labels)}")
    kept, held = stratified_split(alike, share, rng)
    # Where every class has one sample alone, classes cannot be on both sides.
    return (kept, held) if len(held) else stratified_split(np.zeros(len(labels), np.int64), share, rng)


def _labels(
    given: list[Array], classes: int | None, names: Sequence[Any] | None
) -> tuple[list[Array], int, str]:
    """Return labels as classes from 0, or targets as they are; the number of classes; and what is odd about them."""
    given = _alike(given)
    kinds = {labels.dtype.kind for labels in given}
    if kinds <= {"f"}:
        if classes:
            raise BadValue("classes", classes, "the labels are floating-point numbers, which have no classes")
        return [labels.astype(np.float32, copy=False) for labels in given], 0, ""
    if kinds <= {"i", "u", "b"} and names is None:
        return _numbered([labels.astype(np.int64, copy=False) for labels in given], classes)
    texts = [labels.astype(str) for labels in given]
    known = [str(one) for one in (names if names is not None else np.unique(np.concatenate(texts)).tolist())]
    code = {label: index for index, label in enumerate(known)}
    strange = sorted({label for labels in texts for label in np.unique(labels).tolist()} - set(code))
    if strange:
        raise BadValue("y", strange[0], f"is no class; the classes are {few(known)}")
    if classes is not None and classes != len(known):
        raise BadValue("classes", classes, f"there are {len(known)} classes: {few(known)}")
    unseen = "" if names is not None else _unseen(texts)
    return (
        [np.array([code[one] for one in labels.tolist()], np.int64) for labels in texts],
        len(known),
        unseen,
    )


def _alike(given: list[Array]) -> list[Array]:
    """Return labels of training and test as what those of training are: numbers to predict, whole numbers, or text."""
    train, test = given[0].dtype.kind, given[-1].dtype.kind
    if (train == "f") == (test == "f"):
        return given
    if train == "f" and test in "iub":
        return [given[0], given[1].astype(given[0].dtype)]
    if train in "iub":
        wrong = given[1][given[1] != np.rint(given[1])]
        if len(wrong):
            raise BadValue(
                "y", float(wrong[0]), "is a label of the test, and those of training are whole numbers"
            )
        return [given[0], given[1].astype(np.int64)]
    which = ("numbers", "text") if train == "f" else ("text", "numbers")
    raise BadValue("y", MISSING, f"the labels of training are {which[0]}, and those of the test {which[1]}")


def _unseen(labels: list[Array]) -> str:
    """Return what is to be said of labels that the test alone has: nobody can learn them."""
    alone: list[Any] = [one for one in np.setdiff1d(labels[-1], labels[0]).tolist() if one != PADDING]
    return f"no training sample has the label {few(alone)}, and the test has" if alone else ""


def _numbered(labels: list[Array], classes: int | None) -> tuple[list[Array], int, str]:
    found = np.unique(np.concatenate([one.reshape(-1) for one in labels]))
    found = found[found != PADDING] if labels[0].ndim > 1 else found
    count = classes or int(max(found.max(initial=0) + 1, 2))
    wrong = found[(found < 0) | (found >= count)]
    if len(wrong):
        rule = f"labels must be between 0 and {count - 1}, for {count} classes"
        raise BadValue("y", int(wrong[0]), rule, "" if classes is None else "set data.classes")
    if classes is None and count > 10 * len(found) + 10:
        rule = f"is the largest label, and only {len(found)} different ones are there"
        raise BadValue("y", int(found.max()), rule, "number them from 0, or say data.classes")
    empty: list[int] = np.setdiff1d(np.arange(count), found).tolist() if classes is None else []
    gap = f"no sample has the label {few(empty)}, of 0 to {count - 1}" if len(empty) else ""
    alone = _unseen(labels) if classes is None else ""
    return labels, count, "; ".join(filter(None, (gap, alone)))


def damaged(key: str, path: str, error: BaseException) -> BadValue:
    """Return the error that says in one line why a file cannot be read."""
    text = next(iter(str(getattr(error, "strerror", None) or error).splitlines()), type(error).__name__)
    return BadValue(key, path, f"cannot be read ({text})")


def library(module: str) -> Any:
    """Return a library that only some datasets need.

    Raises:
        BadValue: with the key ``name``, if it is not installed.

    >>> library("no_such_library")
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: needs no_such_library, which is not installed
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise BadValue(
            "name", MISSING, f"needs {missing}, which is not installed", needed(missing)
        ) from error
    except (ImportError, OSError, RuntimeError) as error:  # as where it was built for another torch
        rule = f"needs {module}, which cannot be imported ({clip(str(error))})"
        raise BadValue("name", MISSING, rule, needed(module, "--force-reinstall ")) from error
