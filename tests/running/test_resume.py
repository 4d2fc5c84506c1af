"""Runs that were stopped go on; what was saved is checked before anybody relies on it."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.learn.engines.sequential import Sequential
from fedsim.record import read
from fedsim.record.store import facts
from fedsim.running.checkpoint import files
from fedsim.running.lock import locked
from fedsim.running.signals import Terminated
from fedsim.version import __version__

GIVEN: dict[str, Any] = {
    "name": "long",
    "data": {"clients": 6},
    "model": "softmax",
    "strategy": {"name": "scaffold", "participants": 3, "local": {"steps": 2, "batch_size": 8, "lr": 0.1}},
    "stop": {"rounds": 6},
    "compute": {"engine": "sequential"},
    "record": {"report": False, "checkpoint": {"every_rounds": 2, "keep": 9}},
}


class Stop(fedsim.RunError):
    """Ends a run from inside, as a kill would."""


def stopped(out: Path, round: int, error: BaseException | None = None, **changes: Any) -> Path:
    """Return the folder of a run that ended early, after a round, with an error."""

    def progress(now: fedsim.api.Progress) -> None:
        if now.round == round:
            raise error or Stop("as if killed")

    with pytest.raises((Stop, KeyboardInterrupt)):
        fedsim.run(GIVEN, out=out, progress=progress, **changes)
    [folder] = out.iterdir()
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of local updates of each batch."""
    counts: list[int] = []
    train = Sequential.train

    def counting(self: Sequential, jobs: Any) -> Any:
        counts.append(len(jobs))
        return train(self, jobs)

    monkeypatch.setattr(Sequential, "train", counting)
    return counts


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Result:
    """Return what the run leaves that nobody stops."""
    return fedsim.run(GIVEN, out=tmp_path_factory.mktemp("whole"))


def test_only_what_came_after_the_checkpoint_is_trained(
    tmp_path: Path, whole: fedsim.Result, trained: list[int]
) -> None:
    """Rounds 1 to 4 are in the checkpoint; that of round 5, which had begun to be computed, is not."""
    folder = stopped(tmp_path, 5)
    assert len(files(folder)) == 2  # of the rounds 2 and 4
    trained.clear()
    found = fedsim.resume(folder)
    assert sum(trained) == 2 * 3
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert found.path == folder


def test_a_run_without_checkpoints_begins_from_its_start(
    tmp_path: Path, whole: fedsim.Result, trained: list[int]
) -> None:
    folder = stopped(tmp_path, 5, record__checkpoint=None)
    assert not (folder / "checkpoints").exists()
    trained.clear()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert sum(trained) == 6 * 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()])
def test_who_stops_a_run_is_told_how_it_goes_on(
    error: KeyboardInterrupt, tmp_path: Path, whole: fedsim.Result, trained: list[int]
) -> None:
    """What had been computed by then is saved, wherever in a round that was."""
    folder = stopped(tmp_path, 5, error)
    assert error.go_on == f"fedsim resume {folder}"  # type: ignore[union-attr]
    trained.clear()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert sum(trained) == 3


def test_a_signal_to_end_saves_the_run(tmp_path: Path, whole: fedsim.Result) -> None:
    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        fedsim.run(GIVEN, out=tmp_path, progress=progress)
    assert signal.getsignal(signal.SIGTERM) is before
    [folder] = tmp_path.iterdir()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    damage: Callable[[Path], None],
    tmp_path: Path,
    whole: fedsim.Result,
    trained: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = stopped(tmp_path, 5)
    latest, _ = files(folder)
    damage(latest)
    trained.clear()
    with caplog.at_level(logging.WARNING):
        assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert f"{latest.name} is not used: it is damaged" in caplog.text
    assert sum(trained) == 4 * 3


