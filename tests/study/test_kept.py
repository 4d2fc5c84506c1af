"""What a study's folder has already counts for as long as settings and own code are the same."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import fedsim
from fedsim.beside import place
from fedsim.errors import ConfigError
from fedsim.study.file import load
from fedsim.study.kept import DONE, FAILED, WAITING, stopped

BASE = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 1}},
    "stop": {"rounds": 1},
    "record": {"report": False, "events": False},
}
RULE = """
from dataclasses import dataclass

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import combine
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import average


@dataclass(kw_only=True, eq=False)
class Part(FlowerFace, Rounds):
    \"\"\"Go a part of the way.\"\"\"

    def merge(self, round, model, replies):
        return combine([model, average(replies)], [1 - PART, PART])
"""


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "points.json").read_text())
    return found


def sweep_in(folder: Path, *words: str) -> list[str]:
    """Sweep in a process of its own, as a shell does, and return what it says."""
    command = [sys.executable, "-m", "fedsim", "sweep", "s.yaml", "--jobs", "1", "--quiet", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    ).stdout.splitlines()


def accuracy(folder: Path) -> float:
    found = fedsim.results(folder)
    return float(found[(found.metric == "accuracy") & (found["round"] == 1)].value.iloc[0])


@pytest.mark.slow
def test_an_own_rule_that_has_changed_is_run_again_and_one_that_has_not_is_not(tmp_path):
    """With no part of the way the model stays; then the rule goes all of it, which the old run is no answer to."""
    study = {"base": {**BASE, "strategy": {**BASE["strategy"], "name": "rule:Part"}}}
    del study["base"]["strategy"]["mu"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**study, "vary": {"seed": [1]}}))
    file = tmp_path / "rule.py"
    file.write_text(f"{RULE}\n\nPART = 0.0\n")
    assert sweep_in(tmp_path)[0] == "1 runs: 1 new, 0 done before, 0 failed"
    still = accuracy(tmp_path / "runs" / "s")
    assert sweep_in(tmp_path)[0] == "1 runs: 0 new, 1 done before, 0 failed"
    file.write_text(f"{RULE}\n\nPART = 1.0\n")
    assert sweep_in(tmp_path)[0] == "1 runs: 1 new, 0 done before, 0 failed"
    assert accuracy(tmp_path / "runs" / "s") != still
    file.write_text(f"{RULE.replace('merge(self', 'merge(self, more')}\n\nPART = 1.0\n")
    assert sweep_in(tmp_path)[0] == "1 runs: 0 new, 0 done before, 1 failed"
    assert sweep_in(tmp_path)[0] == "1 runs: 0 new, 0 done before, 1 failed"
    file.write_text(f"{RULE}\n\nPART = 0.0\n")
    assert sweep_in(tmp_path)[0] == "1 runs: 0 new, 1 done before, 0 failed"
    assert accuracy(tmp_path / "runs" / "s") == still


def test_modules_of_a_folder_are_known_by_what_they_were_when_they_were_imported(tmp_path):
    here = place(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "some.py").write_text("x = 1\n")
    assert here.code() == {}
    here.load("inner.some")
    code = here.code()
    assert code == {"inner/some.py": hashlib.sha256(b"x = 1\n").hexdigest()}
    assert here.has(code)
    (tmp_path / "inner" / "some.py").write_text("x = 2\n")
    assert here.code() == code  # what is imported has not changed
    assert not here.has(code)
    (tmp_path / "inner" / "some.py").unlink()
    assert not here.has(code)


def test_a_mistake_that_is_mended_is_not_held_against_a_run(tmp_path):
    """The label of the run stays what it was, and so does the reason in the study's folder, until it runs."""
    study = {"base": BASE, "vary": {"seed": [1]}}
    wrong = fedsim.sweep({**study, "methods": {"a": {"strategy": {"name": "fedprx"}}}}, out=tmp_path)
    assert [one.status for one in wrong] == [FAILED]
    assert (
        wrong[0].reason == "method=a, seed=1: strategy.name: fedprx: no such strategy; did you mean fedprox?"
    )
    mended = {**study, "methods": {"a": {"strategy": {"name": "fedprox", "mu": 0.5, "participants": 2}}}}
    assert [(one.status, one.new) for one in fedsim.sweep(mended, out=tmp_path)] == [(DONE, True)]


