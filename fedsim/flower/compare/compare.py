"""Says whether an app gives the same here and in Flower's own simulation engine, and how long both take."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import MISSING, ConfigError, Problem, RunError
from fedsim.flower.apps.project import read_project
from fedsim.record import weights
from fedsim.record.store import read

SIDES = ("fedsim", "flwr")
CLOSE = 1e-6
"""Numbers that differ by no more than this share are equal: the last digits depend on the order of sums."""
TAIL = 3000
FEW = 5
"""So many names are told."""
QUIET = {
    "RAY_ADDRESS": "local",  # Ray would wait for ever for a cluster that was here and has been killed
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
}


@dataclass(frozen=True)
class Agreement:
    """How far two sets of named arrays or numbers agree.

    Args:
        names: how many there are on either side.
        alone: those that are on one side only.
        worst: the largest difference, as a share of the largest magnitude under that name.
        where: the name of the worst, or nothing if all are equal bit for bit.
    """

    names: int
    alone: tuple[str, ...]
    worst: float
    where: str

    @classmethod
    def of(cls, one: Mapping[str, Any], two: Mapping[str, Any]) -> Agreement:
        """Compare what two runs have left.

        >>> Agreement.of({"a": 1.0, "b": 4.0}, {"a": 1.0, "b": 3.0})
        Agreement(names=2, alone=(), worst=0.25, where='b')
        """
        both = [name for name in one if name in two]
        shares = {name: _share(one[name], two[name]) for name in both}
        where = max(shares, key=shares.__getitem__, default="")
        worst = shares.get(where, 0.0)
        return cls(len({*one, *two}), tuple(sorted({*one} ^ {*two})), worst, where if worst else "")

    @property
    def close(self) -> bool:
        """Whether both are equal but for the last digits."""
        return not self.alone and self.worst <= CLOSE

    def __str__(self) -> str:
        if self.alone:
            return f"differ: only one side has {', '.join(self.alone[:FEW])}"
        if not self.names:
            return "none to compare"
        if not self.where:
            return f"equal, bit for bit ({self.names})"
        share = f"by {self.worst:.1e} of the largest, in {self.where}"
        return f"equal but for the last digits, {share}" if self.close else f"differ, {share}"


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_app` has found.

    Args:
        weights: of the final models.
        metrics: of all numbers recorded, by round and name.
        startup_s: seconds until all clients were there, by side.
        rounds_s: seconds from then on, by side.
        errors: how many replies were errors, by side.
    """

    weights: Agreement
    metrics: Agreement
    startup_s: Mapping[str, float]
    rounds_s: Mapping[str, float]
    errors: Mapping[str, int]

    @property
    def close(self) -> bool:
        """Whether both sides give the same."""
        return self.weights.close and self.metrics.close and len(set(self.errors.values())) == 1


def compare_app(path: str | Path, *, nodes: int, run_config: str = "") -> Comparison:
    """Run an app here and in Flower's own engine, each in a process of its own, and compare what they give.

    Here the world has no delays. There, nodes are known by their partitions, draws are seeded and replies are taken
    in the order of the messages, as they are here. Both compute with one thread.

    Args:
        path: the app's folder.
        nodes: how many clients.
        run_config: values that replace those of the app.

    Raises:
        ConfigError: for a mistake, or if ``flwr[simulation]`` is not installed.
        RunError: if the app breaks on one side; it has the end of what that side has printed.
    """
    read_project(path, run_config)
    if nodes < 1:
        raise ConfigError([Problem("--nodes", nodes, "must be at least 1")])
    if importlib.util.find_spec("ray") is None:
        rule, hint = "is not installed, and Flower's own engine needs it", "pip install 'flwr[simulation]'"
        raise ConfigError([Problem("ray", MISSING, rule, hint)])
    left, startup_s, rounds_s, errors = {}, {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="fedsim-compare-") as folder:
        for side in SIDES:
            out = Path(folder) / side
            out.mkdir()
            total_s, told = _run(side, [str(path), str(nodes), run_config, str(out)], out)
            rounds_s[side] = float(told["wall_s"])
            startup_s[side] = total_s - rounds_s[side]
            errors[side] = int(told["errors"])
            left[side] = _left(Path(told["record"]))
    models, numbers = zip(*left.values(), strict=True)
    return Comparison(Agreement.of(*models), Agreement.of(*numbers), startup_s, rounds_s, errors)


def _run(side: str, given: list[str], out: Path) -> tuple[float, dict[str, Any]]:
    """Run one side; return its seconds and what it says."""
    began = time.monotonic()
    command = [sys.executable, "-m", "fedsim.flower.compare.side", side, *given]
    done = subprocess.run(
        command, env={**os.environ, **QUIET}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    file = out / "side.json"
    if done.returncode or not file.exists():
        raise RunError(
            f"the app has failed with exit code {done.returncode}\n{done.stdout[-TAIL:]}", phase=side
        )
    return time.monotonic() - began, json.loads(file.read_text())


def _left(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model and the numbers that a run has left."""
    file, rows = folder / weights.FILE, read(folder, "metrics")
    model = dict(weights.read_arrays(file)) if file.exists() else {}
    keys = zip(rows["round"].tolist(), rows["name"].tolist(), rows["node"].tolist(), strict=True)
    names = [
        f"{name} of round {round}" + (f", node {node}" if node >= 0 else "") for round, name, node in keys
    ]
    return model, dict(zip(names, rows["value"].tolist(), strict=True))


def _share(one: Any, two: Any) -> float:
    """Return the largest difference of two arrays as a share of the largest magnitude in them."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape != two.shape or one.dtype != two.dtype:
        return float("inf")
    if np.array_equal(one, two, equal_nan=one.dtype.kind in "fc"):
        return 0.0
    one, two = one.astype(np.float64), two.astype(np.float64)
    largest = max(float(np.abs(one).max()), float(np.abs(two).max()))
    share = float(np.abs(one - two).max()) / largest
    return share if share == share else float("inf")  # NaN on one side alone
