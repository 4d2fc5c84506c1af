"""What FedAMD's theory is about, measured: against gradients by hand, and without any change to the runs."""

from __future__ import annotations

import pytest
import torch

import fedsim
from fedsim.errors import ConfigError
from strategies.fedamd import probed

BASE = {
    "name": "probed",
    "data": {"name": "quadratic", "clients": 5, "dimension": 3, "samples": 6},
    "model": "linear",
    "compute": {"dtype": "float64"},
    "strategy": {"participants": 2, "local": {"steps": 3, "batch_size": 2, "lr": 0.05}},
    "stop": {"rounds": 8},
    "record": {"report": False, "events": False},
}
PLAIN = {
    "ProbedFedAMD": {"name": "fedamd", "period": 2},
    "ProbedFedAvg": {"name": "strategies.server.fedavg:FedAvg"},
    "ProbedSCAFFOLD": {"name": "scaffold"},
}


def run(out, strategy, **more):
    """Run the base with a strategy, and return the result and its metrics [name, round]."""
    done = fedsim.run({**BASE, "strategy": {**BASE["strategy"], **strategy}, **more}, out=out)
    table = fedsim.results(done.path)
    return done, table[table.node < 0].set_index(["metric", "round"]).value


def probing(name, **more):
    return {**PLAIN[name], **more, "name": f"strategies.fedamd.probed:{name}"}


@pytest.mark.parametrize("name", PLAIN)
def test_a_probe_changes_nothing_but_what_it_costs(name, tmp_path):
    probe, told = run(tmp_path, probing(name))
    plain, untold = run(tmp_path, PLAIN[name])
    assert probe.summary["weights_hash"] == plain.summary["weights_hash"]
    # In rounds 4 and 8, five clients send the gradients of their six samples.
    assert probe.summary["work_samples"] - plain.summary["work_samples"] == 2 * 5 * 6
    new = {"drift", "client_error", "round_error"} | ({"memory_error"} if name != "ProbedFedAvg" else set())
    assert {metric for metric, _ in told.index} - {metric for metric, _ in untold.index} == new
    assert [round for metric, round in told.index if metric == "drift"] == [4, 8]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"local": {"epochs": 1, "lr": 0.05}}, r"local\.steps: .*the probe counts local steps, not epochs"),
        ({"local": {"steps": 1, "lr": [0.05, 0.1]}}, r"local\.lr: .*in steps of one size"),
        (
            {"local": {"steps": 1, "schedule": {"name": "list", "factors": [0.5]}}},
            r"local\.schedule: list: the",
        ),
        ({"halve_lr_at": [3]}, r"halve_lr_at: \[3\]: the probe measures in steps of one size"),
    ],
)
def test_steps_that_differ_are_refused(given, words):
    """Measured in the wrong size, a step that is the gradient itself would look like half of it."""
    name = "ProbedFedAMD" if "halve_lr_at" in given else "ProbedFedAvg"
    strategy = {**BASE["strategy"], **probing(name), **given}
    with pytest.raises(ConfigError, match=rf"^strategy\.{words}"):
        fedsim.check({**BASE, "data": {**BASE["data"], "clients": 2}, "strategy": strategy})


def test_a_step_on_all_samples_of_everybody_is_the_true_gradient(tmp_path):
    """With K = 1, whole batches and all clients, FedAvg's round is one step of gradient descent."""
    local = {"steps": 1, "batch_size": 6, "lr": 0.05}
    _, told = run(tmp_path, {**probing("ProbedFedAvg"), "participants": 5, "local": local})
    for round in (4, 8):
        assert told["round_error", round] == pytest.approx(0, abs=1e-9)
        assert told["client_error", round] > 0.01  # each client follows its own


def test_fresh_caches_are_the_true_gradient_and_one_step_follows_them(tmp_path):
    """All are anchors in odd rounds, on all their samples: what miners get is ∇F(x), and their first step is that."""
    local = {"steps": 1, "batch_size": 2, "lr": 0.05}
    _, told = run(tmp_path, {**probing("ProbedFedAMD"), "participants": 5, "local": local})
    for round in (4, 8):
        for metric in ("memory_error", "client_error", "round_error"):
            assert told[metric, round] == pytest.approx(0, abs=1e-9)


def test_stale_caches_are_not(tmp_path):
    _, told = run(tmp_path, probing("ProbedFedAMD"))
    assert told["memory_error", 8] > 0.001


def test_drift_is_the_distance_that_a_miner_went(tmp_path):
    """One step of FedAMD goes by lr ‖ḡ‖, and ḡ is as far from ∇F(x) as the error says, which bounds its length."""
    local = {"steps": 1, "batch_size": 2, "lr": 0.05}
    done, told = run(tmp_path, {**probing("ProbedFedAMD"), "local": local}, evaluate={"every": 1})
    # The model moves by the mean of two equal steps, from what round 7 left, which was round 6's.
    assert told["client_error", 8] == pytest.approx(told["round_error", 8], rel=1e-9)
    assert told["client_error", 8] == pytest.approx(told["memory_error", 8], rel=1e-9)
    before, after = told["distance", 7], told["distance", 8]
    assert abs(before - after) <= told["drift", 8] * (1 + 1e-9)
    assert done.summary["rounds"] == 8


def test_where_only_time_is_kept_nothing_is_probed(tmp_path):
    experiment = {**BASE, "strategy": {**BASE["strategy"], **probing("ProbedFedAMD")}}
    done = fedsim.run(experiment, out=tmp_path, timing_only=True)
    assert "drift" not in done.summary["metrics"]
    assert done.summary["rounds"] == 8


@pytest.mark.parametrize(("estimate", "wanted"), [([3.0, 4.0], 0.0), ([0.0, 0.0], 1.0), ([-3.0, -4.0], 2.0)])
def test_an_error_is_relative_to_the_true_gradient(estimate, wanted):
    assert probed.error(torch.tensor(estimate), torch.tensor([3.0, 4.0])) == pytest.approx(wanted)
