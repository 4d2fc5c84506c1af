"""Comparisons leave out what cannot be compared, and say so; nothing of it is lost."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError

GIVEN: dict[str, Any] = {
    "name": "r",
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedavg", "participants": 2, "local": {"steps": 1}},
    "stop": {"rounds": 2},
    "record": {"report": False},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a good run and all kinds of others."""
    out = tmp_path_factory.mktemp("made")
    good = fedsim.run(GIVEN, out=out).path.rename(out / "good")
    fedsim.run(GIVEN, out=out, timing_only=True).path.rename(out / "timing")
    other = {"name": "synthetic", "clients": 4, "alpha": 1.0, "beta": 1.0}
    fedsim.run({**GIVEN, "data": other}, out=out).path.rename(out / "other")

    def fail(now: fedsim.Progress) -> None:
        raise fedsim.RunError("the power is gone")

    with pytest.raises(fedsim.RunError) as caught:
        fedsim.run({**GIVEN, "seed": 2}, out=out, progress=fail)
    caught.value.run_path.rename(out / "failed")  # type: ignore[attr-defined]
    for name in ("version", "broken", "bare"):
        shutil.copytree(good, out / name)
    with closing(sqlite3.connect(out / "version" / "record.sqlite")) as db:
        db.execute("ALTER TABLE nodes ADD COLUMN more INTEGER")
    (out / "broken" / "summary.json").write_text('{"accuracy": 0.')
    (out / "bare" / "experiment.yaml").unlink()
    return out


NOTES = {
    "failed": "left out, as it has not come to its end: failed",
    "timing": "left out, as accuracy was not measured: timing",
    "version": "left out, as its record cannot be read (run: {0}/version: holds no readable record (its table nodes "
    "has other columns)): version",
    "broken": "left out, as its record cannot be read (Expecting ',' delim",
    "bare": "left out, as its settings cannot be read ({0}/bare/experiment.yaml: no such file): bare",
    "other": "these runs have other data: data.name is digits or synthetic, data.alpha is null or 1.0",
}


@pytest.mark.parametrize("name", NOTES)
def test_what_cannot_be_compared_is_said_in_a_line_and_the_rest_is_shown(
    name: str, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = fedsim.compare(made / "good", made / name)
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith(NOTES[name].format(made))
    assert "\n" not in said
    [row] = found.rows()
    assert row.runs == (2 if name == "other" else 1)
    [page] = [file for file in found.write(tmp_path) if file.suffix == ".html"]
    assert page.read_text().count("Note: ") == 1


def test_a_folder_of_all_of_them_shows_what_it_can(made: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = fedsim.compare(made)
    assert [row.runs for row in found.rows()] == [2]  # good, and other
    assert len(found.notes) == len(NOTES)
    assert set(fedsim.results(made)["run"]) == {"good", "other"}  # nothing was measured in the others


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("failed", "there is no finished run; left out, as it has not come to its end: failed"),
        (
            "timing",
            "these runs have no metric in common; were all evaluated? a timing-only run measures nothing",
        ),
        ("version", "there is no finished run; left out, as its record cannot be read"),
        ("good/summary.json", "is not a folder"),
        ("nothing", "no such folder"),
    ],
)
def test_where_nothing_is_left_that_is_a_mistake_in_one_line(name: str, said: str, made: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(made / name)])
    assert done.exit_code == 2
    [line] = done.output.splitlines()
    assert said in line


def test_runs_of_a_study_that_failed_are_said_when_the_others_are_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = {"name": "some", "base": GIVEN, "vary": {"strategy.participants": [2, 9]}}
    assert [one.status for one in fedsim.sweep(study, out=tmp_path)] == ["done", "failed"]
    found = fedsim.compare(tmp_path / "some")
    assert [row.name for row in found.rows()] == ["2"]
    [note] = found.notes
    assert note.startswith("left out, as it failed (")
    assert note.endswith("9: at most 4, the number of clients): strategy.participants=9")


def test_data_that_are_compared_on_purpose_are_no_surprise(tmp_path: Path) -> None:
    study = {"name": "some", "base": GIVEN, "vary": {"data.clients": [3, 4]}}
    fedsim.sweep(study, out=tmp_path)
    assert fedsim.compare(tmp_path / "some", by="data.clients").notes == []


def test_a_metric_that_nobody_has_measured_is_a_mistake(made: Path) -> None:
    with pytest.raises(ConfigError, match="metric: f1: was not measured by good"):
        fedsim.compare(made / "good", metric="f1")
