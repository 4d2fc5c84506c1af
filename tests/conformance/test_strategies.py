"""What every strategy must do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conformance_rows import ROWS, Gradient, Row, calm, experiment, flat
from torch import nn

import fedsim
from fedsim.learn.build import build
from fedsim.parts import names
from fedsim.record.store import read
from fedsim.running.build import prepare
from fedsim.spec.experiment import load

every = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def run(given: dict[str, Any], out: Path, **more: Any) -> fedsim.Result:
    return fedsim.run(given, out=out, **more)


def test_every_strategy_has_a_row() -> None:
    assert {row.name for row in ROWS} == set(names("strategies"))


@every
def test_same_experiment_same_run(row: Row, tmp_path: Path) -> None:
    one, two = run(experiment(row), tmp_path), run(experiment(row), tmp_path)
    assert one.path != two.path
    changing = {"wall_time_s", "wall_total_s"}
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


@pytest.mark.parametrize("row", [row for row in ROWS if row.talks], ids=lambda row: row.name)
def test_bytes_are_conserved_when_clients_fail(row: Row, tmp_path: Path) -> None:
    faults = [{"name": "crash", "at_s": 3.0, "count": 2}]
    vectors = max(1, len(row.up))
    network = {"latency_ms": 20, "up_mbps": 0.02 * vectors, "down_mbps": 0.05 * vectors, "detect_s": 1}
    churn = {"name": "exponential", "online_s": 4, "offline_s": 2}
    result = run(experiment(row, faults=faults, network=network, churn=churn), tmp_path)
    total = result.summary
    assert total["rounds"] == 4
    assert total["bytes_lost"] > 0
    in_flight = total["bytes_up"] - total["bytes_down"] - total["bytes_lost"]
    assert in_flight == 0
    assert 0 < total["wasted_samples"] < total["work_samples"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.fewest == 1], ids=lambda row: row.name)
def test_one_client_is_centralised_training(row: Row, tmp_path: Path) -> None:
    given = calm(row, 1, {"steps": 3, "batch_size": None, "lr": 0.2})
    found = flat(run(given, tmp_path).weights())
    assert np.abs(found - alone(row, given, 0.2)).max() < 1e-10


servers = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.topology == "star"], ids=lambda row: row.name
)


@servers
def test_clients_that_are_alike_are_one_client(row: Row, tmp_path: Path) -> None:
    given = calm(row, 4, {"steps": 3, "batch_size": None, "lr": 0.2})
    given["data"] |= {"name": "conformance_rows:copies", "partition": "natural"}
    found = flat(run(given, tmp_path).weights())
    assert np.abs(found - alone(row, given, 0.2)).max() < 1e-10


@servers
def test_an_optimum_that_all_share_is_a_fixed_point(row: Row, tmp_path: Path) -> None:
    result = run(at_rest(row, row.full, 0.0), tmp_path)
    assert result.summary["rounds"] == 4
    assert np.abs(flat(result.weights())).max() < 1e-10  # Adam's kin divide rounding errors by τ = 0.001


@pytest.mark.parametrize("row", [row for row in ROWS if row.rests], ids=lambda row: row.name)
def test_the_optimum_of_clients_that_disagree_is_a_fixed_point(row: Row, tmp_path: Path) -> None:
    assert row.rests is not None
    result = run(at_rest(row, row.rests, 1.0), tmp_path)
    assert result.summary["rounds"] == 4
    assert result.summary["work_samples"] > 0
    assert np.abs(flat(result.weights())).max() < 1e-12


def test_averaging_leaves_the_optimum_of_clients_that_disagree(tmp_path: Path) -> None:
    [row] = [row for row in ROWS if row.name == "fedavg"]
    assert np.abs(flat(run(at_rest(row, row.full, 1.0), tmp_path).weights())).max() > 1e-3


def at_rest(row: Row, params: dict[str, Any], heterogeneity: float) -> dict[str, Any]:
    """Return six clients of least squares that start at the optimum, zero."""
    given = calm(row, 6, {"steps": 3, "batch_size": None, "lr": 0.1})
    sizes = ("participants", "sample_size")
    bounded = {key: min(value, 6) if key in sizes else value for key, value in params.items()}
    given["strategy"] = {"name": row.name, "local": given["strategy"]["local"], **bounded}
    given["data"] = {
        "clients": 6,
        "partition": "natural",
        "name": "conformance_rows:rested",
        "heterogeneity": heterogeneity,
    }
    return {**given, "model": row.at_zero}


def alone(row: Row, given: dict[str, Any], lr: float) -> np.ndarray:
    """Return where the strategy's centralised method leads on all data, by plain PyTorch and NumPy."""
    gradient, weights = centralised(given)
    if row.alone is not None:
        return row.alone(gradient, weights, lr)
    for _ in range(sum(row.steps_per_round)):
        weights = weights - lr * gradient(weights)
    return weights


