"""CIFAR-10 and CIFAR-100, read from the official files: the binary version, or the one for Python."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.data.datasets import Dataset

PIXELS = 3 * 32 * 32
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Files:
    """Where the files of a dataset are, and how its colours are normalised."""

    name: str
    binary: str
    python: str
    train: tuple[str, ...]
    test: str
    classes: int
    label_bytes: int
    label_key: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


TEN = _Files(
    name="cifar10",
    binary="cifar-10-batches-bin",
    python="cifar-10-batches-py",
    train=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"),
    test="test_batch",
    classes=10,
    label_bytes=1,
    label_key="labels",
    mean=(0.4914, 0.4822, 0.4465),
    deviation=(0.2023, 0.1994, 0.2010),
)
HUNDRED = _Files(
    name="cifar100",
    binary="cifar-100-binary",
    python="cifar-100-python",
    train=("train",),
    test="test",
    classes=100,
    label_bytes=2,
    label_key="fine_labels",
    mean=(0.507, 0.487, 0.441),
    deviation=(0.267, 0.256, 0.276),
)


def cifar10(*, normalise: bool = True, root: Path | None = None) -> Dataset:
    """Return CIFAR-10's small photographs, read from ``cifar-10-batches-bin`` or ``…-py`` in the data folder.

    Args:
        normalise: whether to subtract each colour's mean and divide by its standard deviation.
        root: the data folder; else the environment variable ``FEDSIM_DATA``.

    Returns:
        Images [N, 3, 32, 32] in float32, in 10 classes.

    Raises:
        BadValue: if the files are not found (key ``name``) or damaged.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    >>> cifar10(root=Path("nowhere"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: cifar10: its files were not found: nowhere/cifar-10-batches-bin...
    """
    return _dataset(TEN, normalise, root)


def cifar100(*, normalise: bool = True, root: Path | None = None) -> Dataset:
    """Return CIFAR-100's small photographs, read from ``cifar-100-binary`` or ``…-python`` in the data folder.

    Args:
        normalise, root: as for :func:`cifar10`.

    Returns:
        Images [N, 3, 32, 32] in float32, in 100 classes.

    Raises:
        BadValue: if the files are not found (key ``name``) or damaged.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    >>> cifar100(root=Path("nowhere"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: cifar100: its files were not found: nowhere/cifar-100-binary...
    """
    return _dataset(HUNDRED, normalise, root)


def _dataset(files: _Files, normalise: bool, root: Path | None) -> Dataset:
    folder = root if root is not None else Path(os.environ.get("FEDSIM_DATA", "."))
    known = [folder / files.binary, folder / files.python]
    found = next((one for one in known if os.path.isdir(one)), None)
    if found is None:
        places = " or ".join(map(str, known))
        get = f"torchvision.datasets.{files.name.upper()}(root, download=True)"
        hint = f"set data.root, unpack the official archive there, or get it: {get}"
        raise BadValue("name", files.name, f"its files were not found: {places}", hint)
    train = [_read(files, found, name) for name in files.train]
    x, y = (np.concatenate(part) for part in zip(*train))
    x_test, y_test = _read(files, found, files.test)
    images = [_images(files, pixels, normalise) for pixels in (x, x_test)]
    labels = [torch.from_numpy(one.astype(np.int64)) for one in (y, y_test)]
    return Dataset(files.name, images[0], labels[0], images[1], labels[1], files.classes)


def _images(files: _Files, pixels: Bytes, normalise: bool) -> Tensor:
    images = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).astype(np.float32)).div_(255)
    if normalise:
        mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in (files.mean, files.deviation))
        images.sub_(mean).div_(deviation)
    return images


def _read(files: _Files, folder: Path, name: str) -> tuple[Bytes, Bytes]:
    """Return pixels [N, 3072] and labels [N] of one file."""
    binary = folder.name == files.binary
    file = folder / (f"{name}.bin" if binary else name)
    try:
        content = file.read_bytes()
        if not binary:
            batch = _Plain(io.BytesIO(content), encoding="latin1").load()
            pixels, labels = _bytes(batch["data"]), _bytes(batch[files.label_key])
            if pixels.shape != (len(labels), PIXELS):
                raise ValueError(f"it holds {len(labels)} labels and pixels of shape {pixels.shape}")
            return pixels, labels
        rows = np.frombuffer(content, dtype=np.uint8).reshape(-1, files.label_bytes + PIXELS)
    except FileNotFoundError as error:
        raise BadValue("name", files.name, f"its file was not found: {file}") from error
    except OSError as error:
        rule = f"its file {file} cannot be read ({error.strerror or error})"
        raise BadValue("name", files.name, rule) from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise BadValue("name", files.name, f"its file {file} is damaged: {error}") from error
    return rows[:, files.label_bytes :], rows[:, files.label_bytes - 1]


def _bytes(values: Any) -> Bytes:
    """Return whole numbers from 0 to 255 as they are; others would be rounded to such."""
    found = np.asarray(values)
    if found.dtype.kind not in "iu" or (found.size and not 0 <= found.min() <= found.max() <= 255):
        raise ValueError("its values are not bytes")
    return found.astype(np.uint8)


class _Plain(pickle.Unpickler):
    """Reads arrays and plain containers alone: a pickle from elsewhere could otherwise run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy") and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
