"""Sinks hear what the record hears, in every kind of run, and cannot cost a run unless the user says so."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.flower import run_app
from fedsim.inspection import replay_job
from fedsim.record import read
from fedsim.running.sinks import DONE, FAILED, STOPPED, End, Sinks, Told

APP = Path(__file__).parents[1] / "flower" / "apps" / "plain"
SINKS = '''
import json
from dataclasses import asdict
from pathlib import Path


class Diary:
    """Write down what is heard."""

    def __init__(self, *, at: str = "", first: bool = False) -> None:
        """Break at some call; the first time alone."""
        self.at = at

    def _hear(self, what, **said):
        if what == self.at:
            raise ValueError(f"no {what} today\\nand more")
        with self.file.open("a") as file:
            file.write(json.dumps([what, said]) + "\\n")

    def start(self, about):
        self.file = about.folder / "diary.txt"
        self.file.write_text("")
        self._hear("start", name=about.folder.name, seed=about.settings["seed"], rounds=about.flat["stop.rounds"])

    def round(self, told):
        self._hear("round", **asdict(told))

    def end(self, end):
        files = sorted(file.name for file in self.file.parent.iterdir() if file.is_file())
        self._hear("end", status=end.status, reason=end.reason, rounds=end.summary.get("rounds"), files=files)


class Silent:
    """Hear of nothing but the end."""

    def end(self, end):
        pass


def leaving():
    """Leave."""
    raise SystemExit(3)
'''
GIVEN: dict[str, Any] = {
    "name": "heard",
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "fedavg", "participants": 2, "local": {"steps": 1, "batch_size": 8, "lr": 0.1}},
    "evaluate": {"every": 2},
    "stop": {"rounds": 4},
    "record": {"report": False, "trackers": ["diary:Diary"], "checkpoint": {"every_rounds": 1}},
}


@pytest.fixture(autouse=True)
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "diary.py").write_text(SINKS)
    monkeypatch.chdir(tmp_path)


def heard(folder: Path, what: str = "round") -> list[dict[str, Any]]:
    lines = (folder / "diary.txt").read_text().splitlines()
    return [said for kind, said in map(json.loads, lines) if kind == what]


def of_record(folder: Path) -> dict[int, tuple[dict[str, float], dict[str, dict[str, float]]]]:
    """Return what the record has of each round: of the whole system, and of nodes."""
    rounds, table = read(folder, "rounds"), read(folder, "metrics")
    names = ("bytes_up", "bytes_down", "bytes_lost", "work", "wasted", "clients")
    found: dict[int, Any] = {
        round: ({name: float(rounds[name][row]) for name in names}, {})
        for row, round in enumerate(rounds["round"].tolist())
    }
    for round, name, node, value in zip(*(table[key].tolist() for key in ("round", "name", "node", "value"))):
        whole, each = found.setdefault(round, ({}, {}))  # an app may measure before its first round
        if node < 0:
            whole[name] = value
        else:
            each.setdefault(name, {})[str(node)] = value
    return found


def check(folder: Path) -> None:
    """Compare what a sink has heard with the record."""
    told = heard(folder)
    assert {one["round"]: (one["numbers"], one["nodes"]) for one in told} == of_record(folder)
    assert [one["round"] for one in told] == sorted({one["round"] for one in told})  # each once, in order
    times = {one["round"]: round(one["sim_time_s"] * 1e6) for one in told}
    rounds = read(folder, "rounds")
    assert times | dict(zip(rounds["round"].tolist(), rounds["time_us"].tolist(), strict=True)) == times


KINDS: dict[str, dict[str, Any]] = {
    "ours": {},
    "peers": {"strategy": {"name": "dpsgd", "local": {"steps": 1}}, "topology": "ring"},
    "Flower's": {"strategy": {"name": "flwr.serverapp.strategy:FedAvgM", "local": {"steps": 1}}},
    "own tests": {"data": {"clients": 4, "client_test_share": 0.25}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_heard_is_what_is_recorded(kind: str, tmp_path: Path) -> None:
    run = fedsim.run({**GIVEN, **KINDS[kind]}, out=tmp_path / "runs")
    check(run.path)
    [start], [end] = heard(run.path, "start"), heard(run.path, "end")
    assert start == {"name": run.path.name, "seed": 0, "rounds": 4}
    assert (end["status"], end["reason"], end["rounds"]) == (DONE, "", 4)
    assert {"summary.json", "weights.safetensors", "record.sqlite"} <= set(end["files"])
    nodes = {name for one in heard(run.path) for name in one["nodes"]}
    wanted = {"peers": "accuracy", "own tests": "client_accuracy"}
    assert kind not in wanted or wanted[kind] in nodes


def test_a_run_that_keeps_time_alone_is_heard_of(tmp_path: Path) -> None:
    run = fedsim.run(GIVEN, out=tmp_path / "runs", timing_only=True)
    check(run.path)
    assert "accuracy" not in heard(run.path)[-1]["numbers"]
    assert heard(run.path)[-1]["numbers"]["clients"] == 8  # two in each of four rounds


def test_a_flower_app_is_heard_of(tmp_path: Path) -> None:
    folder = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    world = {"network.latency_ms": 5, "record.report": False, "record.trackers": ["diary:Diary"]}
    run = run_app(folder, nodes=3, overrides=world, out=tmp_path / "runs")
    check(run.path)
    assert heard(run.path, "end")[0]["status"] == DONE
    assert heard(run.path)[-1]["round"] == run.summary["rounds"]


def test_runs_of_a_study_are_heard_of_each_by_itself(tmp_path: Path) -> None:
    study = {"name": "few", "base": GIVEN, "vary": {"seed": [1, 2]}}
    for outcome in fedsim.sweep(study, out=tmp_path / "runs", together=True, jobs=2):
        assert outcome.folder is not None
        check(outcome.folder)
        assert heard(outcome.folder, "start")[0]["seed"] == outcome.point.settings["seed"]


def ends(round: int, error: BaseException) -> Any:
    def progress(now: fedsim.Progress) -> None:
        if now.round == round:
            raise error

    return progress


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), STOPPED, ""),
        (RunError("the power\nis gone"), FAILED, "run: the power is gone"),
    ],
)
def test_a_run_that_ends_early_and_goes_on_is_heard_of_once(
    error: BaseException, status: str, reason: str, tmp_path: Path
) -> None:
    whole = fedsim.run(GIVEN, out=tmp_path / "whole")
    with pytest.raises(type(error)):
        fedsim.run(GIVEN, out=tmp_path / "runs", progress=ends(3, error))
    [folder] = (tmp_path / "runs").iterdir()
    [end] = heard(folder, "end")
    assert (end["status"], end["reason"], end["rounds"]) == (status, reason, None)
    assert [one["round"] for one in heard(folder)] == [0, 1, 2, 3]
    run = fedsim.resume(folder)
    assert heard(run.path) == heard(whole.path)
    assert len(heard(run.path, "start")) == 1
    longer = fedsim.resume(folder, extend={"rounds": 2})
    check(longer.path)
    assert [one["round"] for one in heard(folder)] == list(range(7))


def test_looking_into_a_run_tells_nobody(tmp_path: Path) -> None:
    run = fedsim.run(GIVEN, out=tmp_path / "runs")
    before = (run.path / "diary.txt").read_text()
    (tmp_path / "diary.py").unlink()  # nor is anything needed for it
    replay_job(run.path, str(read(run.path, "jobs")["identity"][-1]))
    assert (run.path / "diary.txt").read_text() == before


@pytest.mark.parametrize("at", ["start", "round", "end"])
def test_a_sink_that_raises_costs_nothing_and_is_told_of_once(
    at: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = [{"name": "diary:Diary", "at": at}, "csv", "diary:Silent"]
    plain = fedsim.run({**GIVEN, "record": {"report": False}}, out=tmp_path / "plain")
    with caplog.at_level(logging.WARNING, "fedsim"):
        run = fedsim.run({**GIVEN, "record": {"report": False, "trackers": trackers}}, out=tmp_path / "runs")
    [said] = [record.getMessage() for record in caplog.records]
    assert said == (
        "the tracker diary:Diary has failed, and the run goes on without it: "
        f"ValueError at diary.py:16: no {at} today"
    )
    assert run.summary["run_hash"] == plain.summary["run_hash"]
    assert len((run.path / "numbers.csv").read_text().splitlines()) > 20  # the others go on


@pytest.mark.parametrize(("at", "place"), [("start", "round 0"), ("round", "round 0"), ("end", "")])
def test_a_sink_that_raises_stops_the_run_if_the_user_says_so(at: str, place: str, tmp_path: Path) -> None:
    tracker = {"name": "diary:Diary", "at": at, "on_failure": "stop"}
    (tmp_path / "a.yaml").write_text(
        json.dumps({**GIVEN, "record": {"report": False, "trackers": [tracker, "csv"]}})
    )
    done = CliRunner().invoke(app, ["run", "a.yaml"])
    assert done.exit_code == 3
    [line] = [line for line in done.output.splitlines() if line.endswith(f"no {at} today") and "at d" in line]
    assert line.startswith(f"{place}, t = 0.000000 s, tracker" if place else "tracker diary:Diary: ")
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "summary.json").exists() == (at == "end")


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        (["tensorbord"], "record.trackers.0: tensorbord: no such tracker; did you mean tensorboard?"),
        ([{"name": "csv", "node": True}], "record.trackers.0.node: unknown key; did you mean nodes?"),
        (["csv", "csv"], "record.trackers.1: csv: is there twice"),
        ([{"name": "csv", "on_failure": "cry"}], "record.trackers.0.on_failure: cry: must be drop or stop"),
        (
            [{"name": "mlflow", "folder": "http://server"}],
            "record.trackers.0.folder: http://server: must be a folder on this machine",
        ),
        ([{"name": "wandb", "project": " "}], "record.trackers.0.project:  : must not be empty"),
        ("csv", "record.trackers: csv: must be a list"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(trackers: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        fedsim.run({**GIVEN, "record": {"trackers": trackers}}, out=tmp_path / "runs")
    assert str(caught.value) == said
    assert not (tmp_path / "runs").exists()


def test_a_library_that_is_not_there_is_said_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError) as caught:
        fedsim.check({**GIVEN, "record": {"trackers": ["tensorboard"]}})
    assert str(caught.value) == (
        "record.trackers.0: needs tensorboard, which is not installed; pip install 'tensorboard>=2.14'"
    )


def test_a_sink_that_breaks_when_it_is_made_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def sink():\n    'Break.'\n    raise RuntimeError('not today')\n")
    with pytest.raises(ConfigError, match=r"trackers\.0: bad:sink: breaks at .*bad.py:3: RuntimeError"):
        fedsim.check({**GIVEN, "record": {"trackers": ["bad:sink"]}})


def test_a_file_keeps_how_it_was_written() -> None:
    given = {
        **GIVEN,
        "record": {"trackers": ["csv", {"name": "mlflow", "folder": "x", "on_failure": "stop"}]},
    }
    experiment = fedsim.load(given)
    assert json.loads(experiment.model_dump_json())["record"]["trackers"] == given["record"]["trackers"]
    assert fedsim.load(given) == experiment


class Ears:
    def __init__(self) -> None:
        self.told: list[Told | End] = []

    def round(self, told: Told) -> None:
        self.told.append(told)

    end = round


def test_rounds_are_told_when_they_have_ended_and_what_is_late_with_its_round() -> None:
    ears = Ears()
    sinks = Sinks([("ears", ears, False)])
    sinks.metric(1, 500_000, "roles", 2.0, -1)
    sinks.metric(2, 600_000, "age", 1.0, 7)  # of a round that goes on
    sinks.round(1, 1_000_000, {"bytes_up": 3})
    sinks.tell(1)
    assert ears.told == [Told(1, 1.0, {"bytes_up": 3, "roles": 2.0})]
    sinks.metric(1, 1_500_000, "late", 4.0, -1)
    sinks.tell()
    assert ears.told[1:] == [Told(1, 1.5, {"late": 4.0}), Told(2, 0.6, {}, {"age": {7: 1.0}})]
    sinks.finish({"rounds": 2, "loss": np.nan})
    assert isinstance(ears.told[-1], End)
    assert ears.told[-1].numbers == {"rounds": 2.0}
    sinks.metric(3, 0, "x", 1.0, -1)
    sinks.tell()  # nobody hears any more
    assert len(ears.told) == 4
