"""What is written of a run is the same for a method of an experiment and for a user's app."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import fedsim
from fedsim.errors import RunError
from fedsim.flower import run_app
from fedsim.record.store import facts, read
from fedsim.running.ending import Ending
from fedsim.running.watched import ENDLESS, Run
from fedsim.spec.experiment import load

APP = Path(__file__).parents[1] / "flower" / "apps" / "plain"
WORLD = {"network.latency_ms": 5, "record.report": False}
GIVEN = {
    "data": {"clients": 3},
    "model": "softmax",
    "strategy": {"name": "fedavg", "participants": 3, "local": {"steps": 1, "batch_size": 8, "lr": 0.1}},
    "stop": {"rounds": 2},
    "record": {"report": False},
}


class World:
    """Nothing but the clock that a run reads."""

    class clock:
        now, now_s = 5_000_000, 5.0

    @staticmethod
    def totals():
        return {"bytes_up": 7, "bytes_down": 3}


def made(progress=None, **stop):
    return Run(load({**GIVEN, "stop": stop}), World(), None, progress)  # type: ignore[arg-type]


def test_an_app_and_an_experiment_have_the_same_keys_in_their_summaries(tmp_path):
    folder = shutil.copytree(APP, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    ran = [
        fedsim.run(GIVEN, out=tmp_path / "runs"),
        run_app(folder, nodes=3, overrides=WORLD, out=tmp_path / "runs"),
    ]
    native, app = (set(json.loads((one.path / "summary.json").read_text())) for one in ran)
    assert native == app
    assert {"engine", "metrics", "error_replies", "dropped_updates", "run_hash"} <= app
    for one in ran:
        found = facts(one.path)
        assert found["sim_time_us"] == round(one.summary["sim_time_s"] * 1e6)
        assert len(read(one.path, "nodes")["node"]) == 4  # three clients and the server
        assert read(one.path, "rounds")["round"][-1] == one.summary["rounds"]
    assert facts(ran[1].path)["app"] == "plain"
    assert "app" not in facts(ran[0].path)


def test_the_latest_scores_are_the_metrics_of_an_experiment(tmp_path):
    found = fedsim.run(GIVEN, out=tmp_path).summary
    assert found["metrics"]["accuracy"] == found["accuracy"]
    dry = fedsim.run(GIVEN, out=tmp_path, timing_only=True).summary
    assert (dry["metrics"], dry["accuracy"], dry["best_accuracy"]) == ({}, None, None)


def test_the_best_accuracy_is_the_highest_finite_one_and_the_target_counts_when_it_is_reached():
    run = made(rounds=9, target={"accuracy": 0.5})
    for accuracy, time_us in ((0.25, 1_000_000), (float("nan"), 2_000_000), (None, 3_000_000)):
        run.judge(accuracy, time_us)
        assert (run.best_accuracy, run.time_to_target_s) == (0.25, None)
    run.judge(0.5, 4_000_000)
    assert (run.best_accuracy, run.time_to_target_s) == (0.5, 4.0)
    run.judge(0.125, 5_000_000)
    assert (run.best_accuracy, run.time_to_target_s) == (0.5, 4.0)


@pytest.mark.parametrize(("rounds", "said"), [(4, 4), (ENDLESS, None)])
def test_progress_tells_how_many_rounds_there_will_be_where_that_is_known(rounds, said):
    told = []
    run = made(told.append, rounds=rounds)
    run.scores = {"accuracy": 0.5}
    run.tell(6)
    [one] = told
    assert (one.round, one.rounds, one.sim_time_s, one.accuracy, one.loss) == (0, said, 5.0, 0.5, None)
    assert (one.bytes_up, one.bytes_down, one.clients) == (7, 3, 6)


@pytest.mark.parametrize("noted", [False, True])
def test_what_ends_a_run_says_where_it_is_and_what_could_not_be_written(tmp_path, noted):
    ending = Ending(tmp_path, load(GIVEN), 0.0)

    def end() -> None:
        with ending.early(noted):
            with ending.tried("weights"):
                raise OSError(28, "No space left on device")
            raise RunError("broken")

    with pytest.raises(RunError) as caught:
        end()
    assert caught.value.run_path == tmp_path
    said = [f"what was recorded is kept in {tmp_path}"] if noted else []
    assert caught.value.__notes__ == ["weights cannot be written (No space left on device)", *said]
