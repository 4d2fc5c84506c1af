"""What every strategy must do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance_rows import ROWS, Row, calm, experiment, flat
from torch import nn

import fedsim
from fedsim.config import load
from fedsim.learn.build import build
from fedsim.parts import names

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def run(given: dict[str, Any], out: Path, **more: Any) -> fedsim.Result:
    return fedsim.run(given, out=out, **more)


def test_every_strategy_has_a_row() -> None:
    assert {row.name for row in ROWS} == set(names("strategies"))


@every
def test_same_experiment_same_run(row: Row, tmp_path: Path) -> None:
    one, two = run(experiment(row), tmp_path), run(experiment(row), tmp_path)
    assert one.path != two.path
    changing = {"wall_time_s"}
    assert {k: v for k, v in one.summary.items() if k not in changing} == {
        k: v for k, v in two.summary.items() if k not in changing
    }


@every
def test_another_seed_another_run(row: Row, tmp_path: Path) -> None:
    one, two = run(experiment(row), tmp_path), run(experiment(row, seed=6), tmp_path)
    assert one.summary["event_hash"] != two.summary["event_hash"]
    assert one.summary["weights_hash"] != two.summary["weights_hash"]


@every
def test_timing_does_not_need_training(row: Row, tmp_path: Path) -> None:
    full, dry = run(experiment(row), tmp_path), run(experiment(row), tmp_path, timing_only=True)
    for key in (
        "event_hash",
        "rounds",
        "sim_time_s",
        "bytes_up",
        "bytes_lost",
        "work_samples",
        "wasted_samples",
    ):
        assert full.summary[key] == dry.summary[key], key
    assert dry.summary["accuracy"] is None
    assert dry.summary["weights_hash"] is None


@every
def test_engines_agree(row: Row, tmp_path: Path) -> None:
    slow = run(experiment(row, compute__engine="sequential"), tmp_path)
    fast = run(experiment(row, compute__engine="stacked"), tmp_path)
    assert slow.summary["event_hash"] == fast.summary["event_hash"]
    assert np.abs(flat(slow.weights()) - flat(fast.weights())).max() < 1e-10


@every
def test_the_number_of_slots_does_not_matter_to_the_events(row: Row, tmp_path: Path) -> None:
    few, many = (run(experiment(row, compute__slots=n, compute__engine="stacked"), tmp_path) for n in (1, 32))
    assert few.summary["event_hash"] == many.summary["event_hash"]
    assert np.abs(flat(few.weights()) - flat(many.weights())).max() < 1e-10


@every
def test_bytes_are_conserved_when_clients_fail(row: Row, tmp_path: Path) -> None:
    faults = [{"name": "crash", "at_s": 3.0, "count": 2}]
    network = {"latency_ms": 20, "up_mbps": 0.02, "down_mbps": 0.05, "detect_s": 1}
    churn = {"name": "exponential", "online_s": 4, "offline_s": 2}
    result = run(experiment(row, faults=faults, network=network, churn=churn), tmp_path)
    total = result.summary
    assert total["rounds"] == 4
    assert total["bytes_lost"] > 0
    in_flight = total["bytes_up"] - total["bytes_down"] - total["bytes_lost"]
    assert in_flight == 0
    assert 0 < total["wasted_samples"] < total["work_samples"]


@every
def test_one_client_is_centralised_training(row: Row, tmp_path: Path) -> None:
    local = {"steps": 3, "batch_size": None, "lr": 0.2}
    given = calm(row, 1, local)
    result = run(given, tmp_path)
    found = flat(result.weights())
    wanted = gradient_descent(given, sum(row.steps_per_round), 0.2)
    assert np.abs(found - wanted).max() < 1e-10


def gradient_descent(given: dict[str, Any], steps: int, lr: float) -> np.ndarray:
    """Train the same model on all data with plain PyTorch."""
    learner, dataset, _ = build(load(given))
    module = copy.deepcopy(learner.engine.task.module)
    optimiser = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module(dataset.x.double()), dataset.y).backward()
        optimiser.step()
    return np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])


@every
def test_who_has_which_data_does_not_matter(row: Row, tmp_path: Path) -> None:
    """With full participation and full batches, dealing the same shards to other clients changes only rounding."""
    local = {"steps": 3, "batch_size": None, "lr": 0.1}
    ends = []
    for shift in (0, 3):
        given = calm(row, 6, local)
        given["data"]["partition"] = {"name": "conformance_rows:rolled", "shift": shift}
        ends.append(flat(run(given, tmp_path).weights()))
    assert np.abs(ends[0] - ends[1]).max() < 1e-10


@every
def test_a_target_ends_the_run(row: Row, tmp_path: Path) -> None:
    result = run(experiment(row, stop={"rounds": 60, "target": {"accuracy": 0.2}}), tmp_path)
    assert result.summary["rounds"] < 60
    assert result.summary["accuracy"] >= 0.2
    assert result.summary["time_to_target_s"] == result.summary["sim_time_s"]


@every
def test_simulated_time_ends_the_run(row: Row, tmp_path: Path) -> None:
    result = run(experiment(row, stop={"sim_time_s": 75.5}), tmp_path)
    assert result.summary["sim_time_s"] == 75.5
    assert result.summary["rounds"] >= 1
    dry = run(experiment(row, stop={"sim_time_s": 75.5}), tmp_path, timing_only=True)
    assert dry.summary["event_hash"] == result.summary["event_hash"]


@every
def test_weights_that_explode_stop_the_run_with_a_place(row: Row, tmp_path: Path) -> None:
    local = {**row.local, "lr": 1e200}
    with pytest.raises(fedsim.errors.RunError) as caught:
        run(experiment(row, strategy={"name": row.name, "local": local, **row.params}), tmp_path)
    assert "round" in str(caught.value)
    assert (caught.value.run_path / "record.sqlite").exists()  # type: ignore[attr-defined]
