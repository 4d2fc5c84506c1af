"""The figure of all that was measured besides how good the model is."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from fedsim.errors import BadValue
from fedsim.record.numbers import COLUMNS, MOST, changing, numbers
from fedsim.record.report import write_report
from fedsim.record.store import Record, read, wide


def recorded(folder, **series):
    """Record the values of each name in rounds 1, 2, …; None is not measured."""
    folder.mkdir(exist_ok=True)
    with Record(folder) as record:
        for round in range(1, 1 + max(map(len, series.values()))):
            for name, values in series.items():
                if values[round - 1] is not None:
                    record.metric(round, round * 1_000_000, name, values[round - 1])
            record.metric(round, round * 1_000_000, "cached", 7.0 * round, 3)  # of one node
            record.round(round, round * 1_000_000, 0, 0, 0, 0, 0, 0)
    return folder


def drawn(folder):
    return numbers(read(folder, "metrics"), read(folder, "rounds"))


def test_what_has_changed_has_a_panel_each(tmp_path):
    folder = recorded(tmp_path, anchors=[3, 5, 4], cache_age=[0.5, None, 1.5], replies=[8, 8, 8])
    figure = drawn(folder)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["anchors", "cache age"]
    lines = [ax.lines[0].get_xydata().tolist() for ax in figure.axes]
    assert lines == [[[1, 3], [2, 5], [3, 4]], [[1, 0.5], [3, 1.5]]]
    ticks = figure.axes[0].get_yticks()
    assert np.array_equal(ticks, np.round(ticks))  # nobody is an anchor by halves


def test_extremes_are_drawn_with_what_they_are_extremes_of(tmp_path):
    folder = recorded(tmp_path, staleness=[0, 1.5, 1], staleness_max=[0, 3, 2], lone_max=[1, 2, 3])
    lone, staleness = drawn(folder).axes
    assert [line.get_ydata().tolist() for line in staleness.lines] == [[0, 3, 2], [0, 1.5, 1]]
    assert [line.get_ydata().tolist() for line in lone.lines] == [[1, 2, 3]]


def test_what_has_a_figure_of_its_own_is_left_out(tmp_path):
    names = (
        "accuracy",
        "accuracy_of_average",
        "accuracy_min",
        "distance",
        "loss",
        "loss_min",
        "train_loss",
        "pool",
    )
    folder = recorded(tmp_path, view_mean=[1, 2, 3], **dict.fromkeys(names, (1, 2, 3)))
    assert changing(wide(read(folder, "metrics"), read(folder, "rounds"))) == []
    with pytest.raises(BadValue, match="no number has changed"):
        drawn(folder)


@pytest.mark.parametrize("count", [1, 2, 4, 40])
def test_there_is_a_panel_for_each_name_up_to_a_dozen(count, tmp_path):
    folder = recorded(tmp_path, **{f"number_{index:02}": [index, 2 * index + 1] for index in range(count)})
    shown = drawn(folder).axes
    assert len(shown) == min(count, MOST)
    places = {(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in shown}
    assert places == {divmod(index, min(count, COLUMNS)) for index in range(len(shown))}


def test_the_report_shows_it_where_something_has_changed(tmp_path):
    for values, there in (([1, 2], True), ([2, 2], False), ([2, None], False)):
        folder = recorded(tmp_path / str(values), anchors=values, accuracy=[0.1, 0.2])
        page = write_report(folder).read_text(encoding="utf-8")
        assert ("What else was measured" in page) is there


def test_roles_and_cache_ages_of_fedamd_are_there(tmp_path):
    given = {
        "data": {"name": "digits", "clients": 8},
        "model": "softmax",
        "strategy": {
            "name": "fedamd",
            "participants": 4,
            "p": 0.5,
            "local": {"steps": 1, "batch_size": 8, "lr": 0.1},
        },
        "stop": {"rounds": 6},
    }
    result = fedsim.run(given, out=tmp_path)
    table = wide(read(result.path, "metrics"), read(result.path, "rounds"))
    assert set(changing(table)) >= {"anchors", "miners", "cache_age"}
    assert (result.path / "figures" / "numbers.svg").exists()
