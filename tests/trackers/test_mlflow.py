"""MLflow's database, as its own client reads it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim import parts
from fedsim.trackers.mlflow import FILE
from tests.trackers.conftest import GIVEN, Made, curve, sent

pytest.importorskip("mlflow")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody be reached, whatever the environment names."""

    def connect(*_: Any) -> None:
        raise AssertionError("somebody reaches for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def client(folder: Path) -> Any:
    return parts.library("mlflow").MlflowClient(f"sqlite:///{folder / FILE}")


def runs(there: Any, experiment: str = "fedsim") -> list[Any]:
    place = there.get_experiment_by_name(experiment).experiment_id
    return list(there.search_runs([place]))


def points(there: Any, run: Any, name: str) -> list[tuple[int, float, float]]:
    history = there.get_metric_history(run.info.run_id, name)
    return sorted((one.step, one.timestamp / 1000, one.value) for one in history)


def test_runs_share_a_database_beside_them_and_one_that_goes_on_stays_one(tracked: Made) -> None:
    tracker = {"name": "mlflow", "files": ["experiment.yaml", "summary.json", "no such file"]}
    run = tracked(tracker, broken=True)
    there = client(run.path.parent / "mlflow")
    [found] = runs(there)
    assert (found.info.run_name, found.info.status) == (run.path.name, "FINISHED")
    for name, wanted in {"accuracy": curve(run.path, "accuracy"), "bytes_up": sent(run.path)}.items():
        assert points(there, found, name) == [pytest.approx(one, abs=6e-4) for one in wanted]
    assert found.data.metrics["final/accuracy"] == run.summary["accuracy"]
    assert found.data.params["strategy.name"] == "fedavg"
    assert found.data.tags["fedsim.run_hash"] == run.summary["run_hash"]
    copied = {one.path for one in there.list_artifacts(found.info.run_id)}
    assert copied == {"experiment.yaml", "summary.json"}
    longer = fedsim.resume(run.path, extend={"rounds": 2})
    [found] = runs(there)
    assert points(there, found, "bytes_up") == [pytest.approx(one, abs=6e-4) for one in sent(longer.path)]
    assert found.data.metrics["final/rounds"] == 6
    again = tracked(tracker)  # the same experiment once more is a run of its own
    assert {one.info.run_name for one in runs(there)} == {run.path.name, again.path.name}
    # copied summaries are no runs of ours
    assert len(fedsim.results(run.path.parent)["run"].unique()) == 2


def test_runs_at_once_and_runs_together_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    record = {"report": False, "trackers": [{"name": "mlflow", "folder": "../db", "experiment": "mine"}]}
    study = {"name": "two", "base": {**GIVEN, "record": record}, "vary": {"seed": [1, 2]}}
    done = fedsim.sweep(study, out=tmp_path, jobs=2)
    study["vary"] = {"seed": [1, 2, 3, 4]}
    done += fedsim.sweep(study, out=tmp_path, jobs=2, together=True)[2:]
    there = client(tmp_path / "db")
    found = {one.info.run_name: one for one in runs(there, "mine")}
    assert set(found) == {one.folder.name for one in done if one.folder}
    assert len(found) == 4
    for one in done:
        assert one.folder is not None
        assert points(there, found[one.folder.name], "bytes_up") == [
            pytest.approx(row, abs=6e-4) for row in sent(one.folder)
        ]


def test_a_database_that_cannot_be_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "mlflow").write_text("a file where the folder should be")
    given = {**GIVEN, "record": {"report": False, "trackers": ["mlflow"]}}
    run = fedsim.run(given, out=tmp_path)
    assert run.summary["rounds"] == 4
    [said] = [one.getMessage() for one in caplog.records if "tracker" in one.getMessage()]
    assert "the tracker mlflow has failed, and the run goes on without it: FileExistsError" in said
