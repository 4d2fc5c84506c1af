"""Arrays of NumPy's: from one .npz file, or from a folder of .npy files, which need not fit into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import MISSING, BadValue, did_you_mean, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, damaged, dataset, located
from fedsim.learn.several import Several
from fedsim.machine import require_room
from fedsim.parts import Count, Positive

Array = NDArray[Any]
Names = str | list[str] | dict[str, str]


def arrays(
    *,
    path: str,
    x: Names = "x",
    y: str = "y",
    x_test: Names | None = None,
    y_test: str = "y_test",
    groups: str = "groups",
    classes: Count | None = None,
    inputs: Literal["numbers", "tokens"] = "numbers",
    scale: Positive = 1.0,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return samples from a .npz file, or from a folder of .npy files.

    The files of a folder are mapped into memory and not read, so that they may be larger than it, as long as they are
    floating-point numbers, in the type of ``compute.dtype``, or tokens of int64, with a test of their own and a scale
    of 1. Then only what clients train on comes into memory. Data of more than a quarter of it are trained on by one
    process.

    Args:
        path: the file or the folder, from the current folder or from ``data.root``.
        x, y: names of the arrays of training inputs [N, …] and of their labels [N]: whole numbers or text are
            classes, floating-point numbers are targets to be predicted. Several inputs are a list of names, which a
            model takes one after the other, or names by those of the model's own: ``{ids: words, mask: padding}``.
        x_test, y_test: names of the arrays of test inputs and labels; where they are missing, a test is split off. Null
            is ``x_test``, or of several inputs their names with ``_test`` behind them.
        groups: name of the array that says whose each training sample is [N]; may be missing.
        classes: how many classes there are; null is one more than the largest label.
        inputs: what whole numbers in x are: numbers, which become float32, or tokens, which stay whole; beside several
            inputs that are tokens there may be floating-point numbers, and masks of true and false.
        scale: what the inputs are divided by, such as 255 for bytes of pixels.
        test_share: the part of each class that becomes the test, where there is none.
        seed: which samples those are.
        root: the data folder.

    Raises:
        BadValue: if there is no such file or array, or they do not fit together.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     np.savez(file, x=np.arange(20).reshape(10, 2), y=np.arange(10) % 2)
    ...     _ = file.seek(0)
    ...     made = arrays(path=file.name, seed=0)
    >>> made.x.dtype, made.shape, len(made.x), made.classes
    (torch.float32, (2,), 8, 2)
    """
    held = _open(path, located(path, root))
    first = _named(x)
    ends = {key: f"{name}_test" for key, name in first.items()} if not isinstance(x, str) else {"0": "x_test"}
    second = ends if x_test is None else _named(x_test)
    names = [*first.values(), y, *second.values(), y_test, groups]
    found = {name: name in held for name in (*second.values(), y_test)}
    if len(set(found.values())) > 1:
        there, missing = (
            next(name for name, is_there in found.items() if is_there is one) for one in (True, False)
        )
        raise BadValue("path", path, f"holds {there}, and no {missing}")
    parts = []
    for taken, labels in [(first, y), *([(second, y_test)] if found[y_test] else [])]:
        made = {
            key: _numbers(name, _take(held, path, "x", name, names), inputs, scale, isinstance(x, str))
            for key, name in taken.items()
        }
        _check_alike(path, made)
        whose = held[groups] if groups in held and taken is first else None
        parts.append(Samples(_inputs(x, made), _take(held, path, "y", labels, names), whose))
    test = parts[1] if len(parts) > 1 else None
    stem = Path(path).stem
    return dataset(stem, parts[0], test, classes=classes, test_share=test_share, seed=seed)


def _named(x: Names) -> dict[str, str]:
    """Return the names of arrays by those of the inputs that they are."""
    if isinstance(x, dict):
        return x
    return {str(place): name for place, name in enumerate([x] if isinstance(x, str) else x)}


def _check_alike(path: str, made: Mapping[str, Array]) -> None:
    if not made:
        raise BadValue("x", MISSING, "name at least one array of inputs")
    lengths = {key: len(array) for key, array in made.items()}
    if len(set(lengths.values())) > 1:
        raise BadValue(
            "path", path, f"its inputs must have as many samples each, not {few(lengths.values())}"
        )


def _inputs(x: Names, made: dict[str, Array]) -> Array | Several:
    """Return one input, or several in order or by name."""
    if isinstance(x, str):
        return made["0"]
    return Several(made if isinstance(x, dict) else list(made.values()))


def _open(path: str, place: Path) -> Mapping[str, Array]:
    try:
        if place.is_dir():
            files = sorted(place.glob("*.npy"))
            if not files:
                raise BadValue("path", path, "the folder holds no .npy files")
            # Copy on write: torch takes no array that cannot be written to.
            return {file.stem: np.load(file, mmap_mode="c", allow_pickle=False) for file in files}
        with zipfile.ZipFile(place) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        require_room(
            "path", path, 2.0 * size, "its arrays", "a folder of .npy files need not fit into memory"
        )
        with np.load(place, allow_pickle=False) as found:
            return dict(found)
    except zipfile.BadZipFile as error:
        hint = "numpy.savez writes such a file; a folder of .npy files will do, too"
        raise BadValue("path", path, "is not an .npz file", hint) from error
    except BadValue:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise damaged("path", path, error) from error


def _take(held: Mapping[str, Array], path: str, key: str, name: str, names: list[str]) -> Array:
    found = held.get(name)
    if found is None:
        others = [one for one in held if one not in names] or list(held)
        raise BadValue(key, name, f"there is no such array in {path}", did_you_mean(name, others))
    if found.dtype.kind not in "iufbUS" or not found.ndim:
        raise BadValue(key, name, f"must be an array of numbers or text, not of type {found.dtype}")
    return found


def _numbers(name: str, x: Array, inputs: str, scale: float, alone: bool = True) -> Array:
    if x.dtype.kind in "US":
        raise BadValue("x", name, "inputs must be numbers, and these are text")
    if inputs == "tokens" and not alone and x.dtype.kind in "fb":
        return x
    if inputs == "tokens":
        if x.dtype.kind not in "iu":
            raise BadValue("inputs", inputs, f"tokens are whole numbers, and {name} holds {x.dtype}")
        return x.astype(np.int64, copy=False)
    x = x if x.dtype.kind == "f" else x.astype(np.float32)
    return x if scale == 1 else x / x.dtype.type(scale)
