"""The figure of the views: how many nodes they hold, beside how many are online."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.errors import BadValue
from fedsim.record.curves import views
from fedsim.record.report import write_report
from fedsim.record.store import Record, read


def recorded(folder, measured=True):
    """Record four rounds of a minute; the views lose a node in each, and nodes 1 and 2 go after two and a half."""
    folder.mkdir(exist_ok=True)
    with Record(folder) as record:
        for node in range(4):
            record.presence(0, node, True)
        for node in (1, 2):
            record.presence(150_000_000, node, False)
            record.event(150_000_000, "crash", node)
        for round in range(1, 5):
            at_us = round * 60_000_000
            if measured and round != 3:
                record.metric(round, at_us, "view_mean", 4.5 - round)
                record.metric(round, at_us, "view_min", 4.0 - round)
                record.metric(round, at_us, "view_max", 4.0)
            record.metric(round, at_us, "accuracy", 0.5)
            record.round(round, at_us, 0, 0, 0, 0, 0, 0)
    return folder


def drawn(folder):
    return views(*(read(folder, name) for name in ("metrics", "rounds", "presence")), 240_000_000)


def test_the_mean_is_drawn_against_time_where_views_were_read(tmp_path):
    ax = drawn(recorded(tmp_path)).axes[0]
    mean, online = ax.lines
    assert mean.get_xydata().tolist() == [[1, 3.5], [2, 2.5], [4, 0.5]]
    assert ax.get_xlabel() == "simulated time (min)"
    assert online.get_xydata().tolist() == [[0, 4], [2.5, 2], [4, 2]]


def test_the_band_goes_from_the_least_to_the_most(tmp_path):
    ax = drawn(recorded(tmp_path)).axes[0]
    corners = ax.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in np.round(corners, 9).tolist()} >= {
        (1, 3),
        (2, 2),
        (4, 0),
        (1, 4),
        (4, 4),
    }
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "least to most",
        "mean of the views",
        "online",
    ]


def test_the_report_shows_it_where_views_were_measured(tmp_path):
    for measured in (True, False):
        page = write_report(recorded(tmp_path / str(measured), measured)).read_text(encoding="utf-8")
        assert ("Who is in the views" in page) is measured


def test_without_views_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(BadValue, match="no views"):
        drawn(recorded(tmp_path, measured=False))
