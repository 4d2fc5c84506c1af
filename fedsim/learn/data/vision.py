"""The datasets of torchvision that are on this machine already."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue, clip, did_you_mean
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, dataset, library, pictures
from fedsim.machine import require_room

Array = NDArray[Any]

OTHERS = ("VisionDataset", "DatasetFolder", "ImageFolder", "FakeData")
"""What torchvision lists beside its datasets; images in folders are read by ``folder``."""


def torchvision(
    *,
    of: str,
    options: dict[str, Any] | None = None,
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return a dataset of torchvision's from the data folder; needs torchvision.

    Args:
        of: the name of its class, such as SVHN or USPS.
        options: further arguments of that class, such as ``{split: byclass}``.
        test_share: the part of each class that becomes the test, where the dataset has none.
        seed: which images those are.
        root: the data folder.

    Returns:
        Images [N, C, H, W] in float32 between 0 and 1.

    Raises:
        BadValue: if there is no such dataset, its files are not there, or its samples are not images of one size
            with a class each.
    """
    known = library("torchvision.datasets")
    names = [name for name in known.__all__ if name not in OTHERS]
    if of not in names:
        raise BadValue("of", of, "there is no such dataset in torchvision", did_you_mean(of, names))
    if root is None:
        raise BadValue("of", of, "where its files are must be said", "set data.root or FEDSIM_DATA")
    maker, given = getattr(known, of), dict(options or {})
    splits = _splits(maker, given)
    parts = [_samples(of, maker, root, {**given, **split}) for split in splits]
    test = parts[1] if parts[1:] else None
    return dataset(of.lower(), parts[0], test, test_share=test_share, seed=seed)


def _splits(maker: Any, given: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a class takes for training and test."""
    takes = inspect.signature(maker).parameters
    if "train" in takes:
        return [{"train": True}, {"train": False}]
    if "split" in takes and "split" not in given:
        return [{"split": "train"}, {"split": "test"}]
    return [{}]


def _samples(of: str, maker: Any, root: Path, options: dict[str, Any]) -> Samples:
    takes = inspect.signature(maker).parameters
    quiet = {"download": False} if "download" in takes else {}
    try:
        source = maker(str(root), **options, **quiet)
        pairs = [source[index] for index in range(len(source))]
    except Exception as error:  # of many kinds, by what is not there
        said = next(iter(str(error).splitlines()), type(error).__name__)
        hint = f"download it once: torchvision.datasets.{of}({str(root)!r}, download=True)"
        raise BadValue("of", of, f"its files cannot be read ({clip(said)})", hint) from error
    images = [np.asarray(image) for image, _ in pairs]
    labels = np.asarray([label for _, label in pairs])
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadValue(
            "of", of, f"must hold images of one size with a class each, not of {len(shapes)} sizes"
        )
    require_room("of", of, 12.0 * images[0].size * len(images), f"{len(images)} images")
    return Samples(pictures(np.stack(images)), labels)
