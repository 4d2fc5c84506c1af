"""How long a run will take, said before it begins, and what it needs."""

from __future__ import annotations

import pytest

from fedsim.running import estimate
from fedsim.running.begin import prepare
from fedsim.running.estimate import innermost, jobs_of, outline, scaled, seconds
from fedsim.spec.experiment import load

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.1}
BASE = {
    "data": {"clients": 10},
    "model": "softmax",
    "strategy": {"name": "fedavg", "fraction_train": 0.4, "local": LOCAL},
    "stop": {"rounds": 4},
    "record": {"report": False},
    "compute": {"workers": 1},
}


def made(**more):
    return prepare(load({**BASE, **more}))


@pytest.mark.parametrize(
    ("strategy", "jobs"),
    [
        (BASE["strategy"], 4),
        ({"name": "fedavg"}, 10),
        ({"name": "scaffold", "participants": 3}, 3),
        ({"name": "fedbuff", "concurrency": 4, "buffer": 2}, 2),
        ({"name": "dpsgd"}, 10),
        ({"name": "modest", "sample_size": 5, "aggregators": 2}, 5),
    ],
    ids=lambda one: one["name"] if isinstance(one, dict) else "",
)
def test_how_many_local_updates_a_round_has(strategy, jobs):
    topology = {"dpsgd": "ring", "modest": "complete"}.get(strategy["name"], "star")
    setup = made(strategy=strategy, topology=topology)
    assert jobs_of(setup) == jobs


def test_what_is_measured_grows_with_what_there_is_to_do(monkeypatch):
    """A round costs jobs x (an update + events) + evaluations; others share what is left after two seconds."""
    monkeypatch.setattr(estimate, "_update_s", lambda *_: 0.5)
    monkeypatch.setattr(estimate, "_evaluation_s", lambda *_: 3.0)
    monkeypatch.setattr(estimate, "cores", lambda: 2)
    setup = made(evaluate={"every": 3})
    fixed_s, round_s = seconds(setup)
    assert fixed_s == estimate.START_S
    assert round_s == pytest.approx(4 * 0.5 + 3.0 / 3 + 4 * estimate.EVENT_S)
    shared_s = seconds(made(evaluate={"every": 3}, compute={"workers": 2}))[1]
    # 4 rounds of 3 s: 2 s alone, and the other 10 s by two
    assert shared_s == pytest.approx((2 + 10 / (2 * estimate.GAIN)) / 4 + 4 * estimate.EVENT_S)
    assert seconds(made(record={}))[0] == estimate.START_S + estimate.PAGE_S


def test_steps_that_are_not_done_are_counted():
    done = []

    def do(steps):
        done.append(steps)

    clock = iter([0, 2, 2, 5]).__next__  # one step takes 2 s, four take 3 s
    assert scaled(do, 10, clock, most_s=8.0) == 2 + 9 / 3
    assert done == [1, 1, 4]
    assert scaled(do, 1, iter([0, 2]).__next__) == 2
    assert scaled(do, 5, iter([0, 2, 2, 1]).__next__) == 2  # a clock that stumbles does not make it negative


@pytest.mark.parametrize("engine", ["closed", "lean", "sequential", "stacked"])
def test_an_update_is_measured_with_the_engine_that_is_taken(engine):
    setup = made(compute={"engine": engine, "workers": 2})
    assert innermost(setup.learner.engine).name == engine
    assert 1e-6 < estimate._update_s(setup, innermost(setup.learner.engine), 4) < 1.0


def test_what_is_said():
    [engine, memory, said] = outline(made(strategy={"name": "scaffold", "participants": 3, "local": LOCAL}))
    assert engine.startswith("engine: closed, one process; ")
    # 10 clients keep 650 numbers of 4 bytes
    assert memory.endswith("for the data and one model of each client, and 0.026 MB that clients keep")
    assert said == "time: about 2 s on this machine"
    few = made(
        strategy={"name": "scaffold", "participants": 3, "local": LOCAL}, compute={"state_bytes": 6000}
    )
    assert outline(few)[1].endswith("0.026 MB that clients keep, 0.02 MB of it in files")
    late = outline(made(stop={"rounds": 4, "sim_time_s": 100.0}))[-1]
    assert late == "time: at most about 2 s on this machine"
    open_end = outline(made(stop={"sim_time_s": 100.0}))[-1]
    assert open_end.startswith("time: about ")
    assert open_end.endswith(" for each round on this machine, and 2 s besides")
    assert len(outline(prepare(load(BASE), dry=True))) == 1


def test_a_trial_that_fails_is_no_mistake_of_the_file(monkeypatch):
    def fails(*_):
        raise ValueError("no")

    monkeypatch.setattr(estimate, "_update_s", fails)
    assert outline(made())[-1] == "time: not known, for a trial failed (ValueError)"


def test_a_trial_changes_no_result(tmp_path):
    experiment = load(BASE)
    setup = prepare(experiment)
    before = setup.learner.engine.task.initial.clone()
    seconds(setup)
    assert (setup.learner.engine.task.initial == before).all()
    assert setup.learner.book.made == 0
