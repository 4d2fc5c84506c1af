"""Time alone: the same events as with training, whatever goes wrong, or refused by name before the start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from conformance_rows import ROWS, Row, experiment

import fedsim
from fedsim.errors import ConfigError
from fedsim.parts import names
from fedsim.running.build import depends_on_values, make_strategy

STORM = [
    {"name": "message_loss", "probability": 0.2},
    {"name": "message_duplication", "probability": 0.2},
    {"name": "crash", "at_s": 6.0, "count": 1},
]

SELECTORS: list[dict[str, Any]] = [
    {"name": "uniform"},
    {"name": "round_robin"},
    {"name": "by_size"},
    {"name": "available"},
    {"name": "power_of_choice", "candidates": 6},
    {"name": "curriculum", "rounds": 5},
    {"name": "curriculum", "rounds": 5, "order": "random"},
]
BY_VALUE = [SELECTORS[4], SELECTORS[5]]

TRANSFORMS: list[dict[str, Any]] = [
    {"name": "clip", "max_norm": 1.0},
    {"name": "noise", "std": 0.01},
    {"name": "top_k", "share": 0.1},
    {"name": "quantise"},
    {"name": "central_clip", "max_norm": 1.0},
    {"name": "central_noise", "std": 0.01},
]

SERVERS = [row for row in ROWS if row.topology == "star"]


def storm(row: Row, **changes: Any) -> dict[str, Any]:
    """Return a small world in which messages are lost and doubled, and nodes have many neighbours."""
    given = experiment(row, stop={"rounds": 6}, faults=STORM, compute__dtype="float32", **changes)
    if row.topology == "ring":
        given["topology"] = "complete"  # with two neighbours, there are not many orders to write to them in
    return given


def hashes(given: dict[str, Any], out: Path) -> list[Any]:
    """Return what happened with training and without."""
    found = [fedsim.run(given, out=out, timing_only=dry).summary for dry in (False, True)]
    return [(one["event_hash"], one["rounds"], one["work_samples"], one["bytes_up"]) for one in found]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_storm_is_the_same_without_training(row: Row, tmp_path: Path) -> None:
    full, dry = hashes(storm(row), tmp_path)
    assert full == dry


def test_all_that_chooses_and_transforms_is_tried() -> None:
    assert {one["name"] for one in SELECTORS} == set(names("selectors"))
    assert {one["name"] for one in TRANSFORMS} == set(names("transforms"))


def fits(given: dict[str, Any]) -> bool:
    """Tell whether a strategy takes what is put around it."""
    try:
        make_strategy(fedsim.load(given))
    except ConfigError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda one: one["name"])
@pytest.mark.parametrize("row", SERVERS, ids=lambda row: row.name)
def test_transforms_change_no_timing(row: Row, transform: dict[str, Any], tmp_path: Path) -> None:
    given = storm(row, strategy__around=[transform])
    if fits(given):
        full, dry = hashes(given, tmp_path)
        assert full == dry


@pytest.mark.slow
@pytest.mark.parametrize("select", SELECTORS, ids=lambda one: "-".join(map(str, one.values())))
@pytest.mark.parametrize("row", SERVERS, ids=lambda row: row.name)
def test_selectors_choose_alike_or_are_refused(row: Row, select: dict[str, Any], tmp_path: Path) -> None:
    given = storm(row, strategy__select=select)
    if not fits(given):
        return
    if select in BY_VALUE:
        assert depends_on_values(make_strategy(fedsim.load(given)))
        with pytest.raises(ConfigError, match=rf"strategy.name: {row.name}: cannot run timing-only"):
            fedsim.run(given, out=tmp_path, timing_only=True)
    else:
        full, dry = hashes(given, tmp_path)
        assert full == dry


def test_some_selectors_and_transforms_in_a_hurry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of them, around one strategy each: what the slow tests do for every strategy."""
    caplog.set_level(logging.ERROR)
    rows = {row.name: row for row in SERVERS}
    for name, select in zip(("fedavg", "fednova", "fedbuff", "fedasync"), [*SELECTORS[:4]], strict=True):
        full, dry = hashes(storm(rows[name], strategy__select=select), tmp_path)
        assert full == dry, (name, select)
    for name, transform in zip(("fedadam", "fednova", "fedbuff", "fedasync", "krum", "fedavgm"), TRANSFORMS):
        full, dry = hashes(storm(rows[name], strategy__around=[transform]), tmp_path)
        assert full == dry, (name, transform)
