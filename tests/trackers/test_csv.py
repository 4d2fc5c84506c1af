"""The table of all numbers."""

from __future__ import annotations

import csv

import pytest

from tests.trackers.conftest import Made, curve, sent


@pytest.mark.parametrize("broken", [False, True])
def test_every_number_of_the_record_is_a_row_once(broken: bool, tracked: Made) -> None:
    run = tracked("csv", broken=broken)
    with (run.path / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["round", "sim_time_s", "name", "node", "value"]
    for name, wanted in {"accuracy": curve(run.path, "accuracy"), "bytes_up": sent(run.path)}.items():
        found = [row for row in rows if row["name"] == name and not row["node"]]
        assert [(int(r["round"]), float(r["sim_time_s"]), float(r["value"])) for r in found] == wanted
    assert len({(row["round"], row["name"], row["node"]) for row in rows}) == len(rows)
    assert {row["node"] for row in rows if row["name"] == "client_accuracy"} == {"", "0", "1", "2", "3"}


def test_the_nodes_can_be_left_out(tracked: Made) -> None:
    run = tracked({"name": "csv", "nodes": False})
    lines = (run.path / "numbers.csv").read_text().splitlines()
    assert {line.split(",")[3] for line in lines} == {"node", ""}
