"""What is damaged is told in one line, what was left half done is put in order, and links are never followed."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import fedsim
from fedsim.errors import BadValue, ConfigError, ValueNeeded
from fedsim.record import Record, facts, metrics, read
from fedsim.record.files import replaced, write_text
from fedsim.record.store import FILE
from fedsim.record.weights import read_arrays, save_arrays


def recorded(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    with Record(folder) as record:
        record.fact("target_accuracy", 0.5)
        for round in (1, 2):
            record.metric(round, round * 1_000_000, "accuracy", round / 4)
            record.round(round, round * 1_000_000, 80, 70, 10, 64.0, 8.0, 2)
        record.write("nodes", [(0, "peer", 80, 70, 10, 64.0, 8.0, 5, 6, 7, 1, 2.5)])
    return folder


def change(run: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(run / FILE)) as db, db:
        for statement in statements:
            db.execute(statement)


def refusal(run: Path) -> str:
    """Return the one line in which a report of a run is refused; its value, the path, is cut off."""
    with pytest.raises(ConfigError) as caught:
        fedsim.report(run)
    (line,) = str(caught.value).splitlines()
    assert not (run / "report.html").exists()
    return line.partition(": holds ")[2]


DAMAGE = [
    ("UPDATE metrics SET value = 'high' WHERE round = 2", "text in column value of table metrics, row 2"),
    ("UPDATE metrics SET value = x'00ff' WHERE round = 1", "a blob in column value of table metrics, row 1"),
    ("UPDATE metrics SET name = NULL", "null in column name of table metrics, row 1"),
    ("UPDATE rounds SET bytes_up = NULL", "null in column bytes_up of table rounds, row 1"),
    ("UPDATE rounds SET time_us = 1.5", "a fraction in column time_us of table rounds, row 1"),
    ("UPDATE nodes SET role = x'41'", "a blob in column role of table nodes, row 1"),
    ("UPDATE facts SET value = '{'", "fact target_accuracy is no JSON: Expecting property name"),
    ("UPDATE facts SET value = 5", "fact target_accuracy: "),
    ("UPDATE facts SET value = '\"high\"'", "fact target_accuracy: input should be a valid number"),
    ("UPDATE facts SET value = NULL", "null in column value of table facts, row 1"),
    ("INSERT INTO facts VALUES ('pace', '{\"clock\": \"day\"}')", "fact pace.clock: input should be 'step' or 'round'"),
    ("DROP TABLE presence", "it has no table presence"),
    ("ALTER TABLE nodes RENAME COLUMN joules TO watts", "its table nodes has other columns"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "why"), DAMAGE, ids=[why[:30] for _, why in DAMAGE])
def test_a_damaged_record_is_one_line(tmp_path, statement, why):
    run = recorded(tmp_path)
    change(run, statement)
    if (
        statement == "UPDATE facts SET value = 5"
    ):  # a column of text takes this as the text "5", which is JSON
        assert facts(run) == {"target_accuracy": 5}
        return
    assert refusal(run).startswith(f"no readable record ({why}")


def test_a_missing_table_is_damage_and_an_empty_file_is_not(tmp_path):
    (tmp_path / FILE).touch()
    assert metrics(tmp_path)["round"].tolist() == []
    change(tmp_path, "CREATE TABLE recipes (cake TEXT)")
    with pytest.raises(BadValue, match="it has no table rounds"):
        metrics(tmp_path)


def test_numbers_that_no_run_gives_are_one_line_too(tmp_path):
    run = recorded(tmp_path)
    change(run, "UPDATE rounds SET round = 9223372036854775807, time_us = -9223372036854775808")
    with contextlib.suppress(ConfigError), np.errstate(all="ignore"):
        fedsim.report(run)


@pytest.mark.parametrize(
    ("summary", "why"),
    [
        ('{"accuracy": "high"}', "accuracy: input should be a valid number"),
        ('{"rounds": 1.5}', "rounds: input should be a valid integer"),
        ('{"assumed": [1]}', "assumed: input should be a valid dictionary"),
    ],
)
def test_a_summary_of_other_kinds_is_one_line(tmp_path, summary, why):
    run = recorded(tmp_path)
    (run / "summary.json").write_text(summary)
    assert refusal(run).startswith(f"no readable summary.json ({why}")


@pytest.mark.parametrize("summary", [b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b""])
def test_a_summary_that_is_no_json_means_unfinished(tmp_path, summary):
    Record(tmp_path).close()
    (tmp_path / "summary.json").write_bytes(summary)
    (tmp_path / "experiment.yaml").write_bytes(b"name: caf\xe9\n")
    assert "unfinished run" in fedsim.report(tmp_path).read_text()


# what a killed writer leaves


def killed(program: str, run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", program, str(run)], timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_hot_journal_is_rolled_back_in_a_copy(tmp_path):
    run = recorded(tmp_path)
    killed(
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1] + '/record.sqlite', isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1'); db.execute('BEGIN')\n"
        "db.execute('UPDATE rounds SET clients = 99')\n"
        "db.executemany('INSERT INTO links VALUES (1, 2, ?)', [(n,) for n in range(20000)])\n"
        "os.kill(os.getpid(), 9)",
        run,
    )
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    assert before.keys() == {FILE, f"{FILE}-journal"}
    with (
        contextlib.closing(sqlite3.connect(f"{(run / FILE).as_uri()}?mode=ro", uri=True)) as db,
        pytest.raises(sqlite3.OperationalError, match="attempt to write a readonly database"),
    ):
        db.execute("SELECT * FROM rounds")
    assert read(run, "rounds")["clients"].tolist() == [2, 2]
    assert len(read(run, "links")["a"]) == 0
    assert fedsim.Result(run, {}).metrics()["accuracy"].tolist() == [0.25, 0.5]
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before
    assert "50.00%" in fedsim.report(run).read_text()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as somebody else")
@pytest.mark.parametrize("gone", ["", "-shm"])
def test_a_log_that_was_not_written_back_is_read_where_nothing_can_be_written(public, gone):
    run = public
    killed(
        "import os, sys; from fedsim.record import Record\n"
        "record = Record(sys.argv[1]); record.event(5, 'send', 1); record.flush()\n"
        "os.kill(os.getpid(), 9)",
        run,
    )
    (run / f"{FILE}{gone}").unlink() if gone else None
    assert (run / f"{FILE}-wal").stat().st_size > 0
    run.chmod(0o555)
    before = sorted(os.listdir(run))
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            (run / "probe").touch()
        found = read(run, "events")["time_us"].tolist()
    finally:
        os.seteuid(0)
    assert found == [5]
    assert sorted(os.listdir(run)) == before


def test_a_report_can_be_written_beside_a_run(tmp_path):
    run = recorded(tmp_path / "run")
    page = fedsim.report(run, tmp_path / "told" / "here")
    assert page == tmp_path / "told" / "here" / "report.html"
    assert (page.parent / "figures" / "curves.png").exists()
    assert [file.name for file in run.iterdir()] == [FILE]


# links


def test_links_are_replaced_and_what_they_point_to_is_left_alone(tmp_path):
    run = recorded(tmp_path / "run")
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (run / "figures").mkdir()
    for name in ("report.html", "figures/curves.png", "figures/curves.svg"):
        (run / name).symlink_to(mine)
    fedsim.report(run)
    assert mine.read_text() == "mine"
    assert [run / name for name in ("report.html", "figures/curves.png") if (run / name).is_symlink()] == []
    assert "<svg" in (run / "figures" / "curves.svg").read_text()


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_a_folder_of_figures_that_is_none_is_refused(tmp_path, kind):
    run, elsewhere = recorded(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "a link":
        (run / "figures").symlink_to(elsewhere, target_is_directory=True)
    else:
        (run / "figures").touch()
    with pytest.raises(ConfigError, match=f"its figures is {kind}, not a folder; nothing is written to it"):
        fedsim.report(run)
    assert list(elsewhere.iterdir()) == []
    assert not (run / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    run = recorded(tmp_path)
    (run / "report.html").mkdir()
    with pytest.raises(ConfigError, match=r"its report cannot be written \(Is a directory\)"):
        fedsim.report(run)
    assert not [file for file in run.iterdir() if file.name.startswith(".")]


def test_weights_can_be_read_by_whoever_may_read_the_other_files(tmp_path):
    """Recent versions of safetensors put a file there that only its owner may read."""
    (tmp_path / "any").touch()
    save_arrays(tmp_path / "weights.safetensors", {"w": np.ones(3)}, ["w"])
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    file = tmp_path / "sums.txt"
    write_text(file, "old")
    os.chmod(file, 0o600)

    def fail() -> None:
        with replaced(file) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (file.read_text(), os.listdir(tmp_path)) == ("old", ["sums.txt"])
    write_text(file, "new")
    assert file.read_text() == "new"
    (tmp_path / "any").touch()
    assert (
        file.stat().st_mode == (tmp_path / "any").stat().st_mode
    )  # as any new file, whatever the old one had


# numbers that JSON has no words for


def test_facts_are_json_and_what_is_not_finite_is_null(tmp_path):
    with Record(tmp_path) as record:
        record.fact("spectral_gap", math.nan)
        record.fact("shares", {"a": [math.inf, 0.5], "b": -math.inf})
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as db:
        texts = dict(db.execute("SELECT key, value FROM facts"))
    assert texts == {"spectral_gap": "null", "shares": '{"a": [null, 0.5], "b": null}'}
    assert facts(tmp_path) == {"spectral_gap": None, "shares": {"a": [None, 0.5], "b": None}}
    assert "unfinished" in fedsim.report(tmp_path).read_text()


def test_what_an_older_version_wrote_of_them_is_read(tmp_path):
    run = recorded(tmp_path)
    change(run, "UPDATE facts SET value = 'NaN'")
    assert facts(run) == {"target_accuracy": None}
    (run / "summary.json").write_text('{"name": "old", "accuracy": NaN, "loss": -Infinity, "joules": 1e999}')
    assert "old" in fedsim.report(run).read_text()


# an unfinished run's experiment


@pytest.mark.parametrize(("name", "seed"), [("on", "7"), ("no", "0o17"), ("1e3x", "3"), ("2024-01-01", "12")])
def test_an_unfinished_run_has_the_name_that_its_file_gives_in_yaml_1_2(tmp_path, name, seed):
    Record(tmp_path).close()
    (tmp_path / "experiment.yaml").write_text(f"name: {name}\nseed: {seed}\nstrategy: {{name: yes}}\n")
    page = fedsim.report(tmp_path).read_text()
    assert f"<title>{name}: yes</title>" in page
    assert f"strategy yes, seed {int(seed, 0)}<" in page


# weights


def test_weights_that_are_not_whole_or_not_ours_are_one_line(tmp_path):
    file = tmp_path / "weights.safetensors"
    arrays = {"bias": np.ones(3), "weight": np.arange(4.0).reshape(2, 2), "peers/ids": np.arange(2)}
    save_arrays(file, arrays, ["weight", "bias"])
    result = fedsim.Result(tmp_path, {"weights_hash": "e" * 64})
    assert {name: array.tolist() for name, array in result.weights().items()} == {
        "weight": [[0, 1], [2, 3]],
        "bias": [1, 1, 1],
    }
    content = file.read_bytes()
    damaged = [content[:length] for length in range(len(content))] + [b"PK\3\4" * 99, b"\0" * 99, b"{}" * 99]
    for one in damaged:
        file.write_bytes(one)
        with pytest.raises(BadValue) as caught:
            result.weights()
        assert "holds no readable weights of a run (" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    foreign = [
        None,
        {"format": "pt"},
        {"parameters": "weight"},
        {"parameters": "5"},
        {"parameters": '["other"]'},
    ]
    for metadata in foreign:
        save_file({"weight": np.ones(3)}, file, metadata=metadata)
        with pytest.raises(BadValue, match="holds no readable weights of a run"):
            read_arrays(file)
    file.unlink()
    with pytest.raises(ValueNeeded, match=r"weights\.safetensors is not there"):
        result.weights()
    file.mkdir()
    with pytest.raises(BadValue):
        result.weights()
