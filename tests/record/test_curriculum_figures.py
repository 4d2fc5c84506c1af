"""Figures of ordered learning: what they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from fedsim.errors import BadValue
from fedsim.record.curriculum import curriculum, histogram, pace, participation
from fedsim.record.store import facts


def table(rows):
    """Make the table ``metrics`` of (round, node, name, value)."""
    columns = {"round": [], "node": [], "name": [], "value": []}
    for row in rows:
        for column, value in zip(columns.values(), row):
            column.append(value)
    return {key: np.array(column) for key, column in columns.items()}


SCORES = table([(1, 0, "score", 2.0), (1, 1, "score", 1.0), (4, 0, "score", 0.5), (4, 1, "score", 3.0)])
VISITS = table([(1, 1, "visits", 1.0), (4, 1, "visits", 2.0), (4, 7, "visits", 1.0)])


def test_participation_is_by_the_first_score():
    order, taken = participation(SCORES, VISITS)
    assert order.tolist() == [1, 0, 7]  # 7 never had a score
    assert taken.tolist() == [2, 0, 1]


def test_participation_is_by_the_difficulty_where_that_is_known():
    order, taken = participation(SCORES, VISITS, [0.5, 0.7, 0.1])
    assert order.tolist() == [2, 0, 1, 7]
    assert taken.tolist() == [0, 0, 2, 1]


def test_the_histogram_counts_every_client_of_a_round_once():
    rounds, counts, edges = histogram(SCORES)
    assert rounds.tolist() == [1, 4]
    assert counts.sum(axis=1).tolist() == [2, 2]
    assert (edges[0], edges[-1]) == (0.5, 3.0)
    assert counts[0, np.searchsorted(edges, 1.0, side="right") - 1] == 1


def test_the_pool_is_drawn_against_rounds():
    rows = [(0, -1, "pool", 0.0), (1, -1, "pool", 2.0), (4, -1, "pool", 5.0)]
    parts = (table(rows), SCORES, VISITS)
    metrics = {key: np.concatenate([part[key] for part in parts]) for key in SCORES}
    left, middle, right, bar = curriculum(metrics).axes
    assert left.lines[0].get_xydata().tolist() == [[1, 2], [4, 5]]
    assert len(middle.collections) == 1
    assert bar.get_ylabel() == "clients"
    assert [one.get_height() for one in right.patches] == [2, 0, 1]
    assert [one.get_text() for one in right.get_xticklabels()] == ["1", "0", "7"]
    assert right.get_xlabel() == "client (id), sorted by its first score"
    assert "known difficulty" in curriculum(metrics, [0.5, 0.7]).axes[2].get_xlabel()
    with pytest.raises(BadValue, match="no pool"):
        curriculum(SCORES)


def test_a_random_order_has_no_scores_to_draw():
    rows = [(1, -1, "pool", 2.0), (1, 3, "visits", 1.0)]
    _, middle, right = curriculum(table(rows)).axes
    assert not middle.collections
    assert right.get_xlabel() == "client (id), sorted by its id"


@pytest.mark.parametrize(("clock", "label"), [("step", "local step of a visit"), ("round", "round")])
def test_the_pace_is_a_staircase(clock, label):
    known = {"clock": clock, "sizes": [[0, 50], [5, 59], [11, 71]]}
    ax = pace({**known, "end": 19}).axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[0, 50], [5, 59], [11, 71], [19, 71]]
    assert pace(known).axes[0].lines[0].get_xydata()[-1].tolist() == [12, 71]
    assert ax.get_xlabel() == label


def test_a_report_shows_both(tmp_path):
    local = {"epochs": 1, "batch_size": 20, "curriculum": {}}
    select = {"name": "curriculum", "rounds": 3}
    strategy = {"name": "fedprox", "mu": 0.0, "participants": 2, "local": local, "select": select}
    data = {"clients": 4, "test_share": 0.8}
    result = fedsim.run(
        {"data": data, "model": "softmax", "strategy": strategy, "stop": {"rounds": 3}}, out=tmp_path
    )
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert "Pace of the samples" in page
    assert "Curriculum of the clients" in page
    assert facts(result.path)["pace"]["sizes"][0] == [0, 32]  # the floor
