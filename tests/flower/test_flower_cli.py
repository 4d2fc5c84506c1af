"""The ``flower`` commands: exit codes, messages, and what they leave behind."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app as cli

APPS = Path(__file__).parent / "apps"


def call(*arguments):
    return CliRunner().invoke(cli, ["flower", *map(str, arguments)])


def test_run_leaves_a_folder_with_a_report(tmp_path):
    world = tmp_path / "world.yaml"
    world.write_text("name: mine\nseed: 2\nnetwork: {latency_ms: 5}\n")
    options = [
        "--config",
        world,
        "--run-config",
        "num-server-rounds=2",
        "--set",
        "devices.seconds_per_sample=0.5",
    ]
    done = call("run", APPS / "plain", "--nodes", 2, *options, "--out", tmp_path, "--quiet")
    assert done.exit_code == 0, done.output
    (folder,) = tmp_path.glob("mine-*")
    assert f"report: {folder / 'report.html'}" in done.output
    text = (folder / "experiment.yaml").read_text()
    assert "seed: 2" in text
    assert "num-server-rounds: 2" in text


def test_run_writes_to_out(tmp_path):
    done = call(
        "run",
        APPS / "plain",
        "--nodes",
        2,
        "--run-config",
        "num-server-rounds=1",
        "--set",
        "record.report=false",
        "--out",
        tmp_path,
        "--quiet",
    )
    assert done.exit_code == 0, done.output
    assert "loss" in done.output
    assert len(list(tmp_path.glob("plain-*"))) == 1


def test_a_client_that_raises_is_exit_code_3_with_its_traceback(app, tmp_path):
    change = {
        "client.py": ("    target = float", '    raise ZeroDivisionError("no data")\n    target = float')
    }
    options = "--on-failure", "stop", "--out", tmp_path / "runs", "--quiet"
    done = call("run", app("plain", change), "--nodes", 2, *options)
    assert done.exit_code == 3
    assert "round 1, t = 0.000000 s, train: the ClientApp raised ZeroDivisionError: no data" in done.output
    assert 'raise ZeroDivisionError("no data")' in done.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.output.splitlines()[-3:] == [
        f"what was recorded is kept in {folder}",
        f"  to look at it:   fedsim report {folder}",
        f"  to start again:  fedsim flower run {tmp_path / 'plain'} --nodes 2 --set app.on_failure=stop "
        f"--out {tmp_path / 'runs'}",
    ]
    assert CliRunner().invoke(cli, ["report", str(folder)]).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "unfinished run" in page
    assert "Timing only" not in page


def test_what_starts_a_run_again_says_what_it_was_given(app, tmp_path):
    """What is told is typed as it is: it fails as before, and in a second folder of the same name."""
    change = {"client.py": ("    target = float", "    raise KeyError(1)\n    target = float")}
    world = tmp_path / "the world.yaml"
    world.write_text("name: mine\nseed: 2\n")
    options = [
        "--config",
        world,
        "--run-config",
        "lr=0.5 num-server-rounds=1",
        "--set",
        "network.latency_ms=7",
        "--on-failure",
        "stop",
        "--node-config",
        "path='a b' limit=3",
    ]
    done = call("run", app("plain", change), "--nodes", 2, *options, "--out", tmp_path / "runs", "--quiet")
    typed = shlex.split(done.output.splitlines()[-1].partition("again:")[2])
    assert typed[:3] == ["fedsim", "flower", "run"]
    assert call("run", *typed[3:], "--quiet").exit_code == 3
    one, two = sorted((tmp_path / "runs").iterdir())
    assert two.name == f"{one.name}-2"
    assert (one / "experiment.yaml").read_text() == (two / "experiment.yaml").read_text()


def test_ctrl_c_says_where_the_record_is(app, tmp_path):
    change = {"server.py": ("    config = context.run_config\n", "    raise KeyboardInterrupt\n")}
    done = call("run", app("plain", change), "--nodes", 2, "--out", tmp_path / "runs", "--quiet")
    assert done.exit_code == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert done.output.split("\n")[:2] == ["stopped", f"what was recorded is kept in {folder}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run-config", "lrr=1"], "--run-config lrr: 1: the app has no such key; did you mean lr?"),
        (["--set", "model=mlp"], "model: an app brings this itself"),
        (["--set", "netwrok.latency_ms=1"], "did you mean network?"),
        (["--config", "no/such.yaml"], "no/such.yaml: no such file"),
    ],
)
def test_mistakes_are_exit_code_2_without_a_traceback(arguments, message, tmp_path):
    done = call("run", APPS / "plain", "--nodes", 2, *arguments, "--out", tmp_path)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output


def test_init_writes_an_app(tmp_path):
    done = call("init", tmp_path / "amd", "--strategy", "fedamd")
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "amd" / "pyproject.toml") in done.output
    again = call("init", tmp_path / "amd")
    assert again.exit_code == 2
    assert "must be new or empty" in again.output


def test_init_takes_over_an_experiment(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "seed: 9\ndata: {name: digits, clients: 6}\nmodel: softmax\n"
        "strategy: {name: fedavg, fraction_train: 0.5}\nstop: {rounds: 4}\n"
    )
    assert call("init", tmp_path / "app", "--experiment", file).exit_code == 0
    text = (tmp_path / "app" / "app" / "experiment.py").read_text()
    assert "SEED = 9" in text
    assert "fraction_train" in text
    assert "num-nodes = 6" in (tmp_path / "app" / "pyproject.toml").read_text()
