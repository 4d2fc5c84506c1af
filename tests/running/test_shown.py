"""How far a run has come, as it is shown on terminals, in files, and in notebooks."""

from __future__ import annotations

import os
import select
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.errors import RunError
from fedsim.running import shown as shown_
from fedsim.running.progress import Progress

START = Progress(0, None, 0.0, None, None, None, 0, 0, 0, 0.0)


def at(**changes: Any) -> Progress:
    return replace(START, **changes)


def test_a_full_line_of_progress():
    progress = Progress(12, 48, 34.56, None, 0.87316, 0.5, 4_200_000, 1_500, 1_200, 60.0)
    assert shown_.describe(progress) == (
        "round 12/48, t = 34.560 s, accuracy 0.8732, 4.2 MB sent, 20.0 clients/s, 0:03:00 left"
    )


def test_a_line_without_what_is_unknown():
    assert shown_.describe(at()) == "round 0, t = 0.000 s, 0 bytes sent"


@pytest.mark.parametrize(
    ("progress", "share", "left_s"),
    [
        (at(round=3), None, None),
        (at(round=0, rounds=4, wall_time_s=9), 0.0, None),
        (at(round=1, rounds=4, wall_time_s=9), 0.25, 27.0),
        (at(sim_time_s=30, sim_limit_s=40, wall_time_s=9), 0.75, 3.0),
        (at(round=1, rounds=4, sim_time_s=20, sim_limit_s=40, wall_time_s=9), 0.5, 9.0),
        (at(round=4, rounds=4, wall_time_s=9), 1.0, 0.0),
        (at(sim_time_s=41, sim_limit_s=40, wall_time_s=9), 1.0, 0.0),
    ],
)
def test_how_much_is_done_and_left(progress, share, left_s):
    assert shown_.share_done(progress) == share
    assert shown_.time_left_s(progress) == left_s


def test_plain_lines_come_once_a_second_and_at_the_end(capsys):
    with shown_.shown(quiet=False) as show:
        assert isinstance(show, shown_.Lines)
        for tenth in range(25):
            show(at(round=tenth, wall_time_s=tenth / 10))
    out, errors = capsys.readouterr()
    assert out == ""
    assert [line.partition(",")[0] for line in errors.splitlines()] == [
        "round 0",
        "round 10",
        "round 20",
        "round 24",
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 3), min_size=1, max_size=20))
def test_the_last_state_is_always_shown_and_never_twice(waits):
    shown: list[int] = []
    lines, now = shown_.Lines(), 0.0
    for number, wait in enumerate(waits):
        now += wait
        lines(at(round=number, wall_time_s=now))
        if lines.pending is None:
            shown.append(number)
    last_shown = shown[-1]
    assert shown[0] == 0
    assert (lines.pending is None) == (last_shown == len(waits) - 1)
    assert lines.pending is None or lines.pending.round == len(waits) - 1


def test_lines_are_kept_when_a_run_breaks(capsys):
    def broken_run() -> None:
        with shown_.shown(quiet=False) as show:
            assert show is not None
            show(at(round=1))
            show(at(round=2, wall_time_s=0.5))
            raise RunError("broke")

    with pytest.raises(RunError):
        broken_run()
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["round 1", "round 2"]


def test_quiet_shows_nothing(capsys):
    with shown_.shown(quiet=True) as show:
        assert show is None
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm")
        with shown_.shown(quiet=False) as show:
            assert show is not None
            show(at(round=1, rounds=2, accuracy=0.5))
        terminal.flush()
        data = b""
        while select.select([ours], [], [], 0.5)[0]:  # one read gives only what has arrived so far
            data += os.read(ours, 100_000)
        text = data.decode()
    os.close(ours)
    assert "━" in text
    assert "round 1/2, t = 0.000 s, accuracy 0.5000, 0 bytes sent" in text


@pytest.fixture
def cells(monkeypatch):
    """Stand in for a notebook: what it is told to display, and to display anew."""
    said = []

    def display(data, raw, display_id):
        assert (raw, display_id) == (True, True)
        said.append(data["text/html"])
        return SimpleNamespace(update=lambda data, raw: said.append(data["text/html"]))

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    return said


def test_a_notebook_gets_one_bar_that_changes(cells):
    with shown_.shown() as show:
        show(at(round=1, rounds=4))
        show(at(round=2, rounds=4))
    assert cells == [
        '<progress value="0.2500"></progress> round 1/4, t = 0.000 s, 0 bytes sent, 0:00:00 left',
        '<progress value="0.5000"></progress> round 2/4, t = 0.000 s, 0 bytes sent, 0:00:00 left',
    ]


def test_a_bar_without_a_known_end_has_no_value(cells):
    with shown_.shown() as show:
        show(at(round=1))
    assert cells == ["<progress></progress> round 1, t = 0.000 s, 0 bytes sent"]


def test_python_asks_for_it_with_true(cells, tmp_path):
    given = {"data": {"clients": 2}, "model": "softmax", "strategy": "dpsgd", "topology": "ring"}
    given |= {"stop": {"rounds": 2}, "record": {"report": False}}
    fedsim.run(given, out=tmp_path, progress=True)
    assert "round 2/2" in cells[-1]
    count = len(cells)
    heard = []
    fedsim.run(given, out=tmp_path, progress=heard.append)
    fedsim.run(given, out=tmp_path, progress=False)
    assert [one.round for one in heard][-1] == 2
    assert len(cells) == count