def centralised(given: dict[str, Any]) -> tuple[Gradient, np.ndarray]:
    """Return the gradient on all data, by plain PyTorch, as a function of the weights, and the weights at the start."""
    learner, dataset, _ = build(load(given))
    module = copy.deepcopy(learner.engine.task.module)

    def gradient(weights: np.ndarray) -> np.ndarray:
        nn.utils.vector_to_parameters(torch.from_numpy(weights), module.parameters())
        module.zero_grad()
        nn.functional.cross_entropy(module(dataset.x.double()), dataset.y).backward()
        return np.concatenate([p.grad.numpy().reshape(-1) for p in module.parameters()])

    return gradient, np.concatenate([p.detach().numpy().reshape(-1) for p in module.parameters()])


@pytest.mark.parametrize("row", [row for row in ROWS if row.down], ids=lambda row: row.name)
def test_bytes_are_what_the_formula_says(row: Row, tmp_path: Path) -> None:
    given = calm(row, 5, row.local)
    result = run(given, tmp_path, timing_only=True)
    layout = prepare(load(given)).learner.engine.task.sent
    names = sum(len(name) for name, _ in layout)
    vector = names + sum(128 + 8 * int(np.prod(shape)) for _, shape in layout)  # a NumPy header, and float64
    config = len("config") + len("server-round") + 8
    metrics = len("metrics") + sum(len(name) + 8 for name in row.numbers)
    one_way = [sum(len(name) + vector for name in side) for side in (row.down, row.up)]
    overhead = 2 * 64  # of a message, there and back
    assert result.summary["bytes_up"] == 4 * 5 * (sum(one_way) + config + metrics + overhead)


@pytest.mark.parametrize("row", [row for row in ROWS if row.symmetric], ids=lambda row: row.name)
def test_who_has_which_data_does_not_matter(row: Row, tmp_path: Path) -> None:
    """With full participation and full batches, dealing the same shards to other clients changes only rounding."""
    local = {"steps": 3, "batch_size": None, "lr": 0.1}
    ends = []
    for shift in (0, 3):
        given = calm(row, 6, local)
        given["data"]["partition"] = {"name": "conformance_rows:rolled", "shift": shift}
        ends.append(flat(run(given, tmp_path).weights()))
    assert np.abs(ends[0] - ends[1]).max() < 1e-10


@pytest.mark.parametrize("row", [row for row in ROWS if row.topology != "star"], ids=lambda row: row.name)
def test_client_updates_of_peers_are_trainings(row: Row, tmp_path: Path) -> None:
    """Without losses every training is used, so that there are as many updates; scoring passes are none."""
    given = {**calm(row, 8, row.local), "record": {"events": True, "report": False}}
    setup, path = prepare(load(given)), run(given, tmp_path, timing_only=True).path
    visits = [getattr(setup.strategy, name) for name in ("update", *row.also)]
    sizes = [{one.work(samples) for one in visits} for samples in setup.learner.sizes]
    events = read(path, "events")
    done = zip(events["kind"], events["node"], events["size"], events["round"])
    trained = [round for kind, node, size, round in done if kind == "done" and size in sizes[node]]
    assert read(path, "rounds")["clients"][-1] == len(trained) > 4
    assert {*trained} <= {1, 2, 3, 4}


@every
def test_a_target_ends_the_run(row: Row, tmp_path: Path) -> None:
    result = run(experiment(row, stop={"rounds": 60, "target": {"accuracy": 0.2}}), tmp_path)
    assert result.summary["rounds"] < 60
    assert result.summary["accuracy"] >= 0.2
    assert result.summary["time_to_target_s"] == result.summary["sim_time_s"]


@every
def test_a_target_that_is_met_at_the_start_ends_the_run_there(row: Row, tmp_path: Path) -> None:
    """The initial model is evaluated before anything happens: a target of a thousandth leaves nothing to do."""
    given = experiment(row, stop={"rounds": 60, "target": {"accuracy": 0.001}}, assume={"accuracy": 0.5})
    for timing_only in (False, True):
        found = run(given, tmp_path, timing_only=timing_only).summary
        assert (found["rounds"], found["sim_time_s"], found["time_to_target_s"]) == (0, 0.0, 0.0)
        assert found["bytes_up"] == found["work_samples"] == 0


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
