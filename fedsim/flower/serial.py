"""Flower's records as bytes: to be kept in a file, and to be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Wire

from fedsim.flower.records import isolate, layout_of, solid, unpack, whole

Seen = dict[int, tuple[Any, bytes]]
"""Digests of vectors by the vector's id, with the vector, which must not go before its id is forgotten."""


def to_bytes(content: RecordDict) -> bytes:
    """Return records as Flower sends them.

    Raises:
        ValueError: if Flower could not send them, such as for a number that is too large.
    """
    ready = {
        name: solid(record) if isinstance(record, ArrayRecord) and whole(record) else record
        for name, record in content.items()
    }
    return bytes(recorddict_to_proto(RecordDict(ready)).SerializeToString())


def from_bytes(data: bytes) -> RecordDict:
    """Return the records that :func:`to_bytes` was given.

    >>> from flwr.app import MetricRecord
    >>> from_bytes(to_bytes(RecordDict({"m": MetricRecord({"loss": 0.5})})))["m"]["loss"]
    0.5
    """
    return isolate(recorddict_from_proto(Wire.FromString(data)))


def doubles(content: RecordDict) -> list[list[str]]:
    """Return record and key of the numbers that are NumPy's: they count differently beside arrays than Python's.

    >>> from flwr.app import MetricRecord
    >>> doubles(RecordDict({"m": MetricRecord({"a": 1.0, "b": np.float64(1)})}))
    [['m', 'b']]
    """
    return [
        [name, key]
        for name, record in content.items()
        if not isinstance(record, ArrayRecord)
        for key, value in record.items()
        if isinstance(value[0] if isinstance(value, list) and value else value, np.float64)
    ]


def with_doubles(content: RecordDict, found: list[list[str]]) -> RecordDict:
    """Make numbers of records NumPy's, those that :func:`doubles` has found; return the records."""
    for name, key in found:
        held: dict[str, Any] = content[name].__dict__["_data"]
        value = held[key]
        held[key] = [np.float64(one) for one in value] if isinstance(value, list) else np.float64(value)
    return content


def digest(content: RecordDict, seen: Seen | None = None) -> str:
    """Return the SHA-256 of what records hold, as 64 hexadecimal digits; who sends them, and when, is no part of it.

    Args:
        content: the records.
        seen: digests of the vectors that several messages share; it is added to.
    """
    seen, found, rest = {} if seen is None else seen, hashlib.sha256(), {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord) and whole(record):
            vector = unpack(record)
            if id(vector) not in seen:
                seen[id(vector)] = vector, _digest(vector.value())
            found.update(f"{name} {layout_of(record)}".encode() + seen[id(vector)][1])
        else:
            rest[name] = record
    found.update(to_bytes(RecordDict(rest)))
    return found.hexdigest()


def _digest(vector: torch.Tensor) -> bytes:
    plain = vector.detach().cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(plain.data).digest()
