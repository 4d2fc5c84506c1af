"""The command that tries an app in a deployment of this machine, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsim.flower.deploy.template import write_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc"),
]


def deploy(app: Path, scratch: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command, with a folder of its own for what is temporary."""
    scratch.mkdir()
    command = [sys.executable, "-m", "fedsim", "flower", "deploy", str(app), "--nodes", "2", *arguments]
    env = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left(scratch: Path) -> list[str]:
    """Return the commands of the processes that belong to a deployment in a folder, whatever their group is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={scratch}" in (process / "environ").read_text(errors="replace"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def test_an_app_runs_and_nothing_is_left(tmp_path: Path) -> None:
    app, scratch = tmp_path / "app", tmp_path / "scratch"
    write_app(app, "fedavg")
    process = deploy(app, scratch, "--run-config", "num-server-rounds=1")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    lines = output.splitlines()
    assert "2 SuperNodes are online" in lines
    assert any("[ROUND 1/1]" in line for line in lines)
    assert lines[-1].startswith("the app is done, after ")
    assert left(scratch) == []
    assert list(scratch.iterdir()) == []


def test_an_app_that_raises_is_exit_code_3_with_its_own_words(tmp_path: Path) -> None:
    app, scratch = tmp_path / "app", tmp_path / "scratch"
    write_app(app, "fedavg")
    server = app / "app" / "server_app.py"
    server.write_text(
        server.read_text().replace("    half = ", '    raise KeyError("no such thing")\n    half = ')
    )
    process = deploy(app, scratch)
    output, _ = process.communicate()
    assert process.returncode == 3, output
    assert "deploy: the app has ended as finished:failed" in output
    assert "KeyError: 'no such thing'" in output
    assert left(scratch) == []


def test_one_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    app, scratch = tmp_path / "app", tmp_path / "scratch"
    write_app(app, "fedavg")
    process = deploy(app, scratch)
    assert process.stdout is not None
    for line in process.stdout:
        if "Starting logstream" in line:  # all kinds of its processes are there, but for the clients' own
            break
    assert len(left(scratch)) >= 4
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while left(scratch) or list(scratch.iterdir()):  # the test's own time limit ends it
        time.sleep(0.1)
