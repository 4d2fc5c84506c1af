"""What is started on this machine ends with the process that has started it, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsim.cli.app import app as cli
from fedsim.errors import RunError
from fedsim.flower.deploy.guard import remove
from fedsim.flower.deploy.loopback import Deployment, members

APP = Path(__file__).parents[1] / "flower" / "apps" / "plain"
STARTS = """
import subprocess, sys, time
from pathlib import Path
from fedsim.flower.deploy.guard import Guard

guard = Guard(Path(sys.argv[1]))
child = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(600)"],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    start_new_session=True,
)
guard.watch(child.pid)
print(child.pid, flush=True)
if sys.argv[2] == "dismiss":
    guard.dismiss()
else:
    time.sleep(600)
"""

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")


def starter(folder: Path, what: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that starts another one under a guard; return it, and the other one's id."""
    command = [sys.executable, "-c", STARTS, str(folder), what]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def wait_until_gone(group: int) -> None:
    """Fail by the test's own time limit if a group of processes stays."""
    while members(group):
        time.sleep(0.02)


def test_a_folder_that_somebody_makes_anew_is_removed_again(tmp_path: Path) -> None:
    """As a process does that was writing when it was killed."""
    folder = tmp_path / "scratch"
    (folder / "home").mkdir(parents=True)
    late = threading.Timer(0.5, lambda: (folder / "home").mkdir(parents=True))
    late.start()
    remove(folder)
    late.join()
    assert not folder.exists()


def test_who_uses_a_folder_is_killed_before_it_can_write_there_again(tmp_path: Path) -> None:
    """As SuperExecs do that notice late that their parent is gone; their group is known to nobody."""
    folder = tmp_path / "scratch"
    home = folder / "home"
    home.mkdir(parents=True)
    writes_late = f"import time; print(flush=True); time.sleep(3); __import__('os').makedirs({str(home)!r})"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", writes_late],
            env={**os.environ, "FLWR_HOME": str(place)},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        for place in (home, tmp_path / "scratch2" / "home")
    ]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    remove(folder)
    assert not folder.exists()
    assert started[0].wait() == -signal.SIGKILL
    assert started[1].poll() is None  # it belongs to somebody else's
    started[1].kill()
    for process in started:
        process.communicate()


def test_what_a_killed_process_has_started_is_killed_and_its_folder_removed(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "link.log").write_text("ready")
    process, group = starter(folder, "stay")
    assert members(group) == [group]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until_gone(group)
    while folder.exists():  # it is removed after that
        time.sleep(0.02)


def test_a_guard_that_is_dismissed_does_nothing(tmp_path: Path) -> None:
    process, group = starter(tmp_path, "dismiss")
    process.communicate()
    try:
        assert process.returncode == 0
        assert members(group) == [group]
        assert tmp_path.exists()
    finally:
        subprocess.run(["kill", "-9", str(group)], check=True)


def test_a_process_that_ends_too_early_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    try:
        process = deployment._start("link", "python", "-c", "print('no such thing'); raise SystemExit(2)")
        process.wait()
        with pytest.raises(RunError, match="python has ended before the SuperLink listens") as caught:
            deployment.wait_until(lambda: False, "the SuperLink listens")
        assert "link.log:\nno such thing" in str(caught.value)
    finally:
        deployment.stop()


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        (APP, ["--nodes", "0"], "--nodes: 0: must be at least 1"),
        (APP, ["--nodes", "2", "--run-config", "lrr=1"], "did you mean lr?"),
        (APP.parent, ["--nodes", "2"], "cannot be read (No such file or directory)"),
    ],
)
def test_mistakes_are_told_before_anything_starts(path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli, ["flower", "deploy", str(path), *arguments])
    assert done.exit_code == 2
    assert message in done.output
    assert len(done.output.splitlines()) == 1
