"""Disks that are full, or may not be written: what is there stays whole, and a run goes on once there is room.

Where the machine lets nobody mount a small disk, only the limit on the size of a file stands for one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.api import differences, happened, replay_job
from fedsim.cli.app import app
from fedsim.errors import RunError
from fedsim.record import read
from fedsim.record.rows import rows
from fedsim.running.checkpoint import Journal, files
from fedsim.running.checkpoint import read as read_checkpoint
from fedsim.running.redo import jobs

GIVEN: dict[str, Any] = {
    "name": "tight",
    "data": {"clients": 6},
    "model": {"name": "mlp", "hidden": 300},
    "strategy": {"name": "scaffold", "participants": 3, "local": {"steps": 1, "batch_size": 4, "lr": 0.1}},
    "stop": {"rounds": 6},
    "compute": {"engine": "sequential"},
    "record": {"report": False, "checkpoint": {"every_rounds": 1, "keep": 2}},
}
MEGABYTE = 2**20
"""The model has 22,510 weights, 90 kB; a checkpoint has about twenty vectors of that size, 1 to 2 MB."""

Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """Return a small disk of its own, and what mounts it again with other options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], check=True, capture_output=True)

    try:
        mount("-o", "size=64m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may mount a disk here")
    try:
        yield place, lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> fedsim.Result:
    return fedsim.run(GIVEN, out=tmp_path_factory.mktemp("whole"))


def fill(place: Path, left: int) -> Path:
    """Leave so many bytes of a disk free."""
    room = os.statvfs(place)
    filler = place / "filler"
    filler.write_bytes(b"\0" * max(0, room.f_bavail * room.f_frsize - left))
    return filler


def check_whole(run: Path) -> None:
    """See that the record is sound, and that every checkpoint is one."""
    with closing(sqlite3.connect(f"file:{run / 'record.sqlite'}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    journal = Journal(rows(run, "journal"))
    for file in files(run):
        assert read_checkpoint(file, journal, "cpu").past.values


def at(round: int, act: Callable[[], Any]) -> Callable[[fedsim.api.Progress], None]:
    def progress(now: fedsim.api.Progress) -> None:
        if now.round == round:
            act()

    return progress


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint_leaves_the_ones_before(
    disk: tuple[Path, Mount], whole: fedsim.Result, caplog: pytest.LogCaptureFixture
) -> None:
    """After three rounds half a megabyte is left: the next checkpoint begins and cannot be written to its end."""
    place, _ = disk
    kept: list[Path] = []

    def stop() -> None:
        kept.extend(files(next(place.glob("tight-*"))))
        raise RunError("as if killed")

    def progress(now: fedsim.api.Progress) -> None:
        at(3, lambda: fill(place, MEGABYTE // 2))(now)
        at(5, stop)(now)

    with pytest.raises(RunError, match="as if killed"):
        fedsim.run(GIVEN, out=place, progress=progress)
    assert "no checkpoint was made: No space left on device" in caplog.text
    [run] = place.glob("tight-*")
    assert [file.name for file in kept] == [file.name for file in files(run)]
    assert not [file for file in (run / "checkpoints").iterdir() if file.name.startswith(".")]
    check_whole(run)
    (place / "filler").unlink()
    assert fedsim.resume(run).summary["run_hash"] == whole.summary["run_hash"]


def test_a_record_for_which_there_is_no_room_ends_the_run_and_can_be_gone_on_with(
    disk: tuple[Path, Mount], whole: fedsim.Result
) -> None:
    place, _ = disk
    with pytest.raises(RunError, match=r"record\.sqlite cannot be written") as caught:
        fedsim.run(GIVEN, out=place, progress=at(3, lambda: fill(place, 0)))
    run: Path = caught.value.run_path  # type: ignore[attr-defined]
    assert caught.value.go_on == f"fedsim resume {run}"  # type: ignore[attr-defined]
    check_whole(run)
    assert max(read(run, "rounds")["round"]) >= 2
    (place / "filler").unlink()
    assert fedsim.resume(run).summary["run_hash"] == whole.summary["run_hash"]


def test_a_disk_that_may_only_be_read_can_be_looked_at(
    disk: tuple[Path, Mount], whole: fedsim.Result
) -> None:
    place, remount = disk

    def stop() -> None:
        raise RunError("as if killed")

    with pytest.raises(RunError):
        fedsim.run(GIVEN, out=place, progress=at(4, stop))
    [run] = place.glob("tight-*")
    remount("ro")
    for words in (["resume", str(run)], ["run", str(run / "experiment.yaml"), "--out", str(place / "new")]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2
        assert len(done.stderr.strip().splitlines()) == 1
        assert "cannot be written" in done.stderr or "is not writable" in done.stderr
    assert list(happened(run))
    assert list(differences(run, whole.path))
    assert replay_job(run, jobs(run)[-1].identity).compared
    check_whole(run)
    remount("rw")
    assert fedsim.resume(run).summary["run_hash"] == whole.summary["run_hash"]


def test_a_store_that_is_full_or_read_only_is_done_without(
    disk: tuple[Path, Mount], whole: fedsim.Result, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, remount = disk
    store = place / "store"
    fedsim.run(GIVEN, out=tmp_path, store=store, stop__rounds=1)
    fill(place, MEGABYTE // 4)
    run = fedsim.run(GIVEN, out=tmp_path, store=store)
    assert run.summary["run_hash"] == whole.summary["run_hash"]
    assert run.summary["jobs_reused"] == 3  # those of the first round
    assert f"nothing more is written to the store {store}: No space left on device" in caplog.text
    assert not list(store.rglob(".*.safetensors"))
    (place / "filler").unlink()
    remount("ro")
    done = CliRunner().invoke(app, ["run", str(run.path / "experiment.yaml"), "--store", str(store)])
    assert done.exit_code == 2
    assert "store: " in done.stderr
    assert "cannot be" in done.stderr


def test_a_limit_on_the_size_of_files_cuts_no_checkpoint_short(
    tmp_path: Path, whole: fedsim.Result, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit comes while the run goes on: those that are there by then are whole, and no later one is."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def stop() -> None:
        raise RunError("as if killed")

    def progress(now: fedsim.api.Progress) -> None:
        at(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE // 2, hard)))(now)
        at(5, stop)(now)

    try:
        with pytest.raises(RunError, match="as if killed"):
            fedsim.run(GIVEN, out=tmp_path, progress=progress)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no checkpoint was made: File too large" in caplog.text
    [run] = tmp_path.iterdir()
    check_whole(run)
    assert [int(file.name[-20:-12]) - 1 for file in files(run)] == [2, 1]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert fedsim.resume(run).summary["run_hash"] == whole.summary["run_hash"]
    assert not caplog.text


def test_two_processes_are_not_in_one_folder_at_once(tmp_path: Path, whole: fedsim.Result) -> None:
    """A child resumes the run and stays in it; meanwhile nobody else may, and afterwards the run goes on."""

    def stop() -> None:
        raise RunError("as if killed")

    with pytest.raises(RunError):
        fedsim.run(GIVEN, out=tmp_path, progress=at(3, stop))
    [run] = tmp_path.iterdir()
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            fedsim.resume(run, progress=at(4, lambda: (os.write(told, b"."), time.sleep(60))))
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"."
        done = CliRunner().invoke(app, ["resume", str(run)])
        assert done.exit_code == 2
        assert "is in use: another process runs or resumes this run; wait until it has ended" in done.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert fedsim.resume(run).summary["run_hash"] == whole.summary["run_hash"]
    check_whole(run)
