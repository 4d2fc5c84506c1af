"""The end of a run: what it leaves is whole, whatever happens to the process, the disk and the terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedsim
from fedsim.cli import app as cli
from fedsim.errors import DiskError
from fedsim.record import facts, read
from fedsim.running.ending import Ending, clock

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"clients": 4},
    "model": "softmax",
    "strategy": {"name": "dpsgd", "local": {"steps": 1}},
    "topology": "ring",
    "stop": {"rounds": 4},
    "record": {"report": False},
}
WIDE = {"name": "mlp", "hidden": 4000}
"""A model of 65 x 4000 + 4001 x 10 numbers: its weights take 1.2 MB, and 4.8 MB more for the peers' own."""


@pytest.fixture(scope="module", autouse=True)
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run once here, so that all child processes have everything in memory."""
    return fedsim.run(SMALL, out=tmp_path_factory.mktemp("loaded"))


def child(act: Callable[[], Any], told: Path) -> tuple[int, str]:
    """Do something in a process of its own; return its exit code (or minus its signal) and its standard error."""
    process = os.fork()
    if not process:
        try:
            logging.getLogger().handlers.clear()  # those of the tests
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            act()
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 98)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, told.read_text()


def command(tmp_path: Path, *words: str, before: Callable[[], Any] = lambda: None) -> tuple[int, str]:
    """Call the command line as a shell would, with its standard output as ``before`` leaves it."""

    def act() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        before()
        sys.argv = ["fedsim", *words]
        cli.main()

    return child(act, tmp_path / "told")


def written(tmp_path: Path, **changes: Any) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(file)


def one(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def full(number: int) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def deaf(number: int) -> None:
    """Make a descriptor a pipe that nobody reads any more."""
    ours, theirs = os.pipe()
    os.dup2(theirs, number)
    os.close(ours)
    os.close(theirs)


# the terminal


SAID = "standard output cannot be written ({})\n"


@pytest.mark.parametrize(
    ("stdout", "said"),
    [
        (lambda: full(1), SAID.format("No space left on device")),
        (lambda: os.close(1), SAID.format("Bad file descriptor")),
        (lambda: deaf(1), ""),
    ],
    ids=["full", "closed", "broken"],
)
def test_a_run_ends_well_whatever_its_standard_output_is(tmp_path, stdout, said):
    out = tmp_path / "runs"
    run = ("run", written(tmp_path), "--out", str(out), "--quiet")
    assert command(tmp_path, *run, before=stdout) == (0, said)
    assert json.loads((one(out) / "summary.json").read_text())["rounds"] == 4
    if "space" in said:  # a report takes long to draw
        assert command(tmp_path, "report", str(one(out)), before=stdout) == (0, said)
        assert (one(out) / "report.html").exists()
    for text in (["list", "churn"], ["--help"], ["--version"]):
        assert command(tmp_path, *text, before=stdout) == (1, said), text
    wrong = command(tmp_path, "run", "nowhere.yaml", before=stdout)
    assert wrong == (2, "nowhere.yaml: no such file\n")  # nothing was to be printed


@pytest.mark.parametrize("stderr", [lambda: full(2), lambda: os.close(2), lambda: deaf(2)])
def test_a_run_goes_on_when_nobody_reads_how_far_it_is(tmp_path, stderr):
    out = tmp_path / "runs"
    assert command(tmp_path, "run", written(tmp_path), "--out", str(out), before=stderr) == (0, "")
    assert json.loads((one(out) / "summary.json").read_text())["rounds"] == 4


def test_no_file_of_a_run_takes_the_place_of_a_closed_output(tmp_path):
    """A library that prints into descriptor 1 would print into that file."""

    def act() -> None:
        os.close(1)
        from fedsim.cli import output

        output.guard()
        with contextlib.suppress(OSError):
            os.write(1, b"from a library")
        assert os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT) > 2

    assert child(act, tmp_path / "told") == (0, "")


# the disk


def test_weights_beyond_the_size_limit_cost_only_themselves(tmp_path, loaded):
    out = tmp_path / "runs"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    run = ("run", written(tmp_path, model=WIDE), "--out", str(out), "--quiet")
    code, told = command(tmp_path, *run, before=limit)
    path = one(out)
    assert (code, told.splitlines()[:2]) == (
        3,
        [
            "run: weights.safetensors cannot be written (File too large)",
            f"what was recorded is kept in {path}",
        ],
    )
    assert {file.name for file in path.iterdir()} == {"experiment.yaml", "record.sqlite", "summary.json"}
    summary = json.loads((path / "summary.json").read_text())
    unhurt = fedsim.run({**SMALL, "model": WIDE}, out=tmp_path / "unhurt")
    same = set(summary) - {"wall_time_s", "wall_total_s"}
    assert {key: summary[key] for key in same} == {key: unhurt.summary[key] for key in same}
    assert facts(path)["sim_time_us"] == round(summary["sim_time_s"] * 1e6)
    with pytest.raises(fedsim.errors.ValueNeeded, match="is not there"):
        fedsim.Result(path, summary).weights()


@pytest.mark.parametrize(("strategy", "topology"), [("dpsgd", "ring"), ("fedavg", "star")])
def test_a_record_that_cannot_grow_ends_the_run_in_one_line(tmp_path, strategy, topology):
    out = tmp_path / "runs"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    part = {"name": strategy, "local": {"steps": 1}}
    file = written(tmp_path, strategy=part, topology=topology, stop={"rounds": 2000})
    run = ("run", file, "--out", str(out), "--quiet")
    code, told = command(tmp_path, *run, before=limit)
    assert (code, told.splitlines()[0]) == (3, "run: record.sqlite cannot be written (disk I/O error)")
    assert len(told.splitlines()) == 5  # and what is kept, how to look at it, to go on, and to start again
    rounds = read(one(out), "rounds")["round"]
    assert rounds.tolist() == list(range(len(rounds)))
    assert 1 < len(rounds) < 2000


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)], stderr=-3
    )
    if made.returncode:
        pytest.skip("only root can make a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_the_record_can_be_read(tmp_path):
    """On disks of more and more pages: first nothing fits, then the record, then the weights, then everything."""
    ends = []
    told_all = ""
    for pages in (0, 1, 12, 60, 120, 400, 1700):
        with small_disk(tmp_path / "disk", 4 * max(pages, 1)) as disk:
            if not pages:  # a file system without a page cannot be made
                (disk / "filler").write_bytes(bytes(4096))
            run = ("run", written(tmp_path, model=WIDE), "--out", str(disk / "runs"), "--quiet")
            code, told = command(tmp_path, *run)
            ends.append(code)
            told_all += told
            assert "Traceback" not in told
            assert code == 0 or "disk is full" in told or "No space left" in told or "disk I/O" in told, told
            if code == 3:
                path = one(disk / "runs")
                rounds = read(path, "rounds")["round"].tolist()
                assert rounds == list(range(len(rounds)))
                with contextlib.suppress(FileNotFoundError):
                    assert json.loads((path / "summary.json").read_text())["rounds"] == 4
    assert ends[:2] == [2, 3]
    assert ends[-1] == 0
    assert "weights.safetensors cannot be written (No space left on device)" in told_all
    assert ends == sorted(ends, key=[2, 3, 0].index)


def test_figures_that_do_not_fit_cost_the_run_nothing(tmp_path):
    # The run itself takes less than 300 kB, its report more than 500.
    with small_disk(tmp_path / "disk", 400) as disk:
        run = ("run", written(tmp_path, record={"report": True}), "--out", str(disk / "runs"), "--quiet")
        code, told = command(tmp_path, *run)
        path = one(disk / "runs")
        assert (code, told.count("\n")) == (0, 1)
        assert told.startswith("the run is done, but its report failed (run: ")
        assert told.endswith(f"No space left on device)); to try again: fedsim report {path}\n"), told
        assert fedsim.Result(path, json.loads((path / "summary.json").read_text())).weights()
        assert not [file for file in path.rglob("*") if file.name.startswith(".")]


def test_a_folder_that_is_deleted_meanwhile_is_written_again(tmp_path, loaded, caplog):
    def delete(progress: fedsim.Progress) -> None:
        if progress.round == 2:
            shutil.rmtree(tmp_path / "runs")

    again = fedsim.run(SMALL, out=tmp_path / "runs", progress=delete)
    assert "was deleted while the run went on; it is written again" in caplog.text
    names = {"experiment.yaml", "record.sqlite", "summary.json", "weights.safetensors"}
    assert {file.name for file in again.path.iterdir()} == names
    assert again.summary["run_hash"] == loaded.summary["run_hash"]
    for table in ("events", "rounds", "metrics", "nodes"):
        for name, column in read(loaded.path, table).items():
            np.testing.assert_array_equal(read(again.path, table)[name], column)
    assert again.weights().keys() == loaded.weights().keys()


def test_a_finished_run_that_is_deleted_stays_deleted(tmp_path):
    """The report comes last; a summary alone would be all that was left of the run."""
    experiment = fedsim.load({**SMALL, "record": {"report": True}})
    folder = tmp_path / "run"
    folder.mkdir()
    seen = []

    def report(run: Path) -> None:
        seen.append(json.loads((run / "summary.json").read_text())["loss"])
        shutil.rmtree(run)

    summary = Ending(folder, experiment, clock()).finish({"loss": math.nan}, report)
    assert (summary["loss"], seen) == (None, [None])
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_again_is_told(tmp_path):
    def delete(progress: fedsim.Progress) -> None:
        if progress.round == 2:
            shutil.rmtree(tmp_path / "runs")
            (tmp_path / "runs").write_text("a file in its place")

    with pytest.raises(DiskError, match=r"experiment\.yaml cannot be written \(Not a directory\)"):
        fedsim.run(SMALL, out=tmp_path / "runs", progress=delete)


@pytest.mark.slow
def test_the_summary_tells_the_whole_wait(tmp_path):
    began = time.perf_counter()
    result = fedsim.run(SMALL, out=tmp_path, record__report=True)
    waited_s = time.perf_counter() - began
    drawn_s = -time.perf_counter()
    fedsim.report(result.path)
    drawn_s += time.perf_counter()
    alone_s, total_s = result.summary["wall_time_s"], result.summary["wall_total_s"]
    assert 0.8 * waited_s < total_s <= waited_s
    assert total_s - alone_s > 0.4 * drawn_s
    assert json.loads((result.path / "summary.json").read_text()) == result.summary
    assert " with setup and report" in (result.path / "report.html").read_text()


# a kill


def killed_at(number: int, out: Path, report: bool) -> Callable[[], None]:
    """Return a run that kills its process when it touches a file for the n-th time after its last round."""
    seen = {"ended": False, "files": 0}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if seen["ended"] and event in ("open", "os.rename", "os.chmod", "os.mkdir", "os.remove"):
            if str(out) not in str(arguments[0]):
                return
            seen["files"] += 1
            if seen["files"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    def note(progress: fedsim.Progress) -> None:
        seen["ended"] = progress.round == 4

    def act() -> None:
        sys.addaudithook(hook)
        fedsim.run(SMALL, out=out, progress=note, record__report=report)

    return act


def whole(path: Path) -> bool:
    """Tell whether the run is finished, and check that each of its files is there as a whole or not at all."""
    rounds = read(path, "rounds")["round"].tolist()
    assert rounds == list(range(5))
    if (path / "weights.safetensors").exists():
        fedsim.record.weights.read_arrays(path / "weights.safetensors")
    for file in path.glob("figures/[!.]*"):
        assert file.read_bytes().rstrip().endswith((b"IEND\xaeB`\x82", b"</svg>"))
    if (path / "report.html").exists():
        assert (path / "report.html").read_text().rstrip().endswith("</html>")
    if not (path / "summary.json").exists():
        return False
    summary = json.loads((path / "summary.json").read_text())
    assert summary["weights_hash"]
    assert (path / "weights.safetensors").exists()
    assert facts(path)["sim_time_us"] == round(summary["sim_time_s"] * 1e6)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("report", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_kill_at_any_file_leaves_each_file_whole_or_not_at_all(tmp_path, report):
    finished = []
    for number in range(1, 500, 15 if report else 1):  # a report takes long to draw
        out = tmp_path / str(number)
        code, told = child(killed_at(number, out, report), tmp_path / "told")
        finished.append(whole(one(out)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, told
    assert finished == sorted(finished)
    assert len(finished) > 5
    assert (finished[0], finished[-1]) == (False, True)


@pytest.mark.slow
def test_a_kill_at_any_time_around_the_end_leaves_a_record_that_reads(tmp_path):
    """SQLite's own writes are not seen from Python: the kills come a millisecond apart."""
    for number in range(15):
        ours, theirs = os.pipe()

        def act(number: int = number, theirs: int = theirs) -> None:
            def note(progress: fedsim.Progress) -> None:
                if progress.round == 4:
                    os.write(theirs, b".")
                    signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0013 * number)

            signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the end of the process, without a word to it
            fedsim.run(SMALL, out=tmp_path / str(number), progress=note)

        code, told = child(act, tmp_path / "told")
        os.close(ours)
        os.close(theirs)
        assert code in (0, -signal.SIGALRM), told
        assert whole(one(tmp_path / str(number))) or code