def test_a_checkpoint_that_reckons_with_other_numbers_is_not_used(
    tmp_path: Path, whole: fedsim.Result, trained: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A number of the journal that somebody has changed would be read as if it had been computed."""
    folder = stopped(tmp_path, 5)
    with closing(sqlite3.connect(folder / "record.sqlite")) as db, db:
        db.execute("UPDATE journal SET numbers = ? WHERE rowid = 1", ('{"loss": 1.0, "accuracy": 0.5}',))
    trained.clear()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert "the numbers read until then are others" in caplog.text
    assert sum(trained) == 6 * 3


def test_a_checkpoint_of_another_run_is_not_used(
    tmp_path: Path, whole: fedsim.Result, caplog: pytest.LogCaptureFixture
) -> None:
    folder, other = stopped(tmp_path / "a", 5), stopped(tmp_path / "b", 5, seed=1)
    for file in files(folder):
        file.unlink()
    for file in files(other):
        file.rename(folder / "checkpoints" / file.name)
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert "does not fit" in caplog.text


def test_a_full_disk_makes_no_checkpoint_and_no_harm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is on the size of a file: a checkpoint does not fit below it, and the record does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = {**GIVEN, "model": {"name": "mlp", "hidden": 900}}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
        run = fedsim.run(given, out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no checkpoint was made: File too large" in caplog.text
    assert list((run.path / "checkpoints").iterdir()) == []
    assert run.summary["run_hash"] == fedsim.run(given, out=tmp_path).summary["run_hash"]


def test_a_run_that_is_to_be_longer_is_as_if_it_had_been_from_the_start(
    tmp_path: Path, trained: list[int]
) -> None:
    longer = fedsim.run(GIVEN, out=tmp_path / "longer", stop__rounds=9)
    short = fedsim.run(GIVEN, out=tmp_path / "short")
    trained.clear()
    found = fedsim.resume(short.path, extend={"rounds": 3})
    assert found.summary["run_hash"] == longer.summary["run_hash"]
    assert sum(trained) == 3 * 3
    assert fedsim.load(short.path / "experiment.yaml").stop.rounds == 9


def test_other_rounds_may_be_measured_from_then_on(
    tmp_path: Path, whole: fedsim.Result, trained: list[int]
) -> None:
    folder = stopped(tmp_path, 5)
    trained.clear()
    found = fedsim.resume(folder, overrides={"evaluate.every": 3, "record.events": False})
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert read(folder, "metrics", name="accuracy")["round"].tolist() == [0, 3, 6]
    assert sum(trained) == 2 * 3
    folder = stopped(tmp_path / "seldom", 5, evaluate__every=4)
    trained.clear()
    found = fedsim.resume(folder, overrides={"evaluate.every": 1})
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert set(read(folder, "metrics", name="accuracy")["round"]) == {0, 4, 5, 6}
    assert sum(trained) == 2 * 3


def test_other_metrics_may_be_measured_from_then_on(
    tmp_path: Path, whole: fedsim.Result, trained: list[int]
) -> None:
    """The checkpoint is of round 4: what was measured until then stays as it was."""
    folder = stopped(tmp_path, 5)
    trained.clear()
    found = fedsim.resume(folder, overrides={"evaluate.metrics": ["macro_f1"]})
    assert found.summary["run_hash"] == whole.summary["run_hash"]
    assert sum(trained) == 2 * 3
    assert {5, 6} <= set(read(folder, "metrics", name="macro_f1")["round"])


def test_a_run_that_keeps_time_only_is_repeated(tmp_path: Path) -> None:
    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 3:
            raise Stop("as if killed")

    whole = fedsim.run(GIVEN, out=tmp_path / "whole", timing_only=True)
    with pytest.raises(Stop):
        fedsim.run(GIVEN, out=tmp_path / "stopped", timing_only=True, progress=progress)
    [folder] = (tmp_path / "stopped").iterdir()
    found = fedsim.resume(folder).summary
    assert (found["event_hash"], found["weights_hash"]) == (whole.summary["event_hash"], None)


def test_a_run_that_was_killed_before_anything_happened_begins(tmp_path: Path, whole: fedsim.Result) -> None:
    folder = stopped(tmp_path, 1)
    (folder / "record.sqlite").unlink()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]


def test_old_checkpoints_go(tmp_path: Path) -> None:
    run = fedsim.run(GIVEN, out=tmp_path, record__checkpoint={"every_rounds": 1, "keep": 2})
    assert len(files(run.path)) == 2


def test_a_short_run_makes_no_checkpoint(tmp_path: Path) -> None:
    run = fedsim.run({**GIVEN, "record": {"report": False}}, out=tmp_path)
    assert not (run.path / "checkpoints").exists()


def resumed(folder: Path, *words: str) -> str:
    """Return what the command line says of a run that cannot go on."""
    done = CliRunner().invoke(app, ["resume", str(folder), *words])
    assert done.exit_code == 2
    return done.stderr.strip()


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 3)
    with locked(folder):
        assert "is in use: another process runs or resumes this run" in resumed(folder)


def test_what_cannot_go_on_is_refused(tmp_path: Path, whole: fedsim.Result) -> None:
    assert resumed(tmp_path).endswith("holds no run: there is no experiment.yaml in it")
    assert "has ended; there is nothing to go on with; let it be longer" in resumed(whole.path)
    assert "--extend: rounds=50: must say by how much" in resumed(whole.path, "--extend", "rounds=50")
    assert "extend.rounds: 0.5: must be a whole number above 0" in resumed(
        whole.path, "--extend", "rounds=+0.5"
    )
    assert (
        resumed(whole.path, "--extend", "sim_time_s=+5")
        == "extend: sim_time_s: is not among what ends this run; extend rounds"
    )


def test_another_experiment_is_refused_by_its_blocks(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 3)
    told = resumed(folder, "--set", "strategy.local.lr=0.2", "--set", "seed=4", "--set", "stop.rounds=9")
    assert [line.split(": ")[1] for line in told.splitlines()] == ["seed", "strategy.local.lr"]
    assert "strategy.local.lr: 0.2: must be 0.1, as when the run began" in told
    assert "only stop, record and evaluate may change" in told
    told = resumed(folder, "--set", "churn={name: exponential, online_s: 5, offline_s: 1}")
    assert "churn.name: exponential: must be left out, as when the run began" in told
    assert "churn: must be always" in told


def test_a_run_of_another_format_is_refused_with_its_version(tmp_path: Path) -> None:
    folder = stopped(tmp_path, 3)
    origin = facts(folder)["origin"]
    earlier = f"was begun by an earlier fedsim {__version__}, which named values otherwise; begin a new run"
    for version, said in {
        "0.0.7": "was begun by fedsim 0.0.7, whose runs this version",
        __version__: earlier,
    }.items():
        with closing(sqlite3.connect(folder / "record.sqlite")) as db, db:
            text = json.dumps({**origin, "format": 0, "version": version})
            db.execute("UPDATE facts SET value = ? WHERE key = 'origin'", (text,))
        assert said in resumed(folder)
    with closing(sqlite3.connect(folder / "record.sqlite")) as db, db:
        db.execute("DELETE FROM facts WHERE key = 'origin'")
    assert "whose runs cannot be resumed" in resumed(folder)


def test_a_run_of_another_version_with_the_same_format_goes_on(tmp_path: Path, whole: fedsim.Result) -> None:
    folder = stopped(tmp_path, 3)
    origin = facts(folder)["origin"]
    with closing(sqlite3.connect(folder / "record.sqlite")) as db, db:
        db.execute(
            "UPDATE facts SET value = ? WHERE key = 'origin'", (json.dumps({**origin, "version": "0.0.7"}),)
        )
        db.execute("DROP TABLE jobs")  # which earlier versions did not have
    assert not read(folder, "jobs")["node"].size
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    assert read(folder, "jobs")["node"].size == 6 * 3


def test_data_that_are_no_longer_there_are_missed_by_name(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    draw = np.random.default_rng(3)
    np.savez(file, x=draw.normal(size=(60, 4)).astype(np.float32), y=np.arange(60) % 3)
    folder = stopped(tmp_path / "runs", 3, data={"name": "arrays", "path": str(file), "clients": 6})
    kept = file.read_bytes()
    file.unlink()
    assert "data.path: " in (told := resumed(folder))
    assert "there is no such file; nothing is downloaded" in told
    np.savez(file, x=draw.normal(size=(60, 4)).astype(np.float32), y=np.arange(60) % 3)
    assert "data: arrays: are not the data with which the run began" in resumed(folder)
    file.write_bytes(kept)
    assert fedsim.resume(folder).summary["rounds"] == 6


def test_other_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(DATA.format(scale=1.0))
    file = tmp_path / "own.yaml"
    file.write_text(json.dumps({**GIVEN, "data": {"name": "own_data:noise", "clients": 6}}))

    def progress(now: fedsim.api.Progress) -> None:
        if now.round == 3:
            raise Stop("as if killed")

    with pytest.raises(Stop):
        fedsim.run(file, out=tmp_path / "runs", progress=progress)
    [folder] = (tmp_path / "runs").iterdir()
    monkeypatch.setenv("OWN_SCALE", "2.0")
    with pytest.raises(ConfigError, match="data: own_data:noise: are not the data with which the run began"):
        fedsim.resume(folder)


DATA = """
import os

import torch

from fedsim.learn.data.dataset import Dataset


def noise() -> Dataset:
    scale = float(os.environ.get("OWN_SCALE", "{scale}"))
    draw = torch.Generator().manual_seed(3)
    x, y = scale * torch.randn(60, 4, generator=draw), torch.arange(60) % 3
    return Dataset("noise", x, y, x, y, 3)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_checkpoints(tmp_path: Path) -> None:
    """Of 2,000 rounds, the second thousand needs no more than the first, in a run and in its repetition."""
    seen: dict[int, int] = {}

    def progress(now: fedsim.api.Progress) -> None:
        seen[now.round] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    record = {"report": False, "events": False, "checkpoint": {"every_rounds": 50}}
    given = {**GIVEN, "stop": {"rounds": 2000}, "evaluate": {"every": 20}, "record": record}
    run = fedsim.run(given, out=tmp_path, progress=progress)
    assert seen[2000] - seen[1000] < 20_000  # kilobytes
    (run.path / "summary.json").unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fedsim.resume(run.path).summary["run_hash"] == run.summary["run_hash"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
