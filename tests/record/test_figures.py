"""The figures: what they show is what the tables say, from few nodes to many."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import matplotlib
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import LineCollection, PolyCollection

import fedsim
from fedsim.errors import BadValue
from fedsim.record import Record, figures, read
from fedsim.record.spans import count_open, sessions
from fedsim.record.store import TABLES
from fedsim.record.style import BLUE, MOST_MARKS, ORANGE


def table(name: str, rows: list[tuple]) -> dict[str, np.ndarray]:
    kinds = {"INTEGER": np.int64, "REAL": np.float64}
    columns = TABLES[name].items()
    return {
        key: np.array([row[i] for row in rows], dtype=kinds.get(kind, np.str_))
        for i, (key, kind) in enumerate(columns)
    }


def metric_rows(values: dict[int, float], name: str = "accuracy", node: int = -1) -> list[tuple]:
    return [(round, round * 60_000_000, name, value, node) for round, value in values.items()]


def round_rows(last: int) -> list[tuple]:
    return [(r, r * 60_000_000, r * 1_000_000, r * 900_000, r * 100_000, 0, 0, 0) for r in range(1, last + 1)]


def node_rows(count: int, server_bytes: int | None = None) -> list[tuple]:
    rows = [(n, "client", 1000 + n, 500 + n, *[0] * 8) for n in range(1, count)]
    return [
        (0, "server" if server_bytes else "client", server_bytes or 1, server_bytes or 1, *[0] * 8),
        *rows,
    ]


def edge_rows(graph: nx.Graph) -> list[tuple]:
    return [(a, b, 10.0, None) for a, b in graph.edges]


NO_NODES = table("nodes", [])


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_curves_are_drawn_against_rounds_time_and_bytes():
    figure = figures.curves(
        table("metrics", metric_rows({0: 0.1, 5: 0.5, 10: 0.8})), table("rounds", round_rows(10))
    )
    left, middle, right = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "round",
        "simulated time (min)",
        "sent by all nodes (MB)",
    ]
    assert left.get_ylabel() == "test accuracy"
    for ax, x in ((left, [0, 5, 10]), (middle, [0, 5, 10]), (right, [0, 5, 10])):
        np.testing.assert_allclose(ax.lines[0].get_xdata(), x)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.1, 0.5, 0.8])
    assert left.get_legend() is None


def test_the_target_is_marked_where_it_is_first_reached():
    values = table("metrics", metric_rows({0: 0.1, 3: 0.6, 6: 0.5, 9: 0.9}))
    figure = figures.curves(values, table("rounds", round_rows(10)), target=0.6)
    assert [texts(ax) for ax in figure.axes] == [["0.6 at round 3"], ["0.6 at 3 min"], ["0.6 at 3 MB"]]
    mark = figure.axes[0].lines[-1]
    assert (mark.get_xdata()[0], mark.get_ydata()[0], mark.get_color()) == (3, 0.6, ORANGE)


def test_a_target_out_of_reach_is_only_a_line():
    values = table("metrics", metric_rows({0: 0.1, 3: 0.6}))
    figure = figures.curves(values, table("rounds", round_rows(3)), target=0.7)
    assert texts(figure.axes[0]) == []
    assert figure.axes[0].lines[-1].get_ydata()[0] == 0.7


def test_without_an_accuracy_the_loss_is_drawn_and_has_to_fall():
    values = table("metrics", metric_rows({0: 2.0, 1: 1.0, 2: 0.5}, "loss"))
    figure = figures.curves(values, table("rounds", round_rows(2)), target=1.0)
    assert figure.axes[0].get_ylabel() == "test loss"
    assert texts(figure.axes[0]) == ["1 at round 1"]


def test_the_band_reaches_from_the_worst_to_the_best_node():
    rows = metric_rows({0: 0.2, 1: 0.5})
    rows += metric_rows({0: 0.1, 1: 0.3}, node=0) + metric_rows({0: 0.25, 1: 0.7}, node=1)
    ax = figures.curves(table("metrics", rows), table("rounds", round_rows(1))).axes[0]
    corners = ax.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in np.round(corners, 6)} == {(0, 0.1), (0, 0.25), (1, 0.3), (1, 0.7)}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["worst to best node"]


def test_the_band_also_comes_from_the_measured_extremes():
    rows = metric_rows({0: 0.2, 1: 0.5}) + metric_rows({0: 0.1, 1: 0.4}, "accuracy_min")
    rows += metric_rows({0: 0.3, 1: 0.6}, "accuracy_max")
    ax = figures.curves(table("metrics", rows), table("rounds", round_rows(1))).axes[0]
    assert {tuple(c) for c in np.round(ax.collections[0].get_paths()[0].vertices, 6)} == {
        (0, 0.1),
        (0, 0.3),
        (1, 0.4),
        (1, 0.6),
    }


@pytest.mark.parametrize(
    ("counts", "total", "label"),
    [
        ((3, 3), 0, "mean of 3 nodes"),
        ((3, 3), 3, "mean of 3 nodes"),
        ((2, 2), 5, "mean of 2 of 5 nodes"),
        ((4, 3), 4, "mean of 3 to 4 of 4 nodes"),
    ],
)
def test_the_mean_of_peers_is_named_and_their_average_model_drawn(counts, total, label):
    rows = metric_rows({0: 0.2, 1: 0.5}) + metric_rows({0: 0.1, 1: 0.7}, "accuracy_of_average")
    rows += metric_rows(dict(enumerate(map(float, counts))), "nodes_evaluated")
    nodes = table("nodes", node_rows(total)[:total])
    ax = figures.curves(table("metrics", rows), table("rounds", round_rows(1)), nodes=nodes).axes[0]
    assert [text.get_text() for text in ax.get_legend().get_texts()][-2:] == [label, "average of all models"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.2, 0.5], [0.1, 0.7]]


def test_every_loss_has_a_line_and_a_name():
    rows = metric_rows({0: 2.0, 1: 1.0}, "loss") + metric_rows({1: 0.5}, "train_loss") + metric_rows({0: 0.1})
    ax = figures.loss(table("metrics", rows), table("rounds", [])).axes[0]
    assert [line.get_label() for line in ax.lines] == ["loss", "train loss"]
    assert ax.get_yscale() == "linear"
    steep = metric_rows({r: 10.0**-r for r in range(6)}, "loss")
    assert figures.loss(table("metrics", steep), table("rounds", [])).axes[0].get_yscale() == "log"
    extremes = rows + metric_rows({0: 9.0}, "loss_max") + metric_rows({0: 1.0}, "loss_min")
    assert len(figures.loss(table("metrics", extremes), table("rounds", [])).axes[0].lines) == 2
    negative = metric_rows({0: 1000.0, 1: 1.0, 2: -1.0, 3: 1.0}, "loss")
    assert figures.loss(table("metrics", negative), table("rounds", [])).axes[0].get_yscale() == "linear"


def test_progress_needs_no_training():
    left, right = figures.progress(table("rounds", round_rows(4))).axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), [(1, 1), (2, 2), (3, 3), (4, 4)])
    assert (left.get_xlabel(), right.get_ylabel()) == ("simulated time (min)", "sent by all nodes (MB)")


def fault_rows(*seconds: int, kind: str = "crash") -> list[tuple]:
    return [(second * 1_000_000, kind, 1, -1, 0, -1) for second in seconds]


def lines_at(ax, kind: str) -> list[float]:
    (marks,) = [c for c in ax.collections if c.get_label() == kind]
    return [segment[0, 0] for segment in marks.get_segments()]


def test_faults_are_marked_against_simulated_time_and_named_once():
    faults = table("events", fault_rows(60, 150, 150) + fault_rows(300, kind="partition"))
    figure = figures.curves(
        table("metrics", metric_rows({0: 0.1, 10: 0.8})), table("rounds", round_rows(10)), faults=faults
    )
    left, middle, right = figure.axes
    assert texts(middle) == ["crash", "partition"]
    assert lines_at(middle, "crash") == [1.0, 2.5]
    assert lines_at(middle, "partition") == [5.0]
    assert texts(left) == texts(right) == []
    for ax in figures.progress(table("rounds", round_rows(10)), faults).axes:
        assert texts(ax) == ["crash", "partition"]
        assert lines_at(ax, "crash") == [1.0, 2.5]
    presence = table("presence", [(0, 1, 1), (0, 2, 0)])
    above, below = figures.availability(presence, NO_NODES, 600_000_000, faults).axes
    assert (texts(above), texts(below)) == (["crash", "partition"], [])
    assert lines_at(above, "crash") == lines_at(below, "crash") == [1.0, 2.5]


def test_faults_that_happen_all_the_time_are_not_marked():
    faults = table("events", fault_rows(*range(MOST_MARKS + 1), kind="drop") + fault_rows(60, kind="link_up"))
    for ax in figures.progress(table("rounds", round_rows(10)), faults).axes:
        assert texts(ax) == ["link up"]
        assert len(ax.collections) == 1


def test_a_run_without_faults_has_no_marks():
    none = table("events", [])
    for ax in figures.progress(table("rounds", round_rows(3)), none).axes:
        assert (texts(ax), len(ax.collections)) == ([], 0)


def test_durations_are_a_staircase_with_its_percentiles():
    ends = np.cumsum([0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 50])
    rows = [(r, int(end) * 1_000_000, 0, 0, 0, 0, 0, 0) for r, end in enumerate(ends)]
    over, ax = figures.durations(table("rounds", rows)).axes
    np.testing.assert_allclose(
        over.lines[0].get_xydata()[[0, 1, 9]], [(2 / 60, 2), (6 / 60, 4), (140 / 60, 50)]
    )
    assert over.get_xlabel() == "simulated time (min)"
    # Ten rounds of 2, 4 .. 18 and 50 s: the nearest ranks of 50, 90 and 99 % are the 5th, 9th and 10th.
    assert texts(ax) == ["p50: 10 s", "p90: 18 s", "p99: 50 s"]
    stairs = ax.lines[0].get_xydata()
    np.testing.assert_allclose(stairs[:3], [(0, 0), (2, 10), (4, 20)])
    np.testing.assert_allclose(stairs[-2:], [(50, 100), (54, 100)])
    assert ax.get_xlabel() == "duration of a round (s)"


def test_durations_of_minutes_are_drawn_in_minutes():
    _, ax = figures.durations(table("rounds", [(1, 180_000_000, 0, 0, 0, 0, 0, 0)])).axes
    assert ax.get_xlabel() == "duration of a round (min)"
    assert texts(ax)[0] == "p50: 3 min"
    assert ax.lines[0].get_xydata()[1].tolist() == [3, 100]


def test_availability_shows_each_session_and_how_many_are_online():
    second = 1_000_000
    presence = [(0, 1, 1), (0, 2, 0), (4 * second, 2, 1), (6 * second, 1, 0), (8 * second, 2, 0)]
    nodes = table("nodes", [(1, "server", *[0] * 10), (2, "client", *[0] * 10)])
    above, below = figures.availability(table("presence", presence), nodes, 10 * second).axes
    bars = [c for c in below.collections if isinstance(c, PolyCollection)]
    spans = [[(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in c.get_paths()] for c in bars]
    assert spans == [[(0.0, 6.0)], [(4.0, 8.0)]]
    assert [matplotlib.colors.to_hex(c.get_facecolor()[0]) for c in bars] == [ORANGE.lower(), BLUE.lower()]
    assert above.lines[0].get_xydata().tolist() == [[0, 1], [4, 2], [6, 1], [8, 0], [10, 0]]
    assert below.get_xlabel() == "simulated time (s)"
    assert below.get_xlim() == (0, 10)


def test_a_session_that_the_end_cuts_off_stays_open():
    above, _ = figures.availability(table("presence", [(0, 1, 1), (0, 2, 1)]), NO_NODES, 5_000_000).axes
    assert above.lines[0].get_xydata().tolist() == [[0, 2], [5, 2]]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_the_number_online_is_what_a_simulation_by_the_second_counts(rows):
    rows = sorted(rows, key=lambda row: row[0])
    presence, end = table("presence", rows), 21
    spans = [sessions(presence, node, end) for node in np.unique(presence["node"])]
    at, online = count_open(np.concatenate(spans), float(end))
    state: dict[int, int] = {}
    for second in range(end):
        state.update({node: up for time, node, up in rows if time == second})
        assert online[np.searchsorted(at, second, side="right") - 1] == sum(state.values())


def test_traffic_puts_the_busiest_node_first_and_marks_the_server():
    top, bottom = figures.traffic(table("nodes", node_rows(5, server_bytes=4000))).axes
    heights = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in top.patches}
    assert [round(heights[x], 3) for x in sorted(heights)] == [4.0, 1.004, 1.003, 1.002, 1.001]
    assert top.get_ylabel() == "sent (kB)"
    assert [label.get_text() for label in bottom.get_xticklabels()] == ["0", "4", "3", "2", "1"]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["client", "server"]
    assert top.get_yscale() == "linear"


def test_traffic_is_logarithmic_when_one_node_carries_far_more_than_the_others():
    top, bottom = figures.traffic(table("nodes", node_rows(40, server_bytes=10_000_000))).axes
    assert (top.get_yscale(), bottom.get_yscale()) == ("log", "log")
    assert len(top.patches) == len(bottom.patches) == 0
    clients, server = top.lines
    np.testing.assert_array_equal(clients.get_xydata(), [(i + 1, 1039 - i) for i in range(39)])
    assert (server.get_xydata().tolist(), server.get_color()) == ([[0, 10_000_000]], ORANGE)
    assert {line.get_linestyle() for line in top.lines} == {"None"}


def test_nothing_sent_has_no_place_on_a_logarithmic_axis():
    rows = [(3, "client", *[0] * 10), *node_rows(3), (4, "client", 10**6, 10**6, *[0] * 8)]
    top, _ = figures.traffic(table("nodes", rows)).axes
    assert top.get_yscale() == "log"
    assert top.lines[0].get_ydata().tolist() == [10**6, 1002, 1001, 1]


def test_traffic_of_many_nodes_names_none():
    _, bottom = figures.traffic(table("nodes", node_rows(200))).axes
    assert bottom.get_xlabel() == "200 nodes, the busiest first"
    assert [label.get_text() for label in bottom.get_xticklabels()] == []


def places(figure) -> np.ndarray:
    return next(c for c in figure.axes[0].collections if not isinstance(c, LineCollection)).get_offsets()


def test_a_star_has_its_server_in_the_middle():
    nodes = table("nodes", node_rows(9, server_bytes=1))
    figure = figures.topology(table("edges", edge_rows(nx.star_graph(8))), nodes)
    at = places(figure)
    np.testing.assert_allclose(at[0], at[1:].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(at[1:] - at[0], axis=1), np.linalg.norm(at[1] - at[0]), rtol=1e-6
    )
    dots = next(c for c in figure.axes[0].collections if not isinstance(c, LineCollection))
    assert matplotlib.colors.to_hex(dots.get_facecolor()[0]) == ORANGE.lower()
    assert figure.axes[0].get_title(loc="left") == "9 nodes, 8 links, 10 ms"


def test_a_ring_is_a_circle_in_the_order_of_its_nodes():
    at = places(figures.topology(table("edges", edge_rows(nx.cycle_graph(20))), NO_NODES))
    np.testing.assert_allclose(np.linalg.norm(at, axis=1), 1.0, atol=1e-6)
    steps = np.linalg.norm(np.roll(at, -1, axis=0) - at, axis=1)
    np.testing.assert_allclose(steps, 2 * np.sin(np.pi / 20), atol=1e-6)


@pytest.mark.parametrize("count", [4, 30, 150])
def test_a_topology_is_always_drawn_in_the_same_way(count):
    edges = table("edges", edge_rows(nx.random_regular_graph(3, count, seed=1)))
    first, second = figures.topology(edges, NO_NODES), figures.topology(edges, NO_NODES)
    np.testing.assert_array_equal(places(first), places(second))
    assert len(places(first)) == count


def test_edges_in_both_directions_are_one_link():
    edges = table("edges", [(0, 1, 5.0, None), (1, 0, 20.0, 8.0), (1, 2, 5.0, None)])
    assert figures.topology(edges, NO_NODES).axes[0].get_title(loc="left") == "3 nodes, 2 links, 5 to 20 ms"


def test_a_disconnected_graph_is_drawn_too():
    graph = nx.disjoint_union(nx.random_regular_graph(3, 20, seed=1), nx.random_regular_graph(3, 20, seed=2))
    assert len(places(figures.topology(table("edges", edge_rows(graph)), NO_NODES))) == 40


def test_of_a_graph_too_large_to_see_the_degrees_are_shown():
    ax = figures.topology(table("edges", edge_rows(nx.star_graph(400))), NO_NODES).axes[0]
    assert {(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in ax.patches} == {
        (1, 400),
        (400, 1),
    }
    assert ax.get_xlabel() == "links of a node"


def test_labels_of_few_clients_are_stacked_bars():
    counts = table("labels", [(1, 0, 10), (1, 7, 30), (2, 7, 5)])
    ax = figures.labels(counts).axes[0]
    bars = [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 0, 10), (1, 0, 0), (0, 10, 30), (1, 0, 5)]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "7"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "2"]


@pytest.mark.parametrize(("clients", "kinds"), [(31, 2), (3, 11)])
def test_labels_of_many_clients_or_many_labels_are_a_heat_map(clients, kinds):
    rows = [(client, kind, client * 100 + kind) for client in range(clients) for kind in range(kinds)]
    ax = figures.labels(table("labels", rows)).axes[0]
    shown = ax.images[0].get_array()
    assert shown.shape == (kinds, clients)
    assert shown[1, 2] == 201


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [
        (figures.curves, (table("metrics", []), table("rounds", []))),
        (figures.loss, (table("metrics", []), table("rounds", []))),
        (figures.progress, (table("rounds", []),)),
        (figures.durations, (table("rounds", [(0, 0, 0, 0, 0, 0, 0, 0)]),)),
        (figures.availability, (table("presence", []), NO_NODES, 1)),
        (figures.traffic, (NO_NODES,)),
        (figures.topology, (table("edges", []), NO_NODES)),
        (figures.labels, (table("labels", []),)),
    ],
)
def test_a_figure_of_nothing_is_refused(draw, arguments):
    with pytest.raises(BadValue, match="no"):
        draw(*arguments)


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    figures.progress(table("rounds", round_rows(3)))
    assert dict(matplotlib.rcParams) == before


def test_a_run_is_drawn_completely_and_repeatably(tmp_path, fake_run):
    run = fake_run(tmp_path / "run", clients=6, rounds=5)
    drawn = figures.draw_all(run)
    assert list(drawn) == [
        *("curves", "loss", "durations", "topology", "availability"),
        *("round", "node", "utilisation", "traffic", "hours", "labels"),
    ]
    first = {}
    for name, png in drawn.items():
        assert png == run / "figures" / f"{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
        first[name] = png.with_suffix(".svg").read_bytes()
        assert ElementTree.fromstring(first[name]).tag.endswith("svg")
    again = figures.draw_all(run)
    assert {name: png.with_suffix(".svg").read_bytes() for name, png in again.items()} == first


def test_a_run_without_training_shows_its_progress(tmp_path, fake_run):
    run = fake_run(tmp_path, clients=4, rounds=3, training=False, ended=False, events=False)
    assert list(figures.draw_all(run)) == ["progress", "durations", "topology", "availability", "labels"]


def test_a_run_that_has_just_begun_has_no_figures(tmp_path):
    with Record(tmp_path) as record:
        record.presence(0, 0, True)
    assert figures.draw_all(tmp_path) == {}
    assert not (tmp_path / "figures").exists()


def test_the_initial_model_alone_can_be_drawn(tmp_path):
    with Record(tmp_path) as record:
        record.metric(0, 0, "accuracy", 0.1)
        record.presence(0, 0, False)
    assert list(figures.draw_all(tmp_path)) == ["curves", "availability"]
    assert read(tmp_path, "metrics")["round"].tolist() == [0]


def test_hours_stack_up_to_the_time_online_the_busiest_node_first():
    busy, idle, offline, wasted = [30, 60, 10], [70, 20, 40], [0, 20, 50], [0, 15, 10]
    spent = zip(busy, idle, offline, wasted)
    rows = [(n, "client", *[0] * 5, *times, None) for n, times in enumerate(spent)]
    ax = figures.hours(table("nodes", [*rows, (3, "server", *[0] * 5, 0, 100, 0, 0, None)])).axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert heights == {"computing": [45, 30, 0], "wasted": [15, 0, 10], "idle": [20, 70, 40]}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "0", "2"]


def test_hours_of_nobody_are_refused():
    with pytest.raises(BadValue, match="there is no node to draw"):
        figures.hours(table("nodes", [(0, "server", *[0] * 10)]))


@pytest.mark.parametrize(("share", "on"), [(0.25, "validation"), (0.0, "test")])
def test_the_axis_says_on_what_models_were_evaluated(share, on, tmp_path):
    experiment = {
        "data": {"name": "digits", "clients": 3, "val_share": share},
        "model": "softmax",
        "strategy": {"name": "fedprox", "participants": 2, "mu": 0.0, "local": {"steps": 1}},
        "stop": {"rounds": 2},
        "record": {"report": False},
    }
    result = fedsim.run(experiment, out=tmp_path)
    drawn = figures.draw_all(result.path)
    assert f"<!-- {on} accuracy -->" in drawn["curves"].with_suffix(".svg").read_text()
    page = fedsim.report(result.path).read_text()
    assert ("final validation accuracy" in page) is (share > 0)
    assert ("looked at when the run was over" in page) is (share > 0)
    if share:
        assert f"{result.summary['test_accuracy']:.2%}" in page
