from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import simpy
import typer
from typer.testing import CliRunner

from fedsim import parts
from fedsim.api import Result
from fedsim.cli import app as cli
from fedsim.cli import show as show_
from fedsim.errors import MISSING, BadValue, ConfigError, Problem, RunError, StalledError
from fedsim.running.observer import Progress
from fedsim.version import __version__

START = Progress(0, None, 0.0, None, None, None, 0, 0, 0, 0.0)


def at(**changes: Any) -> Progress:
    return replace(START, **changes)


def call(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


# usage


def test_the_version():
    assert call("--version") == (0, f"fedsim {__version__}\n", "")


@pytest.mark.parametrize("command", ["run", "check", "list", "report"])
def test_every_command_has_help(command):
    assert f" {command} " in call("--help")[1]
    code, text, _ = call(command, "--help")
    assert code == 0
    assert f"fedsim {command}" in text.replace("root", "fedsim")


def test_the_kinds_are_those_of_the_parts():
    assert cli.KINDS == parts.KINDS


def test_no_command_shows_the_help():
    code, text, errors = call()
    assert code == 2
    assert "Commands" in text + errors


@pytest.mark.parametrize(
    "words", [["run"], ["check"], ["report"], ["run", "x.yaml", "--fast"], ["rum", "x.yaml"]]
)
def test_a_wrong_command_line_is_exit_code_2(words):
    code, _, errors = call(*words)
    assert code == 2
    assert "Usage" in errors
    assert "Traceback" not in errors


def test_an_unknown_kind_gets_a_suggestion():
    assert call("list", "topology") == (
        2,
        "",
        "list: topology: no such kind of part; did you mean topologies?\n",
    )


@pytest.mark.parametrize("text", ["seed", "=3", "", "=="])
def test_a_setting_needs_a_key_and_a_value(text):
    assert call("run", "x.yaml", "--set", text) == (2, "", f"--set: {text}: must be key.path=value\n")


def test_every_wrong_setting_is_reported():
    _, _, errors = call("check", "x.yaml", "--set", "a", "--set", "b=1", "--set", "c")
    assert errors == "--set: a: must be key.path=value\n--set: c: must be key.path=value\n"


def test_settings_split_at_the_first_equals_sign():
    assert show_.overrides_of(["a.b=1", "name=x=y", "seed=", " c =2", "a.b=3"]) == {
        "a.b": "3",
        "name": "x=y",
        "seed": "",
        "c": "2",
    }
    assert show_.overrides_of(None) == {}


def test_an_output_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "runs"
    code, _, errors = call("run", "x.yaml", "--out", str(out))
    assert (code, errors) == (2, f"--out: {cli_short(str(out))}: {tmp_path / 'file'} is not a folder\n")


def cli_short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    code, _, errors = call("run", "x.yaml", "--out", str(tmp_path / "deep" / "runs"))
    assert (code, errors.endswith(f"{tmp_path} is not writable\n")) == (2, True)


def test_an_output_folder_need_not_exist_and_is_not_made_by_looking(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show_.check_writable(Path("a/b/c"))
    show_.check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_heavy_library():
    code = (
        "import sys; sys.argv = ['fedsim', '--help']\n"
        "from fedsim.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(3 if {'torch', 'flwr', 'simpy', 'networkx'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "simulated time" in done.stdout


# failures


def exit_of(error: BaseException) -> int:
    with pytest.raises(typer.Exit) as caught, show_.explained():
        raise error
    return caught.value.exit_code


def test_each_mistake_is_a_line_on_stderr(capsys):
    problems = [Problem("a", 1, "is too small", "", "x.yaml:3"), Problem("b", MISSING, "is required")]
    assert exit_of(ConfigError(problems)) == 2
    assert capsys.readouterr() == ("", "x.yaml:3: a: 1: is too small\nb: is required\n")


def test_a_broken_run_shows_its_scene_its_cause_and_what_is_kept(capsys):
    try:
        try:
            {}["weights"]
        except KeyError as cause:
            raise RunError("the client failed", 3, 2, 1.5, "train") from cause
    except RunError as caught:
        error = caught
    error.run_path = Path("runs/a")  # type: ignore[attr-defined]
    assert exit_of(error) == 3
    out, errors = capsys.readouterr()
    assert out == ""
    lines = errors.splitlines()
    assert lines[0] == "node 3, round 2, t = 1.500000 s, train: the client failed"
    assert lines[1] == "Traceback (most recent call last):"
    assert "KeyError: 'weights'" in lines
    assert lines[-3:] == [
        "what was recorded is kept in runs/a",
        "  to look at it:   fedsim report runs/a",
        "  to start again:  fedsim run runs/a/experiment.yaml",
    ]


def test_what_a_process_has_raised_is_said_once(capsys):
    """SimPy raises the error of a process anew, with itself as the cause."""

    def process(cause):
        yield env.timeout(1)
        raise StalledError("nobody can go on") from cause

    for cause in (None, KeyError("mu")):
        env = simpy.Environment()
        env.process(process(cause))
        with pytest.raises(StalledError) as caught:
            env.run()
        assert isinstance(caught.value.__cause__, StalledError)
        assert exit_of(caught.value) == 3
        errors = capsys.readouterr().err
        assert errors.count("nobody can go on") == 1
        assert ("KeyError: 'mu'" in errors) is (cause is not None)


def test_a_broken_run_without_a_cause_has_no_traceback(capsys):
    assert exit_of(RunError("nobody can go on")) == 3
    assert capsys.readouterr().err == "run: nobody can go on\n"


def test_control_c_says_what_is_kept_and_how_to_go_on(capsys):
    stop = KeyboardInterrupt()
    stop.run_path = Path("runs/b")  # type: ignore[attr-defined]
    assert exit_of(stop) == 130
    errors = capsys.readouterr().err
    assert "kept in runs/b" in errors
    assert "fedsim report runs/b\n" in errors
    assert "fedsim run runs/b/experiment.yaml\n" in errors
    assert exit_of(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_bug_is_not_explained_away():
    with pytest.raises(ZeroDivisionError), show_.explained():
        raise ZeroDivisionError
    with pytest.raises(BadValue), show_.explained():
        raise BadValue("a", 1, "must be 2")


# the end of a run


def test_the_summary_and_the_report(tmp_path, capsys):
    (tmp_path / "report.html").write_text("")
    digest = "0123456789abcdef" * 4
    summary = {"run_hash": digest, "rounds": 3, "loss": None, "accuracy": 0.91234567, "engine": "loop"}
    show_.print_result(Result(tmp_path, summary))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        ["accuracy", "0.912346"],
        ["rounds", "3"],
        ["run_hash", digest],
        ["report:", str(tmp_path / "report.html")],
    ]


def test_a_run_without_a_report_shows_its_folder(tmp_path, capsys):
    show_.print_result(Result(tmp_path, {}))
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {tmp_path}"


# with the engine


TINY = """\
data: {clients: 4}
model: softmax
strategy: {name: dpsgd, local: {steps: 1}}
topology: ring
stop: {rounds: 2}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    Path("bad.yaml").write_text("data: {clients: 2}\nstop: {rounds: 1}\n\nstratgey: fedavg\n")
    return tmp_path


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_bad_file_dies_with_its_line(folder, command):
    assert call(command, "bad.yaml") == (2, "", "bad.yaml:4: stratgey: unknown key; did you mean strategy?\n")
    assert call(command, "no.yaml") == (2, "", "no.yaml: no such file\n")
    code, out, errors = call(command, "tiny.yaml", "--set", "seed=-1", "--set", "topology.degre=3")
    assert (code, out) == (2, "")
    assert errors == "--set seed=-1: seed: -1: must be at least 0\n"
    assert sorted(os.listdir()) == ["bad.yaml", "tiny.yaml"]


def test_a_mistake_in_the_second_file_comes_before_the_first_run(folder):
    assert call("run", "tiny.yaml", "bad.yaml")[0] == 2
    assert not Path("runs").exists()


def test_checking_a_good_file(folder):
    code, text, errors = call("check", "tiny.yaml", "--set", "name=other", "--set", "compute.workers=2")
    first, engine, memory, took = text.splitlines()
    assert (code, first, errors) == (0, "tiny.yaml: other is fine", "")
    why = "the model is a chain of plain layers, whose gradients are written out"
    assert engine == f"engine: closed, up to 2 processes; {why}"
    assert re.fullmatch(r"memory: [0-9.]+ MB for the data and one model of each client", memory)
    assert re.fullmatch(r"time: about [0-9.]+ (s|min) on this machine", took)
    _, text, _ = call("check", "tiny.yaml", "--timing-only")
    assert text.splitlines()[1:] == ["engine: none, for a timing-only run trains nothing"]


def test_a_check_tells_what_threads_may_cost(folder):
    _, said, _ = call("check", "tiny.yaml", "--set", "compute.threads=2")
    first, *_, note = said.splitlines()
    assert first.endswith(" is fine")
    assert note.startswith("note: --set compute.threads=2: compute.threads: 2: more ")
    assert note.endswith("compare the time of a short run with threads: 1")
    cores = len(os.sched_getaffinity(0)) + 1
    _, said, _ = call("check", "tiny.yaml", "--set", f"compute.threads={cores}")
    assert f"more threads than the {cores - 1} core(s) on this machine" in said
    _, said, _ = call("check", "tiny.yaml", "--set", f"compute.workers={cores}")
    assert f"compute.workers: {cores}: more processes than the {cores - 1} core(s) on this machine; " in said


def test_a_run_shows_lines_and_ends_with_a_table_and_its_folder(folder):
    code, out, errors = call("run", "tiny.yaml", "--out", "results", "--set", "record.report=false")
    assert code == 0
    assert errors.startswith("round 0/2, t = ")
    assert errors.splitlines()[-1].startswith("round 2/2, t = ")
    rows = dict(line.rstrip().split(maxsplit=1) for line in out.splitlines())
    run = Path(rows["run:"])
    assert rows["rounds"] == "2"
    assert len(rows["run_hash"]) == 64
    assert float(rows["wall_total_s"]) >= float(rows["wall_time_s"]) > 0
    assert run.parent == Path("results")
    assert (run / "experiment.yaml").exists()


def test_a_quiet_run_without_training_can_be_reported(folder):
    code, out, errors = call("run", "tiny.yaml", "--quiet", "--timing-only")
    assert (code, errors) == (0, "")
    page = Path(out.splitlines()[-1].removeprefix("report: "))
    assert page.is_file()
    page.unlink()
    assert call("report", str(page.parent)) == (0, f"{page}\n", "")
    assert page.is_file()


def test_a_report_needs_a_run(folder):
    code, out, errors = call("report", "nothing")
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1


def test_a_list_of_one_kind():
    code, out, errors = call("list", "churn")
    assert (code, errors) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == parts.names("churn")


def test_the_shell_completes_commands():
    asked = {"_FEDSIM_COMPLETE": "complete_bash", "COMP_WORDS": "fedsim re", "COMP_CWORD": "1"}
    done = subprocess.run(
        [Path(sys.executable).with_name("fedsim")],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert {"resume", "retime", "report"} <= set(done.stdout.split())
    assert "run" not in done.stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_ctrl_c_while_a_command_ends_says_nothing() -> None:
    """Somebody presses it twice: the second time all is said and saved, and Python is about to leave."""
    code = (
        "import atexit, os, signal, sys, time\n"
        "from fedsim.cli.app import main\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)))\n"
        "sys.argv = ['fedsim', '--version']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stdout.startswith("fedsim ")
    assert done.stderr == ""
