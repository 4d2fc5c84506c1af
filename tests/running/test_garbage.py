"""How often Python looks for garbage, and what finished runs leave behind."""

import gc
import subprocess
import sys

import pytest

import fedsim
from fedsim.learn.learner import Learner
from fedsim.running import garbage

FILE = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "fedprox", "mu": 0.0, "participants": 2, "local": {"batch_size": 100}},
    "stop": {"rounds": 1},
    "record": {"report": False},
}


@pytest.fixture
def _uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def held():
    return sum(type(one) is Learner for one in gc.get_objects())


@pytest.mark.usefixtures("_uncollected")
def test_runs_that_hold_much_are_freed(monkeypatch, tmp_path):
    monkeypatch.setattr(garbage, "_left", 0)
    before = held()
    for _ in range(3):
        fedsim.run(FILE, out=tmp_path)
    piled = held()
    assert piled >= before + 3  # they are small, and Python was told to leave them
    monkeypatch.setattr(garbage, "MUCH", 0)
    fedsim.run(FILE, out=tmp_path)
    assert held() < piled


def test_a_run_knows_what_it_holds():
    from fedsim.running.build import prepare
    from fedsim.spec.experiment import load

    learner = prepare(load(FILE)).learner
    samples, test = sum(learner.sizes), len(learner.y_test)
    assert learner.nbytes == (samples + test) * (64 * 4 + 8) + 3 * 650 * 4


def test_what_is_left_adds_up(monkeypatch):
    monkeypatch.setattr(garbage, "_left", 0)
    found = []
    monkeypatch.setattr(garbage.gc, "collect", lambda: found.append(garbage._left))
    for _ in range(3):
        garbage.leave(garbage.MUCH // 2)
    assert found == [garbage.MUCH // 2 * 3]
    assert garbage._left == garbage.MUCH // 2


def test_the_collector_is_as_before_after_a_run():
    before = gc.get_threshold()
    with garbage.settled():
        assert gc.get_threshold() == garbage.THRESHOLDS
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_a_command_that_is_over_looks_for_no_garbage_and_still_does_what_was_to_be_done_at_its_end():
    code = (
        "import atexit, gc, sys\n"
        "from fedsim.cli.app import main\n"
        "before = gc.get_threshold()\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 1000, gc.get_threshold() == before))\n"
        "sys.argv = ['fedsim', '--version']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["False True True"]
