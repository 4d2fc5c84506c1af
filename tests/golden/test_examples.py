"""The committed experiments give what they gave: the same events to the byte, the same quality."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import fedsim

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "examples.json").read_text())
DATA = Path(os.environ.get("FEDSIM_DATA", ROOT.parent / "shared" / "data"))

ROWS = [
    pytest.param("quickstart.yaml", 0.85, ""),
    pytest.param("digits-dpsgd.yaml", 0.85, ""),
    pytest.param("scale/flaky-phones.yaml", 0.85, ""),
    pytest.param("mnist-fedavg.yaml", 0.90, "MNIST", marks=pytest.mark.slow),
]


def test_every_experiment_is_here() -> None:
    folder = ROOT / "experiments"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")} == GOLDEN.keys()
    assert GOLDEN.keys() == {row.values[0] for row in ROWS}


@pytest.mark.parametrize(("name", "accuracy", "needs"), ROWS)
def test_an_example_gives_what_it_gave(
    name: str, accuracy: float, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs and not (DATA / needs).is_dir():
        pytest.skip(f"{needs} is not in the data folder")
    monkeypatch.setenv("FEDSIM_DATA", str(DATA))
    found = fedsim.run(ROOT / "experiments" / name, out=tmp_path).summary
    wanted = GOLDEN[name]
    assert found["event_hash"] == wanted["event_hash"]
    assert found["sim_time_s"] == wanted["sim_time_s"]
    assert found["accuracy"] == pytest.approx(
        wanted["accuracy"], abs=0.03
    )  # other processors round differently
    assert found["accuracy"] > accuracy


@pytest.mark.parametrize(("name", "accuracy", "needs"), ROWS[:3])
def test_timing_alone_gives_the_same_events(name: str, accuracy: float, needs: str, tmp_path: Path) -> None:
    del accuracy, needs
    found = fedsim.run(
        ROOT / "experiments" / name, out=tmp_path, timing_only=True, record__report=False
    ).summary
    assert found["event_hash"] == GOLDEN[name]["event_hash"]
