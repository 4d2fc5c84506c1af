"""The runs of a study: done once, whatever stops them, and whoever fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app
from fedsim.errors import ConfigError, RunError
from fedsim.study.file import load
from fedsim.study.kept import DONE, FAILED, finished, stopped
from fedsim.study.results import runs
from fedsim.study.sweep import only_of, sweep

BASE = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 1}},
    "stop": {"rounds": 1},
    "record": {"report": False, "events": False},
}
STUDY = {"base": BASE, "vary": {"seed": [1, 2, 3]}}


def test_every_run_is_that_of_its_experiment_and_is_done_once(tmp_path):
    heard = []
    done = fedsim.sweep(
        STUDY, out=tmp_path, told=lambda one, count, total: heard.append((one.point.label, count, total))
    )
    assert [(one.status, one.new) for one in done] == [(DONE, True)] * 3
    assert heard == [("seed=1", 1, 3), ("seed=2", 2, 3), ("seed=3", 3, 3)]
    alone = fedsim.run(BASE, out=tmp_path / "alone", seed=2, name="study")
    assert done[1].summary["run_hash"] == alone.summary["run_hash"]
    again = fedsim.sweep(STUDY, out=tmp_path)
    assert [(one.status, one.new, one.folder) for one in again] == [(DONE, False, one.folder) for one in done]
    assert [one.summary for one in again] == [one.summary for one in done]
    more = fedsim.sweep({**STUDY, "vary": {"seed": [2, 3, 4]}}, out=tmp_path)
    assert [one.new for one in more] == [False, False, True]


def test_some_runs_alone(tmp_path):
    study = {**STUDY, "methods": {"a": {}, "b": {"strategy.mu": 1.0}}}
    some = fedsim.sweep(study, out=tmp_path, only={"method": "b", "seed": 3})
    assert [one.point.settings for one in some] == [{"method": "b", "seed": 3}]
    with pytest.raises(ConfigError, match="no run of the study has these settings"):
        fedsim.sweep(study, out=tmp_path, only={"method": "c"})
    assert only_of(["a.b=c=d"]) == {"a.b": "c=d"}


def test_runs_leave_for_each_other_what_they_have_computed(tmp_path):
    """Three bandwidths under which nobody is waited for in vain: two of the three runs train nothing."""
    study = {"base": {**BASE, "stop": {"rounds": 3}}, "vary": {"network.up_mbps": [0.5, 1.0, 2.0]}}
    plain = fedsim.sweep(study, out=tmp_path / "plain")
    found = fedsim.sweep(study, out=tmp_path / "shared", store=tmp_path / "store")
    assert [(one.summary["jobs"], one.summary["jobs_reused"]) for one in found] == [(6, 0), (0, 6), (0, 6)]
    assert [one.summary["run_hash"] for one in found] == [one.summary["run_hash"] for one in plain]
    assert "jobs" not in plain[0].summary


def test_the_command_line_takes_a_store_and_refuses_what_is_none(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    asked = ["sweep", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "runs"), "--jobs", "1", "--quiet"]
    done = CliRunner().invoke(app, [*asked, "--store", str(tmp_path)])
    assert done.exit_code == 2
    assert "is no store: it holds other files" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = CliRunner().invoke(app, asked, env={"FEDSIM_STORE": str(tmp_path / "store")})
    assert done.exit_code == 0
    assert len(list((tmp_path / "store").glob("*/*/*.safetensors"))) >= 3 * 2  # seeds and participants


@pytest.mark.slow
def test_several_at_a_time_give_the_same(tmp_path):
    one = fedsim.sweep(STUDY, out=tmp_path / "one")
    two = fedsim.sweep(STUDY, out=tmp_path / "two", jobs=2)
    assert [r.summary["run_hash"] for r in one] == [r.summary["run_hash"] for r in two]
    assert [r.point for r in one] == [r.point for r in two]


# runs that fail


def breaking(source, *, overrides, out):
    if overrides["seed"] == 2 and not os.path.exists(os.path.join(out, "mended")):
        raise RunError("the sky falls", 1, 3, 0.5, "train")
    return fedsim.run(source, overrides=overrides, out=out)


def test_a_run_that_fails_stops_no_other_and_is_tried_again_when_that_is_asked_for(tmp_path):
    plan = load(STUDY)
    done = sweep(plan, breaking, fedsim.resume, tmp_path)
    assert [one.status for one in done] == [DONE, FAILED, DONE]
    assert "the sky falls" in done[1].reason
    rows = json.loads((tmp_path / "study" / "points.json").read_text())
    assert [(row["settings"], row["status"]) for row in rows] == [
        ({"seed": 1}, DONE),
        ({"seed": 2}, FAILED),
        ({"seed": 3}, DONE),
    ]
    assert "the sky falls" in rows[1]["reason"]
    (tmp_path / "study" / "mended").touch()
    kept = sweep(plan, breaking, fedsim.resume, tmp_path)
    assert [(one.status, one.new) for one in kept] == [(DONE, False), (FAILED, False), (DONE, False)]
    retried = sweep(plan, breaking, fedsim.resume, tmp_path, retry=True)
    assert [(one.status, one.new) for one in retried] == [(DONE, False), (DONE, True), (DONE, False)]


def test_a_run_whose_settings_are_refused_stops_no_other(tmp_path):
    done = fedsim.sweep({**STUDY, "vary": {"data.clients": [3, 0], "seed": [1]}}, out=tmp_path)
    assert [one.status for one in done] == [DONE, FAILED]
    assert done[1].reason == "data.clients=0, seed=1: data.clients: 0: must be at least 1"
    late = fedsim.sweep({**STUDY, "vary": {"strategy.participants": [2, 4]}}, out=tmp_path)
    assert [one.status for one in late] == [DONE, FAILED]
    assert "participants: 4" in late[1].reason


def deadly(source, *, overrides, out):
    if overrides["seed"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return fedsim.run(source, overrides=overrides, out=out)


@pytest.mark.slow
def test_a_process_that_dies_takes_its_own_run_with_it_alone(tmp_path):
    done = sweep(load(STUDY), deadly, fedsim.resume, tmp_path, jobs=2)
    assert [one.status for one in done] == [DONE, FAILED, DONE]
    assert done[1].reason == "its process ended before the run did (killed, or out of memory)"


# tuning


def test_each_method_gets_what_is_best_for_it(tmp_path):
    study = {
        "base": {**BASE, "stop": {"rounds": 3}, "data": {"name": "digits", "clients": 3}},
        "methods": {"slow": {"strategy.mu": 0.0}, "fast": {"strategy.local.steps": 20}},
        "tune": {"strategy.local.lr": [1e-6, 0.1]},
        "vary": {"seed": [1]},
    }
    done = fedsim.sweep(study, out=tmp_path)
    assert [one.point.settings["strategy.local.lr"] for one in done] == [0.1, 0.1]
    tuned = json.loads((tmp_path / "study" / "tuned.json").read_text())
    assert tuned == {"slow": {"strategy.local.lr": 0.1}, "fast": {"strategy.local.lr": 0.1}}
    trials = json.loads((tmp_path / "study" / "tuning" / "points.json").read_text())
    assert len(trials) == 4
    assert {row["settings"]["seed"] for row in trials} == {0}
    assert len(fedsim.results(tmp_path)["run"].unique()) == 2  # trials are no results
    with pytest.raises(
        ConfigError, match="no run of slow, fast came to an end, so that nothing could be chosen"
    ):
        fedsim.sweep({**study, "name": "none", "tune": {"strategy.participants": [9]}}, out=tmp_path)


# who else is there, and who stops


def test_a_study_is_run_by_one_at_a_time(tmp_path):
    (tmp_path / "study").mkdir()
    with (
        FileLock(tmp_path / "study" / ".lock"),
        pytest.raises(ConfigError, match="somebody else is running this study"),
    ):
        fedsim.sweep(STUDY, out=tmp_path)
    assert [one.status for one in fedsim.sweep(STUDY, out=tmp_path, only={"seed": 1})] == [DONE]


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        fedsim.sweep(STUDY, out=tmp_path / "file")
    with pytest.raises(ConfigError, match="jobs: 0: must be at least 1"):
        fedsim.sweep(STUDY, out=tmp_path, jobs=0)


def test_a_timing_only_run_is_not_the_same_run(tmp_path):
    experiment = fedsim.load(BASE)
    fedsim.run(BASE, out=tmp_path, timing_only=True)
    assert finished(tmp_path, experiment) is None
    path = fedsim.run(BASE, out=tmp_path).path
    assert finished(tmp_path, experiment) == path
    (path / "summary.json").unlink()
    assert finished(tmp_path, experiment) is None


def test_none_of_several_timing_only_runs_is_the_same_run(tmp_path):
    for _ in range(2):
        fedsim.run(BASE, out=tmp_path, timing_only=True)
    assert len(list(tmp_path.glob("*-timing*"))) == 2
    assert finished(tmp_path, fedsim.load(BASE)) is None


def test_a_run_that_was_let_run_longer_is_none_of_the_study_any_more(tmp_path):
    study = {**STUDY, "vary": {"seed": [1, 2]}}
    first, second = fedsim.sweep(study, out=tmp_path)
    fedsim.resume(first.folder, extend={"rounds": 2})
    rounds = [int(run.total("rounds")) for run in runs(first.folder.parent)]
    assert sorted(rounds) == [1, 3]
    assert (
        f"went on for longer than when they began: {first.folder.name}"
        in fedsim.compare(first.folder.parent).notes
    )
    again = fedsim.sweep(study, out=tmp_path)
    assert [(one.new, one.folder == old.folder) for one, old in zip(again, (first, second), strict=True)] == [
        (True, False),
        (False, True),
    ]
    assert [run.total("rounds") for run in runs(first.folder.parent)] == [1, 1]


def test_a_run_counts_once(tmp_path):
    first, again = (fedsim.run({**BASE, "seed": 1}, out=tmp_path).path for _ in range(2))
    other = fedsim.run({**BASE, "seed": 2}, out=tmp_path).path
    found = fedsim.compare(tmp_path, tmp_path, first)
    assert [row.runs for row in found.rows()] == [2]
    assert [one.path.name for group in found.groups.values() for one in group] == sorted(
        [first.name, other.name]
    )
    assert f"left out, as the same run is there already: {again.name}" in found.notes


def test_a_kill_loses_what_was_under_way_and_nothing_else(tmp_path):
    study = {**STUDY, "vary": {"seed": list(range(1, 60))}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "fedsim", "sweep", "study.yaml", "--jobs", "1", "--quiet"]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder, end_s = tmp_path / "runs" / "study", time.monotonic() + 120
    while len(list(folder.glob("*/summary.json"))) < 3 and time.monotonic() < end_s:
        time.sleep(0.01)
    child.kill()
    child.wait()
    before = {path.parent.name for path in folder.glob("*/summary.json")}
    assert 3 <= len(before) < 59
    some = fedsim.sweep(tmp_path / "study.yaml", out=tmp_path / "runs", only={"seed": 1})
    assert [(one.status, one.new) for one in some] == [(DONE, False)]
    assert json.loads((folder / "points.json").read_text())


# the command line


def call(*words):
    ran = CliRunner().invoke(app, ["sweep", *map(str, words)])
    return ran.exit_code, ran.stdout, ran.stderr


def test_the_command_says_what_became_of_each_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**STUDY, "vary": {"strategy.participants": [1, 9]}}))
    code, out, errors = call("s.yaml", "--jobs", 1)
    assert code == 1
    first, second = errors.splitlines()
    assert first.startswith("1/2 strategy.participants=1: done, accuracy 0.")
    assert second.startswith("2/2 strategy.participants=9: failed, ")
    assert out.splitlines()[0] == "2 runs: 1 new, 0 done before, 1 failed"
    assert out.splitlines()[1].startswith("  failed: strategy.participants=9: ")
    assert out.splitlines()[2:] == ["  to try them again: --retry", "to compare them: fedsim compare runs/s"]
    code, out, errors = call("s.yaml", "--jobs", 1, "--only", "strategy.participants=1", "--quiet")
    assert (code, errors) == (0, "")
    assert out.splitlines()[0] == "1 runs: 0 new, 1 done before, 0 failed"
    code, out, errors = call("s.yaml", "--only", "seed")
    assert (code, errors) == (2, "--only: seed: must be KEY=VALUE\n")
    code, _, errors = call("s.yaml", "--set", "sede=3", "--jobs", 1, "--only", "strategy.participants=1")
    assert code == 1
    assert "sede: unknown key; did you mean seed?" in errors


def test_a_run_that_was_stopped_goes_on(tmp_path):
    """It was stopped after its fifth round: the others are all that is trained."""
    study = {
        **STUDY,
        "base": {
            **BASE,
            "stop": {"rounds": 9},
            "record": {**BASE["record"], "checkpoint": {"every_rounds": 1}},
        },
    }
    plan = load(study)
    point = plan.points()[0]

    def stop(progress):
        if progress.round == 5:
            raise KeyboardInterrupt

    folder = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(plan.source, overrides=point.changes, out=folder, progress=stop)
    begun = stopped(folder, plan.experiment(point))
    resumed = []

    def resume(path):
        resumed.append(path)
        return fedsim.resume(path)

    done = sweep(plan, fedsim.run, resume, tmp_path)
    assert resumed == [str(begun)]
    assert done[0].folder == begun
    whole = fedsim.run(plan.source, overrides=point.changes, out=tmp_path / "whole")
    assert done[0].summary["run_hash"] == whole.summary["run_hash"]
    assert stopped(folder, plan.experiment(point)) is None


def test_a_run_that_cannot_go_on_is_begun_anew(tmp_path):
    plan = load({**STUDY, "vary": {}})
    begun = tmp_path / "study" / f"study-{plan.experiment(plan.points()[0]).digest()[:8]}"
    begun.mkdir(parents=True)
    (begun / "record.sqlite").write_text("no record")
    (begun / "experiment.yaml").write_text(plan.experiment(plan.points()[0]).dump())
    [done] = sweep(plan, fedsim.run, fedsim.resume, tmp_path)
    assert done.status == DONE
    assert done.folder.name == f"{begun.name}-2"


def test_a_method_that_breaks_off_counts_as_far_as_it_came(tmp_path):
    """Steps that are far too large: the weights become infinite, which says something of the method."""
    study = {
        "base": {
            **BASE,
            "model": "linear",
            "data": {"name": "quadratic", "clients": 3},
            "stop": {"rounds": 60},
        },
        "methods": {"small": {"strategy.local.lr": 0.01}, "huge": {"strategy.local.lr": 1e12}},
        "vary": {"seed": [1, 2, 3]},
        "claims": [{"text": "small steps end nearer", "better": ["small"], "worse": ["huge"]}],
    }
    done = fedsim.sweep(study, out=tmp_path)
    assert [one.status for one in done] == [DONE] * 3 + [FAILED] * 3
    assert all(one.folder is not None for one in done)
    again = fedsim.sweep(study, out=tmp_path)
    assert [(one.status, one.new, one.folder) for one in again] == [
        (one.status, False, one.folder) for one in done
    ]
    found = fedsim.compare(tmp_path / "study")
    assert [row.runs for row in found.rows()] == [3, 3]
    assert [(one.verdict, one.seeds) for one in found.findings] == [("holds", "3 of 3")]
    assert found.markdown().splitlines()[-1].startswith("| small steps end nearer | +")
    assert [row.runs for row in fedsim.compare(tmp_path / "study", only={"seed": 2}).rows()] == [1, 1]
