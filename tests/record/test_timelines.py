"""Timelines and busy links: every bar lies where the events say."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from fedsim.errors import BadValue
from fedsim.record import Record, faults, figures, read
from fedsim.record.spans import activity
from fedsim.record.style import BLUE, FAULT, GREEN, GREY, ORANGE
from fedsim.record.timelines import MANY_SPANS, busiest_node

SECOND = 1_000_000
LANE = {"receiving": BLUE, "computing": GREEN, "sending": ORANGE, "waiting": GREY}

# Server 0 sends to the clients 1 and 2 in a round of 10 s; client 2 goes offline at 16 s and breaks off.
EVENTS = [
    (0, "compute", 1, -1, 5, 1),
    (4, "done", 1, -1, 5, 1),
    (4, "round", -1, -1, 0, 1),
    (4, "send", 0, 1, 100, 2),
    (4, "send", 0, 2, 100, 2),
    (5, "deliver", 1, 0, 100, 2),
    (5, "compute", 1, -1, 5, 2),
    (6, "deliver", 2, 0, 100, 2),
    (6, "compute", 2, -1, 5, 2),
    (12, "done", 1, -1, 5, 2),
    (12, "send", 1, 0, 50, 2),
    (9, "crash", 3, -1, 0, -1),
    (10, "aborted", 2, -1, 5, 2),
    (14, "deliver", 0, 1, 50, 2),
    (14, "round", -1, -1, 0, 2),
    (14, "send", 0, 1, 100, 3),
    (15, "deliver", 1, 0, 100, 3),
]
NODES = [(0, "server"), (1, "client"), (2, "client"), (3, "client")]


@pytest.fixture(name="run")
def small_run(tmp_path):
    with Record(tmp_path) as record:
        record.write("nodes", [(node, role, 1, 1, *[0] * 8) for node, role in NODES])
        for node, _ in NODES:
            record.presence(0, node, True)
        record.presence(9 * SECOND, 3, False)
        record.presence(10 * SECOND, 2, False)
        for time_s, *rest in sorted(EVENTS, key=lambda event: event[0]):
            record.event(time_s * SECOND, *rest)
        for round, end_s in ((0, 0), (1, 4), (2, 14), (3, 40)):
            record.round(round, end_s * SECOND, 0, 0, 0, 0, 0, 0)
    return tmp_path


def tables(run, *names):
    return [read(run, name) for name in names]


def did(run, end_s: int = 40):
    return activity(read(run, "events"), end_s * SECOND)


def bars(ax, colour: str) -> list[tuple]:
    """Row, beginning and end of every bar of a colour."""
    found = []
    for bar in ax.collections:
        if (
            isinstance(bar, PolyCollection)
            and matplotlib.colors.to_hex(bar.get_facecolor()[0]) == colour.lower()
        ):
            corners = [path.vertices for path in bar.get_paths()]
            found += [(round(c[:, 1].mean()), c[:, 0].min(), c[:, 0].max()) for c in corners]
    return [tuple(round(float(number), 6) for number in bar) for bar in sorted(found)]


def names(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_a_round_shows_what_every_node_did_in_it(run):
    ax = figures.round_timeline(did(run), *tables(run, "rounds", "presence", "nodes")).axes[0]
    # Rounds took 4, 10 and 26 s; node 2 was finished at 10 s of the run, node 1 at 14 s; node 3 did nothing.
    assert ax.get_title(loc="left") == "round 2: 10 s, 3 nodes"
    assert names(ax) == ["server 0", "2", "1"]
    assert bars(ax, BLUE) == [(0, 8, 10), (1, 0, 2), (2, 0, 1)]
    assert bars(ax, GREEN) == [(1, 2, 6), (2, 1, 8)]
    assert bars(ax, ORANGE) == [(0, 0, 2), (2, 8, 10)]
    assert bars(ax, GREY) == [(0, 0, 10), (1, 0, 6), (2, 0, 10)]
    (cross,) = ax.lines
    assert (cross.get_xydata().tolist(), cross.get_color()) == ([[6, 1]], FAULT)
    assert ax.get_xlim() == (0, 10)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words == ["receiving", "computing", "sending", "waiting", "broken off"]


def test_any_round_can_be_shown(run):
    ax = figures.round_timeline(did(run), *tables(run, "rounds", "presence", "nodes"), round=1).axes[0]
    assert ax.get_title(loc="left") == "round 1: 4 s, 1 nodes"
    assert bars(ax, GREEN) == [(0, 0, 4)]
    assert bars(ax, BLUE) == bars(ax, ORANGE) == []
    assert len(ax.lines) == 0
    assert len(ax.get_legend().get_texts()) == 4


def test_a_round_that_has_not_ended_cannot_be_shown(run):
    told = tables(run, "rounds", "presence", "nodes")
    for round in (4, -1):
        with pytest.raises(BadValue, match="has not ended"):
            figures.round_timeline(did(run), *told, round=round)
    none = {name: column[:0] for name, column in told[0].items()}
    with pytest.raises(BadValue, match="has not ended"):
        figures.round_timeline(did(run), none, *told[1:])


def test_a_round_in_which_nothing_happened_is_refused(run):
    rounds, presence, nodes = tables(run, "rounds", "presence", "nodes")
    later = {**rounds, "time_us": rounds["time_us"] + 50 * SECOND}
    with pytest.raises(BadValue, match="nobody sent, received or computed"):
        figures.round_timeline(did(run), later, presence, nodes, round=3)


def test_of_rounds_that_took_equally_long_the_middle_one_is_typical(run):
    rounds, presence, nodes = tables(run, "rounds", "presence", "nodes")
    long = {"round": np.arange(6), "time_us": np.arange(6) * 4 * SECOND}
    ax = figures.round_timeline(did(run), {**rounds, **long}, presence, nodes).axes[0]
    assert ax.get_title(loc="left").startswith("round 3: 4 s")


def test_the_typical_round_is_one_in_which_something_happened(run):
    """Most rounds have no length, as those of an asynchronous server, and nobody does anything in the longest."""
    rounds, presence, nodes = tables(run, "rounds", "presence", "nodes")
    for ends, typical in (
        ([4, 4, 4, 14, 14, 40], "round 4: 10 s, 3"),
        ([0, 0, 0, 14, 40, 400], "round 4: 14 s, 3"),
    ):
        many = {"round": np.arange(1, 7), "time_us": np.array(ends) * SECOND}
        ax = figures.round_timeline(did(run), {**rounds, **many}, presence, nodes).axes[0]
        assert ax.get_title(loc="left").startswith(typical)


def test_of_rounds_without_length_none_is_drawn(run):
    rounds, presence, nodes = tables(run, "rounds", "presence", "nodes")
    flat = {**rounds, "time_us": np.zeros_like(rounds["time_us"])}
    with pytest.raises(BadValue, match="round: nobody sent, received or computed anything in any of them"):
        figures.round_timeline(did(run), flat, presence, nodes)


def test_a_run_in_which_no_time_passed_is_drawn(tmp_path):
    """All that a world without delays and without work has: everything at once."""
    with Record(tmp_path) as record:
        for round in (1, 2):
            record.event(0, "send", 1, 0, 100, round)
            record.event(0, "deliver", 0, 1, 100, round)
            record.round(round, 0, 100, 100, 0, 0, 0, 0)
    assert "node" in figures.draw_all(tmp_path)
    assert not (tmp_path / "figures" / "round.png").exists()


def test_a_node_without_presence_was_always_online(run):
    rounds, presence, nodes = tables(run, "rounds", "presence", "nodes")
    nobody = {name: column[:0] for name, column in presence.items()}
    ax = figures.round_timeline(did(run), rounds, nobody, nodes).axes[0]
    assert bars(ax, GREY) == [(0, 0, 10), (1, 0, 10), (2, 0, 10)]


def test_a_node_is_shown_over_the_whole_run(run):
    presence, nodes = tables(run, "presence", "nodes")
    ax = figures.node_timeline(did(run), presence, nodes, 40 * SECOND, node=2).axes[0]
    assert ax.get_title(loc="left") == "client 2"
    assert bars(ax, BLUE) == [(0, 4, 6)]
    assert bars(ax, GREEN) == [(1, 6, 10)]
    assert bars(ax, ORANGE) == []
    assert bars(ax, GREY) == [(3, 10, 40)]
    assert names(ax) == ["receiving  5.0%", "computing  10.0%", "sending  0.0%", "offline  75.0%"]
    assert ax.get_xlim() == (0, 40)


def test_the_busiest_client_is_shown_by_default(run):
    presence, nodes = tables(run, "presence", "nodes")
    ax = figures.node_timeline(did(run), presence, nodes, 40 * SECOND).axes[0]
    assert ax.get_title(loc="left") == "client 1, the busiest"
    assert bars(ax, GREEN) == [(1, 0, 4), (1, 5, 12)]


def test_only_the_faults_of_the_node_and_of_the_world_are_marked(run):
    presence, nodes = tables(run, "presence", "nodes")
    with Record(run) as record:
        record.event(20 * SECOND, "partition", -1)
        record.event(22 * SECOND, "cut", 2, 3)
    broken = faults(run)
    for node, kinds in ((1, {"partition"}), (2, {"partition", "cut"})):
        ax = figures.node_timeline(did(run), presence, nodes, 40 * SECOND, node, broken).axes[0]
        assert {text.get_text() for text in ax.texts} == kinds


def test_a_node_that_never_did_anything_cannot_be_shown(run):
    presence, nodes = tables(run, "presence", "nodes")
    with pytest.raises(BadValue, match="never sent, received or computed"):
        figures.node_timeline(did(run), presence, nodes, 40 * SECOND, node=3)
    nothing = activity({name: column[:0] for name, column in read(run, "events").items()}, 1)
    with pytest.raises(BadValue, match="never sent, received or computed"):
        figures.node_timeline(nothing, presence, nodes, 40 * SECOND)


def test_the_busiest_node_is_no_server_even_if_the_record_names_none(run):
    (nodes,) = tables(run, "nodes")
    nobody = {name: column[:0] for name, column in nodes.items()}
    assert busiest_node(did(run), nodes) == busiest_node(did(run), nobody) == 1


def test_thousands_of_bars_become_a_picture(run):
    presence, nodes = tables(run, "presence", "nodes")
    count = MANY_SPANS + 1
    busy = activity(
        {
            "time_us": np.arange(2 * count),
            "kind": np.tile(["compute", "done"], count),
            "node": np.ones(2 * count, dtype=int),
            "peer": np.full(2 * count, -1),
            "round": np.repeat(np.arange(count), 2),
        },
        2 * count,
    )
    assert len(busy.lanes["computing"][1]) == count
    ax = figures.node_timeline(busy, presence, nodes, 2 * count).axes[0]
    assert [c.get_rasterized() for c in ax.collections] == [False, True, False, False]


def test_links_are_busy_while_anything_is_under_way(run):
    (nodes,) = tables(run, "nodes")
    ax = figures.utilisation(did(run), nodes, 40 * SECOND).axes[0]
    shown = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    # The server sends in 4-6 and 14-15 s and receives in 12-14 s, client 1 the other way round without 5-6 s.
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    assert shown == {
        "uplink": [[1, 5.0], [2, 0.0], [3, 0.0]],
        "uplink of the server": [[0, 7.5]],
        "downlink": [[1, 5.0], [2, 5.0], [3, 0.0]],
        "downlink of the server": [[0, 5.0]],
    }
    assert {line.get_color() for line in ax.lines if "server" in line.get_label()} == {ORANGE}


def test_without_a_table_of_nodes_the_links_are_those_of_the_events(run):
    (nodes,) = tables(run, "nodes")
    nobody = {name: column[:0] for name, column in nodes.items()}
    ax = figures.utilisation(did(run), nobody, 40 * SECOND).axes[0]
    assert [line.get_label() for line in ax.lines] == ["uplink", "downlink"]
    assert len(ax.lines[0].get_xdata()) == 3


def test_links_of_a_run_without_messages_are_refused(run):
    (nodes,) = tables(run, "nodes")
    only = {name: column[:2] for name, column in read(run, "events").items()}
    with pytest.raises(BadValue, match="nothing was sent"):
        figures.utilisation(activity(only, 5), nodes, 5)


def test_timelines_are_left_out_where_events_were_not_recorded(tmp_path):
    with Record(tmp_path) as record:
        record.event(SECOND, "crash", 1)
        record.presence(0, 1, True)
        record.presence(SECOND, 1, False)
        record.round(1, 2 * SECOND, 0, 0, 0, 0, 0, 0)
    assert list(figures.draw_all(tmp_path)) == ["progress", "durations", "availability"]
