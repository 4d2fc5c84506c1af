"""How many bytes a message takes: what Flower would send for it, names and headers included."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedsim.learn.codec import Codec

Layout = Sequence[tuple[str, tuple[int, ...]]]
"""Names and shapes of a model's parameters, in order."""

NUMBER_BYTES = 8


def text_bytes(text: str) -> int:
    """Return the size of a name.

    >>> text_bytes("arrays")
    6
    """
    return len(text.encode())


@functools.cache
def npy_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Return the size of an array in NumPy's file format, header included.

    >>> npy_bytes((10, 5), "float32")
    328
    """
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    )
    return len(buffer.getvalue()) + math.prod(shape) * np.dtype(dtype).itemsize


def encoded_bytes(codec: Codec, size: int, dtype: str) -> int:
    """Return the size of a vector of ``size`` numbers as a codec writes it, names and headers included."""
    return sum(text_bytes(name) + npy_bytes(*piece) for name, piece in codec.pieces(size, dtype).items())


def vector_bytes(layout: Layout, dtype: str, codec: Codec | None = None) -> int:
    """Return the size of a vector [P] as one array for each parameter, or as a codec writes it.

    >>> vector_bytes([("weight", (2, 3)), ("bias", (2,))], "float32")
    298
    """
    if codec is not None:
        return encoded_bytes(codec, sum(math.prod(shape) for _, shape in layout), dtype)
    return sum(text_bytes(name) + npy_bytes(shape, dtype) for name, shape in layout)


def numbers_bytes(names: Iterable[str]) -> int:
    """Return the size of numbers with these names.

    >>> numbers_bytes(["lr", "steps"])
    23
    """
    return sum(text_bytes(name) + NUMBER_BYTES for name in names)


def instruction_bytes(vectors: Iterable[str], numbers: Mapping[str, float], vector_size: int) -> int:
    """Return the size of a message to a client.

    Args:
        vectors: the names of the vectors in it.
        numbers: what stands in its configuration beside the round.
        vector_size: the size of one vector in bytes.
    """
    records = sum(text_bytes(name) + vector_size for name in vectors)
    return records + text_bytes("config") + numbers_bytes({"server-round", *numbers})
