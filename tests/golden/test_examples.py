"""The committed experiments give what they gave: the same events to the byte, the same quality.

The experiments of papers take long: they are held to their events, which need no training. Those whose choices depend
on values, or whose data nobody has here, are held to be well written.
"""

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
RUNS = [ROWS[0], *(pytest.param(*row.values, marks=pytest.mark.slow) for row in ROWS[1:])]
LONG = {"papers/modest-crash80.yaml", "papers/modest-join.yaml", "papers/modest-mnist.yaml"}
PAPERS = [
    pytest.param(name, marks=pytest.mark.slow if name in LONG else ())
    for name, wanted in GOLDEN.items()
    if name.startswith("papers/") and wanted
]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder with real data, and let experiments find it."""
    if not DATA.is_dir():
        pytest.skip("there is no data folder")
    monkeypatch.setenv("FEDSIM_DATA", str(DATA))
    return DATA


def path_of(name: str) -> Path:
    """Return the file of an experiment; those of papers come with the package."""
    folder = ROOT / "fedsim" / "study" if name.startswith("papers/") else ROOT / "experiments"
    return folder / name


def test_every_experiment_is_here() -> None:
    folder, package = ROOT / "experiments", ROOT / "fedsim" / "study"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")}
    files |= {path.relative_to(package).as_posix() for path in package.glob("papers/*.yaml")}
    assert {file for file in files if not file.startswith("studies/")} == GOLDEN.keys()
    papers = {name for name in GOLDEN if name.startswith("papers/")}
    assert GOLDEN.keys() - papers == {row.values[0] for row in ROWS}


@pytest.mark.parametrize(("name", "accuracy", "needs"), RUNS)
def test_an_example_gives_what_it_gave(
    name: str, accuracy: float, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if needs and not (DATA / needs).is_dir():
        pytest.skip(f"{needs} is not in the data folder")
    monkeypatch.setenv("FEDSIM_DATA", str(DATA))
    found = fedsim.run(path_of(name), out=tmp_path).summary
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
    found = timing(name, tmp_path)
    assert found["event_hash"] == GOLDEN[name]["event_hash"]


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_takes_the_time_that_it_took(name: str, data: Path, tmp_path: Path) -> None:
    found = timing(name, tmp_path)
    assert {key: found[key] for key in GOLDEN[name]} == GOLDEN[name]


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("papers/")])
def test_a_paper_is_well_written(name: str) -> None:
    experiment = fedsim.load(path_of(name))
    assert experiment.name == Path(name).stem


def timing(name: str, out: Path) -> dict[str, object]:
    """Return the summary of a run without training."""
    return fedsim.run(path_of(name), out=out, timing_only=True, record__report=False).summary
