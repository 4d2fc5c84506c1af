"""Read IDX files, the format in which MNIST and its relatives are distributed.

An IDX file is a header (two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit number) followed by the values, the last dimension varying fastest.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The values' type by the header's type code."""

_GZIP = b"\x1f\x8b"
_HINT = "set FEDSIM_DATA or data.root to the folder that holds them"


def read(path: Path) -> NDArray[Any]:
    """Return the array in an IDX file, compressed with gzip or not.

    Args:
        path: the file; whether it is compressed is seen from its first bytes, not from its name.

    Returns:
        A writable array of the file's shape and type, in the machine's byte order.

    Raises:
        BadValue: if the file is damaged or no IDX file; the key is ``path``.
        OSError: if it cannot be read.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
    >>> _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 1, 9]))
    >>> read(file)
    array([7, 1, 9], dtype=uint8)
    """
    data = _bytes(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        shown = data[:4].hex(" ") or "nothing"
        raise BadValue(
            "path", str(path), f"is not an IDX file: it must begin with 00 00 and a type, not {shown}"
        )
    dtype, start = np.dtype(TYPES[data[2]]), 4 + 4 * data[3]
    if len(data) < start:
        raise BadValue("path", str(path), f"is cut off in its header, after {len(data)} of {start} bytes")
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", data[3], offset=4))
    # Checked in Python's integers before any array exists, so that a damaged header cannot ask for terabytes.
    size_bytes = math.prod(shape) * dtype.itemsize
    if len(data) - start != size_bytes:
        rule = f"holds {len(data) - start} bytes of values, but its header {shape} means {size_bytes}"
        raise BadValue("path", str(path), rule, "download it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def folder(name: str, below: str, root: Path | None = None) -> Path:
    """Return where torchvision puts a dataset's IDX files: ``ROOT/BELOW/raw``.

    Args:
        name: the dataset, for the error.
        below: the dataset's folder in the data folder.
        root: the data folder; else the environment variable ``FEDSIM_DATA``.

    Raises:
        BadValue: if there is no data folder; the key is ``name``.

    >>> folder("mnist", "MNIST", Path("data")).as_posix()
    'data/MNIST/raw'
    """
    found = root or os.environ.get("FEDSIM_DATA")
    if not found:
        raise BadValue("name", name, "its files were not found: no data folder is set", _HINT)
    return Path(found) / below / "raw"


def paths(raw: Path, part: str, what: str) -> list[Path]:
    """Return the two names that a file can have.

    >>> [path.name for path in paths(Path("raw"), "t10k", "labels-idx1")]
    ['t10k-labels-idx1-ubyte', 't10k-labels-idx1-ubyte.gz']
    """
    return [raw / f"{part}-{what}-ubyte{suffix}" for suffix in ("", ".gz")]


def has_images(raw: Path, part: str) -> bool:
    """Say whether the images of a part (``train``, ``t10k`` …) are there.

    >>> has_images(Path("nowhere"), "train")
    False
    """
    return any(path.exists() for path in paths(raw, part, "images-idx3"))


def labelled_images(name: str, raw: Path, part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the images [N, height, width] and the labels [N] of one part of a dataset, as they are stored.

    Args:
        name: the dataset, for the errors.
        raw: the folder, as :func:`folder` gives it.
        part: how the file names begin: ``train``, ``t10k``, ``emnist-digits-test`` …

    Raises:
        BadValue: if a file is not there (key ``name``), damaged, or does not fit the other one.

    >>> labelled_images("mnist", Path("nowhere"), "t10k")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: mnist: its files were not found: nowhere/t10k-images-idx3-ubyte, nowhere/...
    """
    arrays = []
    for what in ("images-idx3", "labels-idx1"):
        tried = paths(raw, part, what)
        found = next((path for path in tried if path.exists()), None)
        if found is None:
            rule = f"its files were not found: {', '.join(map(str, tried))}"
            raise BadValue("name", name, rule, _HINT)
        arrays.append(read(found))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        rule = f"its {part} files hold images {images.shape} and labels {labels.shape}"
        raise BadValue("name", name, f"{rule}, which must be (N, height, width) and (N,)")
    return images, labels


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise BadValue("path", str(path), f"is a damaged gzip file ({error})", "download it again") from error
