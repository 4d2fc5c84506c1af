"""How many nodes the views of MoDeST count as active, as it is recorded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim.record.store import read
from strategies.modest import modest as protocol
from strategies.modest.registry import View, view_sizes

NAMES = ("view_mean", "view_min", "view_max", "views_read")


def measured(folder):
    """Return the measurements of the whole system by name, as pairs of round and value."""
    table = read(folder, "metrics", node=-1)
    rows = list(zip(table["name"].tolist(), table["round"].tolist(), table["value"].tolist(), strict=True))
    return {name: [(round, value) for one, round, value in rows if one == name] for name in NAMES}


def done(run, tmp_path):
    """Run to the end and return what was measured; the fixture's first record is in folder 0."""
    run.run()
    run.observer.record.flush()
    return measured(tmp_path / "0")


def experiment(nodes=12, **blocks):
    return {
        "data": {"clients": nodes},
        "model": "softmax",
        "strategy": {"name": "modest", "sample_size": 4, "local": {"steps": 1}},
        "topology": "empty",
        "network": {"overlay": True, "latency_ms": 10},
        "stop": {"rounds": 6},
        **blocks,
    }


@settings(max_examples=50, deadline=None)
@given(
    told=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 20)), max_size=12),
    gone=st.sets(st.integers(0, 7)),
    least=st.integers(-1, 20),
)
def test_the_count_is_the_number_of_candidates(told, gone, least):
    view = View(8, members=[0, 1, 2, 3])
    for node, round in told:
        view.touch(node, round)
    for node in gone:
        view.change(node, 1, joined=False)
    assert view.count(least) == len(view.candidates(least))
    assert view.count(least) == sum(view.is_candidate(node, least) for node in range(8))


def test_no_views_have_no_sizes():
    assert view_sizes([]) == {}


def test_in_calm_everybody_is_in_every_view(modest, tmp_path):
    found = done(modest(nodes=12, rounds=4), tmp_path)
    for name in NAMES:
        assert found[name] == [(round, 12.0) for round in (1, 2, 3, 4)]


def test_only_rounds_that_are_evaluated_are_measured(modest, tmp_path):
    found = done(modest(rounds=6, evaluate={"every": 3}), tmp_path)
    assert [round for round, _ in found["view_mean"]] == [3, 6]


def test_the_last_measurement_is_what_the_views_say(modest, tmp_path):
    run = modest(nodes=14, rounds=9, params={"sample_size": 3, "window": 3})
    found = done(run, tmp_path)
    members = [run.member(node) for node in range(14)]
    counts = [sum(m.view.is_candidate(j, m.round + 1 - 3) for j in range(14)) for m in members]
    assert [found[name][-1][1] for name in NAMES] == [np.mean(counts), min(counts), max(counts), 14.0]
    assert min(counts) < max(counts)  # the window is small, and nodes know different things


def test_nodes_that_crash_are_not_asked_and_are_forgotten(modest, tmp_path):
    faults = [{"name": "crash", "at_s": 2.5, "nodes": [3, 7, 9]}]
    params = {"sample_size": 4, "success_fraction": 0.5, "ping_timeout_s": 0.5, "window": 25}
    found = done(modest(rounds=60, params=params, faults=faults), tmp_path)
    assert [found[name][0] for name in NAMES] == [(1, 12.0)] * 4
    assert [found[name][-1] for name in ("view_max", "views_read")] == [(60, 9.0)] * 2
    before = [value for (_, value), (_, read) in zip(found["view_max"], found["views_read"]) if read == 9.0]
    assert before[0] == 12.0  # nobody can know it yet


def test_nodes_that_join_come_into_the_views(modest, tmp_path):
    churn = {"name": "arrive", "count": 3, "at_s": 5.0}
    params = {"window": 1000, "success_fraction": 0.5, "aggregators": 2}
    found = done(modest(nodes=12, rounds=60, params=params, churn=churn), tmp_path)
    assert [found[name][0] for name in NAMES] == [(1, 9.0)] * 4
    assert [found[name][-1] for name in NAMES] == [(60, 12.0)] * 4
    grown = [value for _, value in found["view_mean"]]
    assert grown == sorted(grown)


def test_of_many_nodes_so_many_are_drawn(modest, tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "VIEWS", 5)
    found = done(modest(nodes=20, rounds=5), tmp_path)
    assert {value for _, value in found["views_read"]} == {5.0}


def test_nobody_online_gives_no_number(modest, tmp_path):
    run = modest(nodes=6, rounds=3)
    run.run()
    for node in run.world.members:
        node.set_online(False)
    assert run.strategy.measure(4) == {}


@pytest.mark.parametrize("blocks", [{}, {"churn": {"name": "exponential", "online_s": 6, "offline_s": 2}}])
def test_time_alone_gives_the_same_views(blocks, tmp_path):
    given = experiment(stop={"sim_time_s": 30.0}, record={"report": False}, **blocks)
    runs = [fedsim.run(given, out=tmp_path, timing_only=dry) for dry in (False, True)]
    full, dry = (measured(run.path) for run in runs)
    assert full == dry
    assert len(full["view_mean"]) > 3
    assert runs[0].summary["event_hash"] == runs[1].summary["event_hash"]


def test_measuring_changes_no_event(tmp_path):
    churn = {"name": "exponential", "online_s": 6, "offline_s": 2}
    often, never = (
        fedsim.run(
            experiment(churn=churn, evaluate={"every": every}, record={"report": False}),
            out=tmp_path,
            timing_only=True,
        )
        for every in (1, 10**6)
    )
    assert measured(often.path)["view_mean"]
    assert not measured(never.path)["view_mean"]
    assert often.summary["event_hash"] == never.summary["event_hash"]


def test_the_report_of_a_run_without_training_shows_the_views(tmp_path):
    result = fedsim.run(experiment(), out=tmp_path, timing_only=True)
    page = (result.path / "report.html").read_text(encoding="utf-8")
    assert "Who is in the views" in page
    assert "Rounds and bytes over time" in page
    assert (result.path / "figures" / "views.svg").exists()
