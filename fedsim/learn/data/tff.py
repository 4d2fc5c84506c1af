"""The HDF5 files of TensorFlow Federated's datasets: ``examples``, in it a group for each client, in it columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue, did_you_mean, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, damaged, dataset, library, located, pictures
from fedsim.machine import require_room
from fedsim.parts import Count

Array = NDArray[Any]


def tff(
    *,
    path: str,
    x: str,
    y: str,
    test_path: str | None = None,
    classes: Count | None = None,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return the samples of TensorFlow Federated's clients, one group for each; needs h5py.

    EMNIST (``fed_emnist_train.h5``) has the columns pixels and label, CIFAR-100 has image, label and coarse_label.

    Args:
        path: the file with the training samples, from the current folder or from ``data.root``.
        x: the column of the inputs, numbers. With two dimensions or three, they are images, and their channels come
            first; bytes become numbers from 0 to 1.
        y: the column of the labels.
        test_path: the file with the test; where it is null, a test is split off.
        classes: how many classes there are; null is one more than the largest label.
        test_share: the part of each class that becomes the test, where there is no second file.
        seed: which samples those are.
        root: the data folder.

    Raises:
        BadValue: if there is no such file or column, or a column is text.

    >>> tff(path="fed_emnist_train.h5", x="pixels", y="label", seed=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: path: fed_emnist_train.h5: there is no such file...
    """
    train = _read(path, "path", x, y, root)
    test = None if test_path is None else _read(test_path, "test_path", x, y, root)
    return dataset(Path(path).stem, train, test, classes=classes, test_share=test_share, seed=seed)


def _read(path: str, key: str, x: str, y: str, root: Path | None) -> Samples:
    place = located(path, root, key)
    hdf5 = library("h5py")
    try:
        with hdf5.File(place, "r") as file:
            if "examples" not in file:
                raise BadValue(key, path, f"holds {few(list(file))}, and no group named examples")
            clients = list(file["examples"])
            first = file["examples"][clients[0]] if clients else {}
            for name, column in (("x", x), ("y", y)):
                if column not in first:
                    raise BadValue(
                        name, column, f"there is no such column in {path}", did_you_mean(column, first)
                    )
                if first[column].dtype.kind not in "iufb":
                    rule = f"must be a column of numbers, and is text ({first[column].dtype})"
                    raise BadValue(name, column, rule, "turn it into tokens and save them as arrays")
            rows = [len(file["examples"][client][y]) for client in clients]
            size = float(np.prod(first[x].shape[1:], dtype=float)) * sum(rows)
            require_room(key, path, 12.0 * size, f"{sum(rows)} samples")
            columns = [[file["examples"][client][name][()] for client in clients] for name in (x, y)]
    except (OSError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise damaged(key, path, error) from error
    inputs = np.concatenate(columns[0])
    inputs = pictures(inputs) if inputs.ndim > 2 else inputs.astype(np.float32)
    return Samples(inputs, np.concatenate(columns[1]), np.repeat(clients, rows))