def test_weights_that_became_infinite_are_those_of_the_settings_that_made_them_so(tmp_path):
    base = {**BASE, "model": "linear", "data": {"name": "quadratic", "clients": 3}, "stop": {"rounds": 60}}
    study = {"base": base, "vary": {"seed": [1]}}
    wild = fedsim.sweep({**study, "methods": {"a": {"strategy.local.lr": 1e12}}}, out=tmp_path)
    assert [(one.status, one.folder is not None) for one in wild] == [(FAILED, True)]
    tame = fedsim.sweep({**study, "methods": {"a": {"strategy.local.lr": 0.01}}}, out=tmp_path)
    assert [(one.status, one.new) for one in tame] == [(DONE, True)]
    assert tame[0].folder != wild[0].folder
    again = fedsim.sweep({**study, "methods": {"a": {"strategy.local.lr": 1e12}}}, out=tmp_path)
    assert [one.status for one in again] == [FAILED]


def test_some_runs_alone_let_the_others_count(tmp_path):
    study = {"base": BASE, "methods": {"a": {}, "b": {"strategy.mu": 1.0}}, "vary": {"seed": [1, 2]}}
    fedsim.sweep(study, out=tmp_path, only={"method": "a"})
    assert [row["status"] for row in rows(tmp_path / "study")] == [DONE, DONE, WAITING, WAITING]
    fedsim.sweep(study, out=tmp_path)
    some = fedsim.sweep(study, out=tmp_path, only={"method": "b"})
    assert [one.point.settings["method"] for one in some] == ["b", "b"]
    assert [row["status"] for row in rows(tmp_path / "study")] == [DONE] * 4
    assert [(row.name, row.runs) for row in fedsim.compare(tmp_path / "study").rows()] == [("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"vary": {"seed": [1, 2, 1.0]}}, "vary.seed: 1.0: is there twice"),
        ({"vary": {"network.latency_ms": [1, 1]}}, "vary.network.latency_ms: 1: is there twice"),
        (
            {"tune": {"strategy.local.lr": []}},
            r"tune.strategy.local.lr: \[\]: is empty, so that there is nothing to choose",
        ),
    ],
)
def test_what_would_count_twice_or_not_at_all_is_refused(more, said):
    with pytest.raises(ConfigError, match=said):
        load({"base": BASE, **more})
    load({"base": BASE, "vary": {"zip": {"seed": [1, 1], "network.latency_ms": [2, 3]}}})


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_runs_end_with_who_asked_for_them(tmp_path, how):
    """Else they would go on for hours, and the next sweep would do the same beside them."""
    long = {**BASE, "stop": {"rounds": 10**6}, "evaluate": {"every": 1000}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"base": long, "vary": {"seed": [1, 2]}}))
    command = [sys.executable, "-m", "fedsim", "sweep", "s.yaml", "--jobs", "2", "--quiet"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder, end_s = tmp_path / "runs" / "s", time.monotonic() + 120
    while len(list(folder.glob("*/record.sqlite"))) < 2 and time.monotonic() < end_s:
        time.sleep(0.05)
    asked = f"/proc/{child.pid}/task/{child.pid}/children"
    workers = [int(one) for one in Path(asked).read_text().split()] if Path(asked).exists() else []
    assert len(workers) >= 2
    os.kill(child.pid, how)
    child.wait(60)
    while any(Path(f"/proc/{one}").exists() for one in workers) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{one}").exists() for one in workers)
    plan = load(tmp_path / "s.yaml")
    assert stopped(folder, plan.experiment(plan.points()[0])) is not None  # and can go on
