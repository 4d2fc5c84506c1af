"""Read IDX files, the format in which MNIST and its relatives are distributed.

An IDX file is a header (two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
32-bit number) followed by the values, the last dimension varying fastest.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadValue

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The values' type by the header's type code."""

FILES = ("images-idx3", "labels-idx1")
"""What a part of a dataset consists of."""
PIECE = 1 << 20
"""So many bytes are read at a time."""

_Stream = gzip.GzipFile | io.BufferedReader
_GZIP = b"\x1f\x8b"
GETS = {
    "mnist": "MNIST(root, ",
    "fashion-mnist": "FashionMNIST(root, ",
    "emnist": "EMNIST(root, split='digits', ",
}
"""The beginning of the call of torchvision that gets the files of a dataset."""


def read(path: Path) -> NDArray[Any]:
    """Return the array in an IDX file, compressed with gzip or not.

    No more is unpacked than the header announces, and one byte to see that there is no more.

    Args:
        path: the file; whether it is compressed is seen from its first bytes, not from its name.

    Returns:
        A writable array of the file's shape and type, in the machine's byte order.

    Raises:
        BadValue: if the file cannot be read, is damaged or is no IDX file; the key is ``path``.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
    >>> _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 1, 9]))
    >>> read(file)
    array([7, 1, 9], dtype=uint8)
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == _GZIP
            plain.seek(0)
            with gzip.GzipFile(fileobj=plain) if packed else nullcontext(plain) as stream:
                return _array(path, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadValue("path", str(path), f"is a damaged gzip file ({error})", "download it again") from error
    except OSError as error:
        raise BadValue("path", str(path), f"cannot be read ({error.strerror or error})") from error


def _array(path: Path, stream: _Stream) -> NDArray[Any]:
    head = _take(stream, 4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in TYPES:
        shown = head.hex(" ") or "nothing"
        raise BadValue(
            "path", str(path), f"is not an IDX file: it must begin with 00 00 and a type, not {shown}"
        )
    dtype, start = np.dtype(TYPES[head[2]]), 4 + 4 * head[3]
    sides = _take(stream, 4 * head[3])
    if len(sides) < 4 * head[3]:
        rule = f"is cut off in its header, after {4 + len(sides)} of {start} bytes"
        raise BadValue("path", str(path), rule, "download it again")
    shape = tuple(int(side) for side in np.frombuffer(sides, ">u4"))
    # In Python's integers, so that a damaged header cannot ask for terabytes.
    size_bytes = math.prod(shape) * dtype.itemsize
    values = _take(stream, size_bytes + 1)
    if len(values) != size_bytes:
        held = "more" if len(values) > size_bytes else len(values)
        rule = f"holds {held} bytes of values, but its header {shape} means {size_bytes}"
        raise BadValue("path", str(path), rule, "download it again")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _take(stream: _Stream, size: int) -> bytearray:
    """Return the next bytes, fewer where the stream ends; what is not there takes no memory."""
    taken = bytearray()
    while len(taken) < size:
        piece = stream.read(min(size - len(taken), PIECE))
        if not piece:
            break
        taken += piece
    return taken


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
        raise BadValue("name", name, "its files were not found: no data folder is set", _hint(name))
    return Path(found) / below / "raw"


def _hint(name: str) -> str:
    where = "set FEDSIM_DATA or data.root to the folder that holds them"
    return where + (f", or get them: torchvision.datasets.{GETS[name]}download=True)" if name in GETS else "")


def paths(raw: Path, part: str, what: str) -> list[Path]:
    """Return the two names that a file can have.

    >>> [path.name for path in paths(Path("raw"), "t10k", "labels-idx1")]
    ['t10k-labels-idx1-ubyte', 't10k-labels-idx1-ubyte.gz']
    """
    return [raw / f"{part}-{what}-ubyte{suffix}" for suffix in ("", ".gz")]


def has_part(name: str, raw: Path, part: str) -> bool:
    """Say whether images and labels of a part (``train``, ``t10k`` …) are there.

    Args:
        name: the dataset, for the error.
        raw: the folder, as :func:`folder` gives it.
        part: how the file names begin.

    Raises:
        BadValue: if some of its files are there and others are not, as after a broken download; the key is ``name``.

    >>> has_part("mnist", Path("nowhere"), "train")
    False
    """
    there = sorted(path.name for path in raw.glob(f"{part}-*"))
    found = [any(path.name in there for path in paths(raw, part, what)) for what in FILES]
    if there and not all(found):
        missing = [f"{part}-{what}-ubyte(.gz)" for what, one in zip(FILES, found) if not one]
        rule = f"a part of its {part} files is in {raw} ({', '.join(there)}), but not {' and '.join(missing)}"
        raise BadValue("name", name, rule, "download them again, or remove that part")
    return bool(there)


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
    for what in FILES:
        tried = paths(raw, part, what)
        found = next((path for path in tried if os.path.lexists(path)), None)
        if found is None:
            rule = f"its files were not found: {', '.join(map(str, tried))}"
            raise BadValue("name", name, rule, _hint(name))
        arrays.append(read(found))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        rule = f"its {part} files hold images {images.shape} and labels {labels.shape}"
        raise BadValue("name", name, f"{rule}, which must be (N, height, width) and (N,)")
    if 0 in images.shape:
        raise BadValue("name", name, f"its {part} images have the shape {images.shape}, and hold no pixel")
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        rule = f"its {part} files hold images of {images.dtype} and labels of {labels.dtype}"
        raise BadValue("name", name, f"{rule}, which must be uint8 and whole numbers")
    return images, labels
