"""The record: what is written is read back, while the run goes on and after it was killed."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.errors import BadValue
from fedsim.record import Record, facts, faults, metrics, read, wide
from fedsim.record.store import BATCH_ROWS, FILE, ORDINARY, TABLES

numbers = st.floats(allow_nan=True, allow_infinity=True)
whole = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def columns(table: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: column.tolist() for name, column in table.items()}


def test_every_table_starts_empty_with_its_columns_and_types(tmp_path):
    Record(tmp_path).close()
    for table, kinds in TABLES.items():
        found = read(tmp_path, table)
        assert list(found) == list(kinds)
        for name, kind in kinds.items():
            wanted = {"INTEGER": np.int64, "REAL": np.float64}.get(kind, np.str_)
            assert found[name].shape == (0,)
            assert np.issubdtype(found[name].dtype, wanted)
    assert facts(tmp_path) == {}


def test_rows_come_back_in_the_order_in_which_they_were_written(tmp_path):
    with Record(tmp_path) as record:
        record.event(7, "send", 3, 1, 100, 2)
        record.event(5, "crash", 4)
        record.presence(0, 3, True)
        record.presence(9, 3, False)
    assert columns(read(tmp_path, "events")) == {
        "time_us": [7, 5],
        "kind": ["send", "crash"],
        "node": [3, 4],
        "peer": [1, -1],
        "size": [100, 0],
        "round": [2, -1],
    }
    assert columns(read(tmp_path, "presence")) == {"time_us": [0, 9], "node": [3, 3], "online": [1, 0]}


def test_a_record_is_a_file_or_the_folder_that_holds_it(tmp_path):
    with Record(tmp_path / FILE) as record:
        record.fact("x", 1)
    assert facts(tmp_path) == facts(tmp_path / FILE) == facts(str(tmp_path)) == {"x": 1}


def test_an_existing_record_is_continued(tmp_path):
    for value in (0.25, 0.5):
        with Record(tmp_path) as record:
            record.metric(1, 0, "accuracy", value)
    assert read(tmp_path, "metrics")["value"].tolist() == [0.25, 0.5]


def test_closing_twice_is_harmless_and_leaves_one_file(tmp_path):
    record = Record(tmp_path)
    record.event(0, "send", 0)
    record.close()
    record.close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert len(read(tmp_path, "events")["node"]) == 1


def test_what_was_recorded_before_an_exception_is_kept(tmp_path):
    def run() -> None:
        with Record(tmp_path) as record:
            record.event(3, "crash", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert read(tmp_path, "events")["time_us"].tolist() == [3]


def test_a_reader_sees_every_round_as_soon_as_it_ends(tmp_path):
    with Record(tmp_path) as record:
        record.event(1, "send", 0)
        assert len(read(tmp_path, "events")["node"]) == 0
        record.round(1, 10, 8, 6, 2, 64, 4, 3)
        assert len(read(tmp_path, "events")["node"]) == 1
        assert columns(read(tmp_path, "rounds")) == {
            "round": [1],
            "time_us": [10],
            "bytes_up": [8],
            "bytes_down": [6],
            "bytes_lost": [2],
            "work": [64.0],
            "wasted": [4.0],
            "clients": [3],
        }


@pytest.mark.parametrize("table", ["events", "presence"])
def test_a_full_buffer_is_written_by_itself(tmp_path, table):
    with Record(tmp_path) as record:
        for time_us in range(BATCH_ROWS + 10):
            if table == "events":
                record.event(time_us, "send", 0)
            else:
                record.presence(time_us, 0, True)
        assert len(read(tmp_path, table)["time_us"]) == BATCH_ROWS
    assert read(tmp_path, table)["time_us"].tolist() == list(range(BATCH_ROWS + 10))


def test_a_reader_does_not_stop_the_record_from_closing(tmp_path):
    record = Record(tmp_path)
    record.fact("x", 1)
    reader = sqlite3.connect(tmp_path / FILE)
    cursor = reader.execute("SELECT * FROM facts")
    began = time.perf_counter()
    record.close()
    assert time.perf_counter() - began < 1
    assert cursor.fetchall() == [("x", "1")]
    reader.close()


def test_what_was_flushed_survives_a_kill(tmp_path):
    program = (
        "import os, signal, sys; from fedsim.record.store import Record\n"
        "record = Record(sys.argv[1])\n"
        "record.event(5, 'send', 1); record.flush(); record.event(6, 'send', 1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert read(tmp_path, "events")["time_us"].tolist() == [5]
    with Record(tmp_path) as record:
        record.event(7, "send", 1)
    assert read(tmp_path, "events")["time_us"].tolist() == [5, 7]


def test_events_are_cheap(tmp_path):
    began = time.process_time()
    with Record(tmp_path) as record:
        for number in range(200_000):
            record.event(number, "send", 1, 2, 100, 3)
    assert time.process_time() - began < 2
    assert len(read(tmp_path, "events")["node"]) == 200_000


def test_the_store_loads_neither_matplotlib_nor_networkx_nor_torch():
    program = (
        "import sys, fedsim.errors; before = set(sys.modules); import fedsim.record.store\n"
        "print(*{'matplotlib', 'networkx', 'torch'} & (set(sys.modules) - before))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert loaded.stdout.strip() == ""
    assert loaded.returncode == 0


def test_bulk_rows_may_hold_numpy_numbers(tmp_path):
    rows = zip(np.array([0, 1]), np.array([1, 2]), np.array([1.5, 2.5]), np.array([10.0, math.inf]))
    with Record(tmp_path) as record:
        record.write("edges", rows)
    table = read(tmp_path, "edges")
    assert table["b"].tolist() == [1, 2]
    assert table["latency_ms"].tolist() == [1.5, 2.5]
    assert table["mbps"][0] == 10.0
    assert math.isnan(table["mbps"][1])


def test_numpy_numbers_are_taken_one_by_one_too(tmp_path):
    one, half = np.int64(1), np.float32(0.5)
    with Record(tmp_path) as record:
        record.metric(one, one, "accuracy", half, one)
        record.event(one, "send", one, one, one, one)
        record.presence(one, one, np.bool_(True))
        record.round(one, one, one, one, one, half, half, one)
    assert read(tmp_path, "metrics")["value"].tolist() == [0.5]
    assert read(tmp_path, "presence")["online"].tolist() == [1]
    assert read(tmp_path, "events")["peer"].tolist() == [1]


def test_bulk_rows_follow_those_in_the_buffer(tmp_path):
    with Record(tmp_path) as record:
        record.presence(1, 0, True)
        record.write("presence", [(2, 0, 0)])
    assert read(tmp_path, "presence")["time_us"].tolist() == [1, 2]


@pytest.mark.parametrize("row", [(1, 2), (1, 2, 3, 4)])
def test_a_row_of_the_wrong_width_is_refused_and_nothing_is_written(tmp_path, row):
    with Record(tmp_path) as record:
        with pytest.raises(BadValue, match=f"a row of links has 3 values, this one {len(row)}"):
            record.write("links", [(0, 1, 10), row])
        record.write("links", [(0, 2, 20)])
    assert columns(read(tmp_path, "links")) == {"a": [0], "b": [2], "bytes": [20]}


def test_an_unknown_table_is_refused_with_a_suggestion(tmp_path):
    with Record(tmp_path) as record, pytest.raises(BadValue, match="did you mean links"):
        record.write("link", [])
    with pytest.raises(BadValue, match="did you mean nodes"):
        read(tmp_path, "node")


def test_rows_can_be_chosen_by_value(tmp_path):
    with Record(tmp_path) as record:
        for time_us, kind, node in ((1, "crash", 3), (2, "send", 3), (3, "crash", 4)):
            record.event(time_us, kind, node)
    assert read(tmp_path, "events", kind="crash")["time_us"].tolist() == [1, 3]
    assert read(tmp_path, "events", kind="crash", node=4)["time_us"].tolist() == [3]
    assert read(tmp_path, "events", kind="late")["time_us"].tolist() == []
    with pytest.raises(BadValue, match="events has no such column; did you mean kind"):
        read(tmp_path, "events", knid="crash")


@pytest.mark.parametrize("key", ["round", "time_s", "bytes_up", "bytes_down"])
def test_a_metric_cannot_take_the_name_of_a_column(tmp_path, key):
    with Record(tmp_path) as record, pytest.raises(BadValue, match="is a column of every table"):
        record.metric(1, 0, key, 1.0)


def test_the_last_value_of_a_fact_stays(tmp_path):
    with Record(tmp_path) as record:
        record.fact("version", "0.1")
        record.fact("version", {"fedsim": "0.2", "parts": [1, None, 2.5]})
        assert facts(tmp_path) == {"version": {"fedsim": "0.2", "parts": [1, None, 2.5]}}


def test_a_path_without_a_record_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadValue, match=f"holds no {FILE}"):
            read(path, "events")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).write_bytes(b"certainly not a database" * 100)
    with pytest.raises(BadValue, match="no readable record"):
        facts(tmp_path)


def test_the_empty_file_of_a_run_killed_at_its_start_is_an_empty_record(tmp_path):
    (tmp_path / FILE).touch()
    assert read(tmp_path, "links")["bytes"].tolist() == []
    assert facts(tmp_path) == {}
    assert metrics(tmp_path)["round"].tolist() == []


@given(st.lists(st.tuples(whole, st.text(st.characters(codec="utf-8", exclude_characters="\0")), whole)))
@settings(max_examples=12, deadline=None)
def test_what_is_written_is_read(rows):
    with tempfile.TemporaryDirectory() as run:
        with Record(run) as record:
            for time_us, kind, size in rows:
                record.event(time_us, kind, 0, size=size)
        table = read(run, "events")
    kinds = [kind.rstrip("\0") for _, kind, _ in rows]
    assert list(zip(table["time_us"].tolist(), table["kind"].tolist(), table["size"].tolist())) == [
        (time_us, kind, size) for (time_us, _, size), kind in zip(rows, kinds)
    ]


@given(st.lists(numbers, min_size=1))
@settings(max_examples=12, deadline=None)
def test_finite_values_are_exact_and_all_others_are_nan(values):
    with tempfile.TemporaryDirectory() as run:
        with Record(run) as record:
            for value in values:
                record.metric(0, 0, "loss", value)
        stored = read(run, "metrics")["value"]
    expected = [value if math.isfinite(value) else math.nan for value in values]
    np.testing.assert_array_equal(stored, expected)


def test_metrics_are_one_row_for_each_evaluated_round(tmp_path):
    with Record(tmp_path) as record:
        record.metric(0, 0, "accuracy", 0.1)
        record.round(1, 3_000_000, 100, 90, 10, 0, 0, 0)
        record.metric(2, 5_900_000, "loss", 1.5)
        record.metric(2, 6_000_000, "accuracy", 0.4)
        record.round(2, 6_000_000, 200, 180, 20, 0, 0, 0)
        record.metric(2, 6_000_000, "accuracy", 0.9, node=3)
        record.round(3, 9_000_000, 300, 270, 30, 0, 0, 0)
        record.metric(4, 11_000_000, "accuracy", math.inf)
    table = metrics(tmp_path)
    assert list(table) == ["round", "time_s", "bytes_up", "bytes_down", "accuracy", "loss"]
    assert table["round"].tolist() == [0, 2, 4]
    assert table["time_s"].tolist() == [0.0, 6.0, 11.0]
    # Before the first round nothing was sent; round 4 has not ended, so what was sent until round 3 is known.
    assert table["bytes_up"].tolist() == [0, 200, 300]
    assert table["bytes_down"].tolist() == [0, 180, 270]
    np.testing.assert_array_equal(table["accuracy"], [0.1, 0.4, math.nan])
    np.testing.assert_array_equal(table["loss"], [math.nan, 1.5, math.nan])


def test_of_two_measurements_the_last_one_counts(tmp_path):
    with Record(tmp_path) as record:
        record.metric(1, 1_000_000, "accuracy", 0.5)
        record.metric(1, 2_000_000, "accuracy", 0.25)
    assert metrics(tmp_path)["accuracy"].tolist() == [0.25]
    assert metrics(tmp_path)["time_s"].tolist() == [2.0]


def test_a_run_without_measurements_has_a_row_for_each_round(tmp_path):
    with Record(tmp_path) as record:
        record.round(1, 5_000_000, 10, 9, 1, 0, 0, 0)
        record.round(2, 7_500_000, 30, 28, 2, 0, 0, 0)
    assert columns(metrics(tmp_path)) == {
        "round": [1, 2],
        "time_s": [5.0, 7.5],
        "bytes_up": [10, 30],
        "bytes_down": [9, 28],
    }


def test_a_run_that_was_killed_at_once_has_no_rows(tmp_path):
    Record(tmp_path).close()
    assert columns(metrics(tmp_path)) == {"round": [], "time_s": [], "bytes_up": [], "bytes_down": []}


def test_faults_are_the_events_that_no_ordinary_run_has(tmp_path):
    with Record(tmp_path) as record:
        for time_us, kind in enumerate([*ORDINARY, "crash", "send", "partition"]):
            record.event(time_us, kind, 3, 4)
    found = faults(tmp_path)
    assert found["kind"].tolist() == ["crash", "partition"]
    assert found["time_us"].tolist() == [len(ORDINARY), len(ORDINARY) + 2]
    assert list(found) == list(TABLES["events"])


def test_no_faults_are_an_empty_table(tmp_path):
    Record(tmp_path).close()
    assert columns(faults(tmp_path)) == {name: [] for name in TABLES["events"]}


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.floats(0, 1)), max_size=30))
@settings(max_examples=50, deadline=None)
def test_wide_holds_exactly_the_last_values(rows):
    long = {
        "round": np.array([r for r, _, _ in rows], dtype=np.int64),
        "time_us": np.arange(len(rows)),
        "name": np.array([n for _, n, _ in rows], dtype=np.str_),
        "value": np.array([v for _, _, v in rows], dtype=np.float64),
        "node": np.full(len(rows), -1),
    }
    none = np.zeros(0, dtype=np.int64)
    table = wide(long, {"round": none, "bytes_up": none, "bytes_down": none})
    last = {(r, n): v for r, n, v in rows}
    assert table["round"].tolist() == sorted({r for r, _, _ in rows})
    assert set(table) - {"round", "time_s", "bytes_up", "bytes_down"} == {n for _, n, _ in rows}
    for name in {n for _, n, _ in rows}:
        expected = [last.get((r, name), math.nan) for r in table["round"].tolist()]
        np.testing.assert_array_equal(table[name], expected)


def test_a_record_is_still_readable_in_a_folder_that_nobody_can_write_to(tmp_path):
    run = Path(tmp_path) / "archive"
    run.mkdir()
    with Record(run) as record:
        record.fact("kept", True)
    run.chmod(0o555)
    assert facts(run) == {"kept": True}
    run.chmod(0o755)
