"""What is compared, by whatever setting, says what it leaves out, and never averages over what nobody knows of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.study.tables import grid

LOCAL = {"steps": 2, "lr": 0.1}
BASE: dict[str, Any] = {
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": LOCAL},
    "stop": {"rounds": 1},
    "record": {"report": False, "events": False},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs of no study: two rates with one method, and another method."""
    out = tmp_path_factory.mktemp("plain")
    for changes in (
        {"strategy.local.lr": 0.1},
        {"strategy.local.lr": 1e-6},
        {"strategy": {"name": "fedavg", "participants": 2, "local": LOCAL}},
    ):
        fedsim.run({**BASE, "name": "r"}, overrides={"evaluate.every": 1, **changes}, out=out)
    return out


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study in which the baseline is refused, and blocks with one name differ inside."""
    out = tmp_path_factory.mktemp("study")
    trees = [{"name": "tree", "branching": 2}, {"name": "tree", "branching": 3}]
    methods = {"a": {}, "none": {"strategy.participants": 9}}
    compare = {"baseline": "none", "target": {"accuracy": 0.0}}
    fedsim.sweep({"base": BASE, "methods": methods, "vary": {"topology": trees}, "compare": compare}, out=out)
    return out / "study"


def last(run: Path) -> float:
    table = fedsim.results(run)
    return float(table[(table.metric == "accuracy") & (table["round"] == 1)].value.iloc[0])


def test_runs_of_no_study_that_differ_in_more_than_the_method_are_averaged_with_a_note(
    plain: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = fedsim.compare(plain)
    assert {row.name: row.runs for row in found.rows()} == {"fedprox": 2, "fedavg": 1}
    [said] = [record.getMessage() for record in caplog.records]
    first, second = sorted(("0.1", "1e-06"))
    assert said.startswith("averaged within fedprox, though strategy.local.lr is ")
    assert first in said
    assert second in said
    assert said.endswith("; --by strategy.local.lr keeps them apart")


def test_any_key_of_the_experiment_can_be_compared_by(plain: Path, study: Path) -> None:
    runs = {float(fedsim.load(one / "experiment.yaml").strategy.local.lr): one for one in plain.glob("r-*")}
    found = fedsim.compare(plain, by="strategy.local.lr", only={"method": "fedprox"})
    rows = {row.name: row for row in found.rows()}
    assert set(rows) == {"0.1", "1e-06"}
    assert rows["1e-06"].final[0] == last(runs[1e-6])
    assert found.notes == []
    assert {row.name for row in fedsim.compare(plain, by="strategy.name").rows()} == {"fedprox", "fedavg"}
    assert {row.name for row in fedsim.compare(plain, by="strategy.mu").rows()} == {"0.0", "default"}
    assert {row.name for row in fedsim.compare(plain, by="run").rows()} == {
        one.name for one in plain.glob("r-*")
    }
    assert {row.name for row in fedsim.compare(study, by="strategy.name").rows()} == {"fedprox"}
    with pytest.raises(ConfigError, match=r"by: strategy\.m: is no setting of r-"):
        fedsim.compare(plain, by="strategy.m")


def test_blocks_of_one_name_are_not_the_same(study: Path) -> None:
    rows = fedsim.compare(study, by="topology").rows()
    assert [(row.name, row.runs) for row in rows] == [("tree (branching 2)", 1), ("tree (branching 3)", 1)]
    assert [row.runs for row in fedsim.compare(study, only={"topology": "tree"}).rows()] == [2]
    assert [row.runs for row in fedsim.compare(study, only={"topology": "tree (branching 3)"}).rows()] == [1]


def test_without_the_baseline_all_else_is_shown(study: Path) -> None:
    found = fedsim.compare(study)
    assert [(row.name, row.ratios) for row in found.rows()] == [("a", {})]
    assert found.notes[-1] == "no ratios, as there is no run of none here"
    assert fedsim.compare(study, baseline="none").baseline is None
    with pytest.raises(ConfigError, match="baseline: nine: is no method"):
        fedsim.compare(study, baseline="nine")


def test_a_study_of_a_single_run_is_compared_by_its_name(tmp_path: Path) -> None:
    [done] = fedsim.sweep({"base": BASE}, out=tmp_path)
    assert done.folder is not None
    [row] = fedsim.compare(tmp_path / "study").rows()
    assert (row.name, row.final[0]) == (done.folder.name, done.summary["accuracy"])


def test_a_baseline_that_never_comes_there_has_no_ratio(tmp_path: Path) -> None:
    study = {"base": BASE, "methods": {"a": {}, "b": {"strategy.mu": 1.0}}}
    fedsim.sweep(study, out=tmp_path)
    titles, rows = grid(fedsim.compare(tmp_path / "study", target=2.0, baseline="a", metric="accuracy"))
    at = titles.index("rounds relative to a")
    assert [row[at] for row in rows] == ["–", "–"]


def test_a_file_of_the_other_kind_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("base: e.yaml\nvary: {seed: [1]}\n")
    (tmp_path / "e.yaml").write_text("data: {clients: 2}\nstrategy: fedavg\nstop: {rounds: 1}\n")
    said = [
        CliRunner().invoke(app, [word, str(tmp_path / name)])
        for word, name in (("run", "s.yaml"), ("sweep", "e.yaml"))
    ]
    assert [one.exit_code for one in said] == [2, 2]
    assert (
        said[0].stderr
        == f"{tmp_path}/s.yaml: is a study and no experiment; fedsim sweep runs what it varies\n"
    )
    assert said[1].stderr.startswith(f"{tmp_path}/e.yaml: is an experiment and no study; fedsim run runs it")
