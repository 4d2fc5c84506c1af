"""Runs of a study as tasks of a Ray cluster: as if they had been run here, whatever happens to one of them."""

from __future__ import annotations

import _thread
import functools
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.running import tasks
from fedsim.running.tasks import SEEN, Home, Tasks, do, versions
from fedsim.spec.experiment import Compute
from fedsim.study.file import load
from fedsim.study.sweep import DONE, FAILED, sweep

pytestmark = [  # Ray leaves files and processes of its own to the end
    pytest.mark.filterwarnings("ignore:unclosed file .*/dev/null:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]

BASE = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 1}},
    "stop": {"rounds": 6},
    "record": {"report": False, "events": False, "checkpoint": {"every_rounds": 1}},
}
STUDY = {"base": BASE, "vary": {"seed": [1, 2, 3, 4]}}


@pytest.fixture(scope="module")
def library():
    """Start Ray once, as a user may who has more to do with it."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        tasks.connection.ray()
        ray.init(num_cpus=3, address="local", log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()


def troubled(source, *, overrides, out):
    """Run, and note in which process; seeds 1 and 2 are killed in their third round, 1 only once, and 3 fails."""
    seed, folder = overrides["seed"], Path(out)
    (folder / f"{seed}-{len(list(folder.glob(f'{seed}-*')))}").write_text(f"{os.getpid()} {os.getcwd()}")
    if seed == 3:
        raise RunError("the sky falls", 1, 3, 0.5, "train")

    def die(progress):
        if seed in (1, 2) and progress.round == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    return fedsim.run(source, overrides=overrides, out=out, progress=die)


def going_on(path):
    """Go on with what was killed; with seed 2 that ends no better."""
    (Path(path).parent / f"resumed-{Path(path).name}").touch()
    if yaml.safe_load((Path(path) / "experiment.yaml").read_text())["seed"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return fedsim.resume(path)


@pytest.mark.slow
def test_what_is_killed_goes_on_once_and_what_fails_is_named(library, tmp_path, monkeypatch):
    """All in one: the same hashes and folders, other processes, one killed once, one twice, one that fails."""
    monkeypatch.chdir(tmp_path)
    alone = fedsim.sweep(STUDY, out="alone")
    with Tasks(jobs=2) as spread:
        done = sweep(load(STUDY), troubled, going_on, Path("out"), spread=spread)
    folder = tmp_path / "out" / "study"
    assert [one.status for one in done] == [DONE, FAILED, FAILED, DONE]
    assert [one.reason for one in done[1:3]] == [
        "its process ended before the run did (killed, or out of memory)",
        "node 1, round 3, t = 0.500000 s, train: the sky falls",
    ]
    for mine, its in ((done[0], alone[0]), (done[3], alone[3])):
        assert mine.summary["run_hash"] == its.summary["run_hash"]
        assert mine.folder == Path("out/study", its.folder.name)
    assert len(list(folder.glob("resumed-*"))) == 2  # seeds 1 and 2, from their checkpoints
    seen = [file.read_text().split() for file in folder.glob("[0-9]-*")]
    assert len(seen) == 4  # nothing was begun anew
    assert {where for _, where in seen} == {str(tmp_path)}
    assert str(os.getpid()) not in {process for process, _ in seen}
    assert not (folder / SEEN).exists()
    assert library.is_initialized()  # it was not us who has started it
    again = fedsim.sweep(STUDY, out="out", ray=True)
    assert [(one.status, one.new) for one in again] == [(one.status, False) for one in done]
    mended = fedsim.sweep(STUDY, out="out", ray=True, retry=True)
    assert [one.summary["run_hash"] for one in mended] == [one.summary["run_hash"] for one in alone]
    assert tasks.connection.users == []


def sleepy(number, folder):
    """Note when something begins and ends."""
    (folder / f"{number}-begun").write_text(str(time.time()))
    time.sleep(0.5)
    (folder / f"{number}-ended").write_text(str(time.time()))
    return number


@pytest.mark.slow
def test_no_more_run_at_a_time_than_there_may_be(library, tmp_path):
    calls = [functools.partial(functools.partial, sleepy, number, tmp_path) for number in range(4)]
    with Tasks(jobs=1) as spread:
        found = [(number, result()) for number, result in spread(calls, [Compute()] * 4, tmp_path)]
    assert found == [(number, number) for number in range(4)]
    moments = [float((tmp_path / f"{n}-{what}").read_text()) for n in range(4) for what in ("begun", "ended")]
    assert moments == sorted(moments)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_leaves_complete_records_and_nothing_that_runs(tmp_path, sign):
    pytest.importorskip("ray")
    study = {**STUDY, "base": {**BASE, "stop": {"rounds": 100_000}}, "vary": {"seed": [1, 2]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "fedsim", "sweep", "study.yaml", "--ray", "--jobs", "2"]
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder, end_s = tmp_path / "runs" / "study", time.monotonic() + 150
    while len(list(folder.glob("*/checkpoint*"))) < 2 and time.monotonic() < end_s and child.poll() is None:
        time.sleep(0.1)
    time.sleep(1)
    if sign == signal.SIGINT:  # Ctrl-C goes to all that the terminal has started
        os.killpg(child.pid, sign)
    else:
        child.send_signal(sign)
    _, errors = child.communicate(timeout=100)
    assert child.returncode == (130 if sign == signal.SIGINT else 143), errors
    assert "stopped" in errors
    assert "Traceback" not in errors
    begun = sorted(folder.glob("study-*"))
    assert len(begun) == 2
    for run in begun:
        assert not list(run.glob("*-wal"))  # nobody was killed while he wrote
        with closing(sqlite3.connect(run / "record.sqlite")) as record:
            [[reached]] = record.execute("SELECT MAX(round) FROM rounds")
        assert fedsim.resume(run, overrides={"stop.rounds": reached + 2}).summary["rounds"] == reached + 2


def test_a_task_is_at_home_or_refuses(tmp_path, monkeypatch):
    (tmp_path / SEEN).write_text("abc")
    home = Home(str(tmp_path), SEEN, "abc", {"FEDSIM_LATELY": "1"}, versions())
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("FEDSIM_LATELY", "0")
    monkeypatch.delenv("FEDSIM_WORKERS", raising=False)
    monkeypatch.setenv("FEDSIM_WORKERS", "")  # so that it is put back
    monkeypatch.delenv("FEDSIM_WORKERS")

    def call():
        return os.getcwd(), os.environ["FEDSIM_LATELY"], os.environ["FEDSIM_WORKERS"]

    assert do(call, home)[:2] == ((str(tmp_path), "1", "1"), None)
    cases = [
        (Home(str(tmp_path), SEEN, "xyz", {}, versions()), "is another folder on .* the machines must share it"),
        (Home(str(tmp_path), "gone", "abc", {}, versions()), "is another folder on"),
        (Home(str(tmp_path / "no"), SEEN, "abc", {}, versions()), "is another folder on"),
        (Home(str(tmp_path), SEEN, "abc", {}, {"torch": "0.1"}), r"torch is .* on .*, and 0.1 where this began"),
    ]  # fmt: skip
    for wrong, said in cases:
        result, error, _ = do(call, wrong)
        assert result is None
        with pytest.raises(RunError, match=said):
            raise error
    with pytest.raises(ZeroDivisionError):  # a bug stays one
        do(lambda: 1 / 0, home)


def test_an_interrupt_that_is_dropped_comes_again(tmp_path, monkeypatch):
    (tmp_path / SEEN).write_text("abc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_WORKERS", "1")
    monkeypatch.setattr(tasks, "AGAIN_S", 0.05)
    dropped = []

    def call():
        _thread.interrupt_main()
        while True:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                dropped.append(True)
                if len(dropped) == 3:
                    raise

    with pytest.raises(KeyboardInterrupt):
        do(call, Home(str(tmp_path), SEEN, "abc", {}, versions()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    time.sleep(0.1)  # no more of them come


def test_no_cluster_and_no_ray_are_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))

    def call(*more):
        ran = CliRunner().invoke(app, ["sweep", str(tmp_path / "study.yaml"), "--out", str(tmp_path), *more])
        return ran.exit_code, ran.stderr

    with pytest.raises(ConfigError, match="jobs: 0: must be at least 1"):
        fedsim.sweep(STUDY, jobs=0, ray=True)
    code, said = call("--ray", "--together")
    assert (code, len(said.splitlines())) == (2, 1)
    assert said.startswith(
        "together: true: lets runs advance in this process, and ray has them run in others"
    )
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        code, said = call("--ray")
        assert (code, len(said.splitlines())) == (2, 1)
        assert said.startswith("ray: true: needs ray, which is not installed; pip install")
    pytest.importorskip("ray")
    for address, rule in (("here", "must be HOST:PORT"), ("127.0.0.1:1", "no Ray cluster can be reached")):
        monkeypatch.setattr("fedsim.learn.engines.ray.REACH_S", 0.5)
        monkeypatch.setenv("RAY_ADDRESS", address)
        code, said = call("--ray")
        assert (code, len(said.splitlines())) == (2, 1)
        assert said.startswith(f"RAY_ADDRESS: {address}: {rule}")
        assert not list((tmp_path / "study").glob("study-*"))
        assert not (tmp_path / "study" / SEEN).exists()
