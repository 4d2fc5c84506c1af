"""A run that is tracked, and what its record says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.errors import RunError
from fedsim.record import read

GIVEN: dict[str, Any] = {
    "name": "tracked",
    "data": {"clients": 4, "client_test_share": 0.25},
    "model": "softmax",
    "strategy": {"name": "fedavg", "participants": 2, "local": {"steps": 1, "batch_size": 8, "lr": 0.1}},
    "evaluate": {"every": 2},
    "stop": {"rounds": 4},
    "record": {"report": False, "checkpoint": {"every_rounds": 1}},
}

Made = Callable[..., fedsim.Result]


@pytest.fixture
def tracked(tmp_path: Path) -> Made:
    """Return what runs with trackers; `broken` ends the run in round 3, and lets it go on."""

    def make(*trackers: Any, broken: bool = False) -> fedsim.Result:
        def progress(now: fedsim.Progress) -> None:
            if broken and now.round == 3:
                raise RunError("as if killed")

        given = {**GIVEN, "record": {**GIVEN["record"], "trackers": list(trackers)}}
        try:
            return fedsim.run(given, out=tmp_path / "runs", progress=progress)
        except RunError as error:
            return fedsim.resume(error.run_path)  # type: ignore[attr-defined]

    return make


def curve(folder: Path, name: str) -> list[tuple[int, float, float]]:
    """Return round, simulated seconds and value of a metric of the whole system, as the record has them."""
    table = read(folder, "metrics", name=name, node=-1)
    return list(zip(table["round"].tolist(), (table["time_us"] / 1e6).tolist(), table["value"].tolist()))


def sent(folder: Path) -> list[tuple[int, float, float]]:
    """Return round, simulated seconds and bytes that had been sent by then."""
    table = read(folder, "rounds")
    rows = (table["round"], table["time_us"] / 1e6, table["bytes_up"].astype(float))
    return list(zip(*(row.tolist() for row in rows)))
