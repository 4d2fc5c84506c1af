"""A record in the files and lines that other programs, and people, read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedsim
from fedsim.api import export, happened
from fedsim.cli.app import app
from fedsim.errors import ConfigError
from fedsim.record import facts, read

GIVEN: dict[str, Any] = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "dpsgd", "local": {"steps": 1, "batch_size": 4}},
    "topology": "ring",
    "network": {"latency_ms": 500},
    "stop": {"rounds": 2},
    "record": {"report": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fedsim.run(GIVEN, out=tmp_path_factory.mktemp("runs")).path


def test_csv_holds_every_row(run: Path, tmp_path: Path) -> None:
    files = export(run, tmp_path)
    assert [file.name for file in files][:3] == ["metrics.csv", "rounds.csv", "events.csv"]
    with open(tmp_path / "rounds.csv") as file:
        rows = list(csv.DictReader(file))
    table = read(run, "rounds")
    assert list(rows[0]) == list(table)
    assert [int(row["time_us"]) for row in rows] == table["time_us"].tolist()
    with open(tmp_path / "nodes.csv") as file:
        assert {row["joules"] for row in csv.DictReader(file)} == {""}  # nobody knows them
    assert json.loads((tmp_path / "facts.json").read_text()) == facts(run)


def test_json_holds_every_row(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path, "json")
    rows = json.loads((tmp_path / "metrics.json").read_text())
    table = read(run, "metrics")
    assert [row["value"] for row in rows] == table["value"].tolist()
    assert json.loads((tmp_path / "nodes.json").read_text())[0]["joules"] is None


def test_parquet_holds_every_row(run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(run, tmp_path, "parquet")
    found = parquet.read_table(tmp_path / "events.parquet").to_pydict()
    assert found == {name: column.tolist() for name, column in read(run, "events").items()}


def test_what_cannot_be_exported_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where, form, told in (
        (run, "xlsx", "format: xlsx: must be one of csv, json, parquet"),
        (tmp_path, "csv", "holds no record.sqlite"),
    ):
        done = CliRunner().invoke(
            app, ["export", str(where), "--format", form, "--out", str(tmp_path / "out")]
        )
        assert (done.exit_code, told in done.stderr) == (2, True), done.stderr
    with pytest.raises(ConfigError, match=r"out: .* cannot be written"):
        export(run, tmp_path / "file")


def test_the_command_line_names_the_files(run: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run)])
    assert done.stdout.splitlines()[0] == str(run / "export" / "metrics.csv")


def test_what_happened_is_shown_in_the_order_of_time(run: Path) -> None:
    lines = list(happened(run))
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    rows = (read(run, table)["time_us"] for table in ("events", "metrics", "jobs"))
    assert len(lines) == sum(map(len, rows))
    jobs = [line.split()[-1] for line in lines if ": job " in line]
    assert jobs == [one[:8] for one in read(run, "jobs")["identity"]]
    assert len(set(jobs)) == 3 * 2  # nodes and rounds
    assert sum("round 1 has ended" in line for line in lines) == 1
    first = next(line for line in lines if "send" in line)
    sizes = read(run, "events", kind="send")["size"]
    assert first.split(maxsplit=4)[4] == f"node 0: send -> 1 {sizes[0]} bytes"


def test_parts_of_a_run_can_be_shown(run: Path) -> None:
    whole = list(happened(run))
    assert list(happened(run, round=1)) == [line for line in whole if " s  round 1 " in line]
    mine = list(happened(run, node=2))
    assert 0 < len(mine) < len(whole)
    assert all("node 2" in line or "-> 2" in line or "<- 2" in line for line in mine)
    early = list(happened(run, from_s=0.1, to_s=0.6))
    assert early == [line for line in whole if 0.1 <= float(line.split()[0]) <= 0.6]
    done = CliRunner().invoke(app, ["show", str(run), "--round", "1", "--node", "0"])
    assert done.stdout.splitlines() == list(happened(run, round=1, node=0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--round", "3"], "round 3"),
        (["--node", "7"], "node 7"),
        (["--from-s", "900"], "from-s 900.0"),
        (["--from-s", "2", "--to-s", "1"], "from-s 2.0, to-s 1.0"),
        (["--round", "1", "--node", "7"], "round 1, node 7"),
    ],
)
def test_where_nothing_happened_it_is_said_what_there_is(asked: list[str], said: str, run: Path) -> None:
    last_us = max(max(read(run, table)["time_us"]) for table in ("events", "metrics", "jobs"))
    done = CliRunner().invoke(app, ["show", str(run), *asked])
    has = f"rounds 0 to 2 and nodes 0 to 2, from 0 s to {last_us / 1e6:.6g} s"
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"show: {said}: nothing has happened there: the run has {has}\n"


def test_a_run_without_events_says_so(tmp_path: Path) -> None:
    path = fedsim.run(GIVEN, out=tmp_path, record__events=False).path
    assert {line.split(": ")[-1].split()[0] for line in happened(path) if "node" in line} >= {"job"}
    path = fedsim.run(GIVEN, out=tmp_path, timing_only=True, record__events=False).path
    done = CliRunner().invoke(app, ["show", str(path)])
    assert done.exit_code == 2
    assert "has recorded no events; set record.events to true" in done.stderr
