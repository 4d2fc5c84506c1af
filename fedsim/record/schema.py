"""What a record holds: its tables, and the facts that readers know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

Table = dict[str, npt.NDArray[Any]]
"""Columns by name, all of one length; ``pandas.DataFrame(table)`` takes it as it is."""

FILE = "record.sqlite"

TABLES: dict[str, dict[str, str]] = {
    "metrics": {"round": "INTEGER", "time_us": "INTEGER", "name": "TEXT", "value": "REAL", "node": "INTEGER"},
    "rounds": {
        "round": "INTEGER",
        "time_us": "INTEGER",
        "bytes_up": "INTEGER",
        "bytes_down": "INTEGER",
        "bytes_lost": "INTEGER",
        "work": "REAL",
        "wasted": "REAL",
        "clients": "INTEGER",
    },
    "events": {
        "time_us": "INTEGER",
        "kind": "TEXT",
        "node": "INTEGER",
        "peer": "INTEGER",
        "size": "INTEGER",
        "round": "INTEGER",
    },
    "presence": {"time_us": "INTEGER", "node": "INTEGER", "online": "INTEGER"},
    "nodes": {
        "node": "INTEGER",
        "role": "TEXT",
        "bytes_up": "INTEGER",
        "bytes_down": "INTEGER",
        "bytes_lost": "INTEGER",
        "work": "REAL",
        "wasted": "REAL",
        "busy_us": "INTEGER",
        "idle_us": "INTEGER",
        "offline_us": "INTEGER",
        "wasted_us": "INTEGER",
        "joules": "REAL",
    },
    "links": {"a": "INTEGER", "b": "INTEGER", "bytes": "INTEGER"},
    "edges": {"a": "INTEGER", "b": "INTEGER", "latency_ms": "REAL", "mbps": "REAL"},
    "labels": {"client": "INTEGER", "label": "INTEGER", "count": "INTEGER"},
    "facts": {"key": "TEXT PRIMARY KEY", "value": "TEXT"},
    "journal": {"identity": "TEXT", "numbers": "TEXT"},
    "jobs": {
        "time_us": "INTEGER",
        "identity": "TEXT",
        "node": "INTEGER",
        "round": "INTEGER",
        "visit": "INTEGER",
    },
}
"""The columns of every table; a REAL that is NaN or infinite is stored as NULL and read as NaN."""

LATER = ("jobs",)
"""Tables that records of earlier versions do not have."""

DTYPES = {"INTEGER": np.int64, "REAL": np.float64}


class Pace(BaseModel):
    """How many samples take part; see :func:`fedsim.record.curriculum.pace`."""

    model_config = ConfigDict(strict=True)

    clock: Literal["step", "round"]
    sizes: Annotated[list[Annotated[list[float], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    end: float | None = None


class Place(BaseModel):
    """Where a node is, in degrees; a router is no client, peer or server."""

    model_config = ConfigDict(strict=True)

    node: int
    name: str
    longitude: float
    latitude: float
    router: bool = False


class Facts(BaseModel):
    """The facts that the report and the figures use; a record may hold others, of any kind."""

    model_config = ConfigDict(strict=True)

    target_accuracy: float | None = None
    sim_time_us: int | None = None
    assumed: dict[str, float | None] | None = None
    notes: list[str] | None = None
    app: str | None = None
    weighting: str | None = None
    spectral_gap: float | None = None
    mixing_rounds: float | None = None
    difficulty_between_clients: float | None = None
    difficulty_within_clients: float | None = None
    difficulty_unit: str | None = None
    difficulty_of_clients: list[float | None] | None = None
    pace: Pace | None = None
    places: list[Place] | None = None


class Summary(BaseModel):
    """What ``summary.json`` of a finished run holds for the report; it may hold more."""

    model_config = ConfigDict(strict=True)

    name: str | None = None
    strategy: str | None = None
    seed: int | None = None
    rounds: int | None = None
    sim_time_s: float | None = None
    wall_time_s: float | None = None
    wall_total_s: float | None = None
    time_to_target_s: float | None = None
    accuracy: float | None = None
    best_accuracy: float | None = None
    test_accuracy: float | None = None
    test_loss: float | None = None
    loss: float | None = None
    work_samples: float | None = None
    wasted_samples: float | None = None
    busy_s: float | None = None
    idle_s: float | None = None
    offline_s: float | None = None
    wasted_s: float | None = None
    joules: float | None = None
    memory_mb: float | None = None
    assumed: dict[str, float | None] | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    bytes_lost: int | None = None
    bytes_max_node: int | None = None
    bytes_min_node: int | None = None
    stalled: str | None = None
    event_hash: str | None = None
    weights_hash: str | None = None
    run_hash: str | None = None
