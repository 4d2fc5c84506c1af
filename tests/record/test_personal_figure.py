"""The figure of what clients get, and the numbers beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import BadValue
from fedsim.record.numbers import changing
from fedsim.record.personal import personal
from fedsim.record.report import write_report
from fedsim.record.store import Record, read, wide
from fedsim.running.personal import gini, shares

SCORES = {"personal": ([0.2, 0.1, 0.6], [0.4, 0.3, 0.8]), "tuned": ([0.5, 0.7, 0.6], [0.9, 1.0, 0.8])}


def recorded(folder, score="accuracy", clients=3):
    """Record the scores of some clients at the rounds 0 and 5."""
    with Record(folder) as record:
        for node in range(clients):
            record.presence(0, node, True)
        for round, place in ((0, 0), (5, 1)):
            for whose, values in SCORES.items():
                for one in {score, "loss"}:
                    own = {node: values[place][node % 3] for node in range(clients)}
                    for end, value in shares(own, one).items():
                        record.metric(round, round * 10**6, f"{whose}_{one}{end}", value)
                    for node, value in own.items():
                        record.metric(round, round * 10**6, f"{whose}_{one}", value, node)
            record.metric(round, round * 10**6, score, 0.5)
            if round:
                record.round(round, round * 10**6, 0, 0, 0, 0, 0, 0)
    return folder


def drawn(folder):
    return personal(read(folder, "metrics"), read(folder, "rounds"))


def test_clients_stand_from_the_worst_to_the_best_at_the_last_evaluation(tmp_path):
    clients, over = drawn(recorded(tmp_path)).axes
    lines = [line for line in clients.lines if len(line.get_ydata())]
    assert [line.get_ydata().tolist() for line in lines] == [[0.3, 0.4, 0.8], [0.8, 0.9, 1.0]]
    assert lines[0].get_xdata().tolist() == pytest.approx([100 / 3, 200 / 3, 100])
    texts = [text.get_text() for text in clients.get_legend().get_texts()]
    # of 0.3, 0.4 and 0.8: twice the sum 0.1 + 0.4 + 0.5 of the distances, over 2 x 9 x 0.5
    assert texts[:2] == ["the client's model", f"Gini {2 / 9:.3f}"]
    means = [line.get_ydata().tolist() for line in over.lines if line.get_linestyle() == "-"]
    assert means == [pytest.approx([0.3, 0.5]), pytest.approx([0.6, 0.9])]
    assert clients.get_xlabel() == "share of the clients (%)"
    assert over.get_xlabel() == "round"


def test_of_losses_the_highest_are_the_worst(tmp_path):
    clients, over = drawn(recorded(tmp_path, score="loss")).axes
    assert clients.lines[0].get_ydata().tolist() == [0.8, 0.4, 0.3]
    worst = [line.get_ydata().tolist() for line in over.lines if line.get_linestyle() == ":"]
    assert worst == [[0.6, 0.8], [0.7, 1.0]]


def test_it_is_in_the_report_and_in_no_other_figure(tmp_path):
    recorded(tmp_path, clients=40)
    page = write_report(tmp_path).read_text()
    assert "What clients get" in page
    assert (tmp_path / "figures" / "personal.svg").exists()
    assert not (tmp_path / "figures" / "loss.png").exists()
    table = wide(read(tmp_path, "metrics"), read(tmp_path, "rounds"))
    assert [name for name in changing(table) if "personal" in name or "tuned" in name] == []


def test_without_the_numbers_there_is_none(tmp_path):
    with Record(tmp_path) as record:
        record.metric(0, 0, "accuracy", 0.5)
    with pytest.raises(BadValue, match=r"was not measured; set evaluate.personal"):
        drawn(tmp_path)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_gini_is_the_mean_distance_over_twice_the_mean(values):
    found = gini(sorted(values))
    apart = np.abs(np.subtract.outer(values, values)).mean()
    middle = np.mean(values)
    assert found == pytest.approx(apart / (2 * middle) if middle > 1e-300 else 0.0, abs=1e-9)
    assert -1e-12 <= found < 1
