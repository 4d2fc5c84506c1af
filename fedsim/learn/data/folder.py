"""Images in folders: one folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedsim.errors import BadValue, few
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.samples import Samples, dataset, located
from fedsim.machine import require_room
from fedsim.parts import Count

Array = NDArray[Any]

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}


def folder(
    *,
    path: str,
    size: Count | list[Count] | None = None,
    colour: Literal["rgb", "grey"] = "rgb",
    test_share: float = 0.2,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return images from a folder that holds one folder for each class.

    Where the folder holds ``train`` and ``test`` and nothing else, each of them holds the folders of the classes.
    Classes are numbered in the order of their folders' names.

    Args:
        path: the folder, from the current folder or from ``data.root``.
        size: height and width in pixels that images are brought to, as one number or two; null takes them as they
            are, and then all must be of one size.
        colour: rgb, three channels, or grey, one.
        test_share: the part of each class that becomes the test, where there is no folder ``test``.
        seed: which images those are.
        root: the data folder.

    Returns:
        Images [N, C, H, W] in float32 between 0 and 1.

    Raises:
        BadValue: if there is no such folder, a folder holds no images, or an image cannot be read or has another size.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     for name, shade in (("cats", 0), ("dogs", 255)):
    ...         Path(place, name).mkdir()
    ...         for number in range(2):
    ...             Image.new("L", (4, 3), shade).save(Path(place, name, f"{number}.png"))
    ...     made = folder(path=place, colour="grey", test_share=0.5, seed=0)
    >>> made.x.shape, made.x.flatten(1).mean(1).tolist(), made.y.tolist()
    (torch.Size([2, 1, 3, 4]), [0.0, 1.0], [0, 1])
    """
    place, wanted = located(path, root), _size(size)
    if not place.is_dir():
        raise BadValue("path", path, "is not a folder")
    inside = sorted(one.name for one in place.iterdir() if one.is_dir())
    places = [place / "train", place / "test"] if inside == ["test", "train"] else [place]
    names = sorted(one.name for one in places[0].iterdir() if one.is_dir())
    if len(names) < 2:
        raise BadValue(
            "path", path, f"must hold a folder for each of 2 or more classes, and holds {few(names)}"
        )
    parts = [_images(path, one, names, wanted, colour) for one in places]
    test = parts[1] if parts[1:] else None
    return dataset(place.resolve().name, parts[0], test, names=names, test_share=test_share, seed=seed)


def _size(size: int | list[int] | None) -> tuple[int, int] | None:
    """Return height and width."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if len(sides) != 2:
        raise BadValue("size", size, "must be one number, or two: height and width")
    return sides[0], sides[1]


def _images(path: str, place: Path, names: list[str], size: tuple[int, int] | None, colour: str) -> Samples:
    files, labels = [], []
    for one in sorted(entry.name for entry in place.iterdir() if entry.is_dir()):
        if one not in names:
            raise BadValue("path", path, f"{place.name} has the class {one}, and train has not")
        own = sorted(file for file in (place / one).rglob("*") if file.suffix.lower() in ENDINGS)
        if not own:
            raise BadValue("path", path, f"the folder {one} holds no images")
        files += own
        labels += [one] * len(own)
    return Samples(pixels_of(path, files, size, colour), np.array(labels))


def pixels_of(path: str, files: Sequence[Path], size: tuple[int, int] | None, colour: str) -> Array:
    """Return images of one size [N, C, H, W] between 0 and 1.

    Args:
        path: what the experiment calls them.
        files: one for each image, at least one.
        size: height and width that they are brought to; None leaves them, and refuses different ones.
        colour: rgb or grey.

    Raises:
        BadValue: for one that cannot be read, or is of another size.
    """
    height, width = size or _read(path, files[0], None, colour).shape[:2]
    channels = 3 if colour == "rgb" else 1
    require_room("path", path, 8.0 * len(files) * height * width * channels, f"{len(files)} images")
    x = np.empty((len(files), channels, height, width), np.float32)
    for image, file in zip(x, files, strict=True):
        pixels = _read(path, file, size, colour)
        if pixels.shape[:2] != (height, width):
            found = f"{file.name} has {pixels.shape[0]} x {pixels.shape[1]} pixels, {files[0].name} {height} x {width}"
            raise BadValue(
                "path", path, f"all images must be of one size: {found}", f"set size: [{height}, {width}]"
            )
        image[:] = np.moveaxis(pixels.reshape(height, width, channels), -1, 0) / np.float32(255)
    return x


def _read(path: str, file: Path, size: tuple[int, int] | None, colour: str) -> Array:
    """Return the pixels of an image [H, W] or [H, W, 3], bytes."""
    try:
        with Image.open(file) as image:
            plain = image.convert("RGB" if colour == "rgb" else "L")
            if size is not None:
                plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            return np.asarray(plain)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadValue("path", path, f"the image {file.name} cannot be read ({error})") from error
