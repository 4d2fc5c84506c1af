"""The rows of the conformance suite: every strategy joins with one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """A strategy under test.

    Args:
        name: its name.
        params: parameters of a small run with part of the 8 clients.
        full: parameters with which all ``clients`` take part in every round.
        local: local training.
        topology: where it runs.
        steps_per_round: with full batches, one client and full participation: gradient-descent steps in each round.
    """

    name: str
    params: dict[str, Any]
    full: dict[str, Any]
    local: dict[str, Any] = field(default_factory=lambda: {"epochs": 1, "batch_size": 8, "lr": 0.1})
    topology: Any = "star"
    steps_per_round: tuple[int, ...] = (3, 3, 3, 3)


FEDAMD_LOCAL = {"steps": 3, "batch_size": 8, "lr": 0.1}

ROWS = [
    Row(
        "fedavg",
        {"fraction_train": 0.5, "fraction_evaluate": 0.0},
        {"fraction_evaluate": 0.0, "min_train_nodes": 1},
    ),
    Row(
        "fedamd",
        {"participants": 4, "p": 0.5},
        {"participants": 99, "period": 2},
        FEDAMD_LOCAL,
        "star",
        (0, 3, 0, 3),
    ),
    Row(
        "dpsgd",
        {"timeout_s": 30.0},
        {"timeout_s": 30.0},
        topology={"name": "random_regular", "degree": 3},
    ),
]


def experiment(row: Row, **changes: Any) -> dict[str, Any]:
    """Return a small world with latencies, bandwidth, slow devices and churn; ``a__b=c`` sets ``a.b``."""
    base: dict[str, Any] = {
        "name": row.name,
        "seed": 5,
        "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 5}},
        "model": {"name": "mlp", "hidden": 8},
        "strategy": {"name": row.name, "local": row.local, **row.params},
        "topology": row.topology,
        "network": {
            "latency_ms": {"distribution": "uniform", "low": 5, "high": 80},
            "up_mbps": 1,
            "down_mbps": 4,
            "detect_s": 1,
        },
        "devices": {"seconds_per_sample": {"distribution": "lognormal", "median": 0.01, "sigma": 0.5}},
        "churn": {"name": "exponential", "online_s": 20, "offline_s": 5},
        "stop": {"rounds": 4},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
    }
    for path, value in changes.items():
        *blocks, key = path.split("__")
        inside = base
        for block in blocks:
            inside = inside.setdefault(block, {})
        inside[key] = value
    return base


def calm(row: Row, clients: int, local: dict[str, Any]) -> dict[str, Any]:
    """Return a world without churn in which everybody takes part in every round."""
    whole = {
        "name": row.name,
        "local": local,
        **{k: min(v, clients) if k == "participants" else v for k, v in row.full.items()},
    }
    if row.name == "fedavg":
        whole["min_available_nodes"] = 1
    topology = "star" if row.topology == "star" else "complete"
    data = {"clients": clients}
    return experiment(row, strategy=whole, topology=topology, churn="always", data=data)


def flat(weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return a model's parameters as one vector."""
    return np.concatenate([array.reshape(-1) for array in weights.values()])


def rolled(labels: np.ndarray, clients: int, *, shift: int) -> list[np.ndarray]:
    """A partition of interleaved shards of different sizes, dealt out from another client on."""
    cuts = [
        int(len(labels) * share) for share in np.cumsum(np.arange(1, clients) / (clients * (clients + 1) / 2))
    ]
    shards = np.split(np.arange(len(labels)), cuts)
    return [shards[(client + shift) % clients] for client in range(clients)]
