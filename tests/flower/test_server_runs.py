"""Whole runs with Flower's strategies: they run as they are, repeatably, and what goes wrong says where."""

from __future__ import annotations

import copy
import logging
import random

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import FedAvg, strategy_utils
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedsim import api
from fedsim.errors import ConfigError, RunError, StalledError
from fedsim.flower.simulate.server import check_strategy, run_strategy
from fedsim.learn.local import LocalSGD
from fedsim.record.store import Record
from fedsim.rng import stream
from fedsim.running.build import prepare
from fedsim.running.observer import Observer
from fedsim.running.threads import limited
from fedsim.running.updates import updates_of
from fedsim.spec.experiment import load

FLOWERS = {
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.9, "server_momentum": 0.5},
    "FedAdagrad": {},
    "FedAdam": {"eta": 0.01},
    "FedYogi": {},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def experiment(name="FedAvg", clients=5, **more):
    """A quick experiment: digits, softmax, three rounds of two steps."""
    path = name if ":" in name else f"flwr.serverapp.strategy:{name}"
    params = {**FLOWERS.get(name, {}), **more.pop("params", {})}
    local = {"steps": 2, "batch_size": 8, "lr": 0.1}
    return {
        "data": {"clients": clients, "partition": {"name": "dirichlet", "alpha": 1.0}},
        "model": "softmax",
        "strategy": {"name": path, "local": local, **params},
        "network": {"latency_ms": 5, "edge_mbps": 1, "detect_s": 1},
        "stop": {"rounds": 3},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def run(given, out, **more):
    return api.run(given, out=out, **more)


def flat(weights):
    return np.concatenate([value.reshape(-1) for value in weights.values()])


# Flower's own strategies


@pytest.mark.parametrize("name", FLOWERS)
def test_flowers_strategies_run_as_they_are(name, tmp_path):
    given = experiment(name, clients=7, compute={"dtype": "float32"})
    one, two = run(given, tmp_path), run(given, tmp_path)
    assert one.summary["rounds"] == 3
    assert one.summary["run_hash"] == two.summary["run_hash"]
    assert np.isfinite(one.summary["loss"])
    assert flat(one.weights()).dtype == np.float32
    dry = run(given, tmp_path, timing_only=True)
    assert dry.summary["event_hash"] == one.summary["event_hash"]
    assert dry.summary["bytes_up"] == one.summary["bytes_up"]


def test_the_seed_chooses_the_cohort(tmp_path):
    given = experiment(params={"fraction_train": 0.4, "fraction_evaluate": 0.0}, clients=10)
    hashes = {run(given, tmp_path, seed=seed).summary["event_hash"] for seed in (0, 0, 1, 2)}
    assert len(hashes) == 3


def by_hand(given, average):
    """Run rounds with plain PyTorch: every client, its own batches, then an average of stacked weights."""
    setup = prepare(load(given))
    learner, update = setup.learner, LocalSGD(setup.experiment.strategy.local)
    x, y = setup.dataset.x.double(), setup.dataset.y
    module = copy.deepcopy(learner.engine.task.module)
    for round in range(1, 4):
        models, sizes = [], [len(own) for own in setup.owned]
        for client, own in enumerate(setup.owned):
            local = copy.deepcopy(module)
            optimiser = torch.optim.SGD(local.parameters(), lr=0.1)
            for row in update.batches(len(own), stream(0, "batches", client, round)):
                batch = own[row[row >= 0]]
                optimiser.zero_grad()
                nn.functional.cross_entropy(local(x[batch]), y[batch]).backward()
                optimiser.step()
            models.append(nn.utils.parameters_to_vector(local.parameters()).detach().numpy())
        new = torch.from_numpy(average(np.stack(models), sizes))
        nn.utils.vector_to_parameters(new, module.parameters())
    return new.numpy()


AVERAGES = {
    "FedAvg": lambda models, sizes: np.average(models, axis=0, weights=sizes),
    "FedMedian": lambda models, sizes: np.median(models, axis=0),
    "FedTrimmedAvg": lambda models, sizes: np.sort(models, axis=0)[1:-1].mean(0),  # 20 % of 5 at each end
}


@pytest.mark.parametrize("name", AVERAGES)
def test_the_result_is_that_of_a_plain_loop(name, tmp_path):
    given = experiment(name)
    found, wanted = flat(run(given, tmp_path).weights()), by_hand(given, AVERAGES[name])
    assert np.abs(found - wanted).max() < 1e-10
    start = prepare(load(given)).learner.initial.value().numpy()
    assert np.abs(found - start).max() > 1e-3


def test_clients_of_a_round_are_trained_together(tmp_path):
    setup = prepare(load(experiment(clients=7)))
    engine, groups = setup.learner.engine, []
    train = engine.train

    def noting(jobs):
        groups.append(len(jobs))
        return train(jobs)

    engine.train = noting
    with Record(tmp_path) as record:
        observer = Observer(setup.experiment, setup.learner, setup.world, record)
        updates = updates_of(setup.strategy, setup.experiment)
        run_strategy(setup.experiment, setup.strategy, updates, setup.world, setup.learner, observer)
    assert groups == [7, 7, 7]


def test_bytes_by_hand(tmp_path):
    """64 x 10 weights and 10 biases as float32, to and from 5 clients in 3 rounds, without evaluation."""
    given = experiment(params={"fraction_evaluate": 0.0}, compute={"dtype": "float32"})
    summary = run(given, tmp_path).summary
    arrays = (128 + 4 * 640) + (128 + 4 * 10) + len("arrays") + len("1.weight") + len("1.bias")
    down = arrays + len("config") + len("server-round") + 8 + 64
    up = arrays + len("metrics") + len("num-examples") + 8 + len("train_loss") + 8 + 64
    assert summary["bytes_up"] == summary["bytes_down"] == 3 * 5 * (up + down)
    assert summary["work_samples"] == 3 * 5 * 2 * 8


# time


def test_a_round_without_replies_takes_its_timeout(tmp_path):
    given = experiment(params={"fraction_evaluate": 0.0, "timeout_s": 60.0})
    result = run(given, tmp_path, devices__seconds_per_sample=100)
    assert result.summary["sim_time_s"] == 180.0
    start = prepare(load(given)).learner.initial.value().numpy()
    assert np.array_equal(flat(result.weights()), start)


def test_the_run_ends_at_its_time_limit(tmp_path):
    result = run(experiment(stop={"sim_time_s": 2.0}), tmp_path)
    assert result.summary["sim_time_s"] == 2.0
    assert result.summary["rounds"] > 3


def test_the_run_ends_at_its_target(tmp_path):
    result = run(experiment(stop={"rounds": 100, "target": {"accuracy": 0.4}}), tmp_path)
    assert 1 <= result.summary["rounds"] < 100
    assert result.summary["accuracy"] >= 0.4
    assert result.summary["time_to_target_s"] == result.summary["sim_time_s"]


def test_a_crashed_client_costs_time_and_nothing_else(tmp_path):
    given = experiment(faults=[{"name": "crash", "at_s": 0.001, "nodes": [2]}])
    calm, hit = run(experiment(), tmp_path), run(given, tmp_path)
    assert hit.summary["rounds"] == 3
    assert calm.summary["sim_time_s"] < 1.0
    assert (
        1.001 < hit.summary["sim_time_s"] < 2.0
    )  # the server needs a second to notice, in the first round only
    assert hit.summary["bytes_lost"] > 0


def test_waiting_for_a_crashed_client_stalls(tmp_path):
    faults = [{"name": "crash", "at_s": 0.001, "nodes": [2]}]
    given = experiment(params={"min_available_nodes": 5}, faults=faults)
    with pytest.raises(StalledError, match=r"4 are online, 1 of \d+ have crashed") as caught:
        run(given, tmp_path)
    assert caught.value.sim_time_s > 0


def test_waiting_under_churn_goes_on(tmp_path):
    churn = {"name": "exponential", "online_s": 30, "offline_s": 30}
    given = experiment(params={"min_available_nodes": 5, "min_train_nodes": 5}, churn=churn)
    result = run(given, tmp_path)
    assert result.summary["rounds"] == 3
    assert result.summary["sim_time_s"] > 10


# sessions


def globals_now():
    names = ("_run_id", "_task_id", "_node_id")
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        [getattr(TaskIdentity, name) for name in names],
        strategy_utils.sleep,
        logging.getLogger("flwr").level,
    )


def test_a_run_leaves_no_traces(tmp_path):
    before = globals_now()
    run(experiment(), tmp_path)
    assert globals_now() == before


def test_a_failed_run_leaves_no_traces(tmp_path):
    before = globals_now()
    with pytest.raises(RunError):
        run(experiment(f"{__name__}:Breaks"), tmp_path)
    assert globals_now() == before


def test_the_callers_generators_do_not_matter(tmp_path):
    given = experiment(params={"fraction_train": 0.5})
    hashes = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        hashes.append(run(given, tmp_path).summary["run_hash"])
    assert hashes[0] == hashes[1]


# strategies of one's own


class Breaks(FedAvg):
    """Raises in the second round."""

    def aggregate_train(self, server_round, replies):
        if server_round == 2:
            raise KeyError("weights")
        return super().aggregate_train(server_round, replies)


class Misspells(FedAvg):
    """Sends a message type that no client knows."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        return [Message(m.content, m.metadata.dst_node_id, "train.ancor") for m in messages]


class Stranger(FedAvg):
    """Sends to a node that does not exist."""

    def configure_train(self, server_round, arrays, config, grid):
        return [Message(RecordDict({"arrays": arrays}), 1234, "train")]


class Reads(FedAvg):
    """Chooses by values."""

    timing_depends_on_values = True


class Alone:
    """Not a strategy at all."""


def test_a_strategy_that_raises_says_where(tmp_path):
    with pytest.raises(RunError) as caught:
        run(experiment(f"{__name__}:Breaks"), tmp_path)
    error = caught.value
    assert (error.round, error.phase) == (2, "Breaks")
    calm = run(experiment(stop={"rounds": 1}), tmp_path).summary["sim_time_s"]
    assert error.sim_time_s == pytest.approx(2 * calm, abs=1e-6)
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.args == ("weights",)
    assert error.__cause__.__traceback__ is not None
    assert "KeyError: 'weights'" in str(error)
    assert (error.run_path / "record.sqlite").exists()


def test_an_unknown_message_type_says_who_and_what(tmp_path):
    with pytest.raises(RunError, match=r"message type train\.ancor; it knows \['train'\]") as caught:
        run(experiment(f"{__name__}:Misspells"), tmp_path)
    assert caught.value.node in range(5)
    assert caught.value.round == 1


def test_an_unknown_node_says_which(tmp_path):
    with pytest.raises(RunError, match="sends to node 1234; clients are 0 to 4"):
        run(experiment(f"{__name__}:Stranger"), tmp_path)


@pytest.mark.parametrize(
    ("name", "params", "line"),
    [
        ("FedAvg", {"min_available_nodes": 6}, "strategy.min_available_nodes: 6: at most 5, the number"),
        ("FedAvg", {"fraction_train": 1.5}, "strategy.fraction_train: 1.5: must be between 0 and 1"),
        ("FedAvg", {"fraction_fit": 1.0}, "strategy.fraction_fit: unknown key; did you mean fraction_train"),
        ("FedAvg", {"min_train_nodes": 2.5}, "strategy.min_train_nodes: 2.5: "),
        (f"{__name__}:Alone", {}, "strategy.name: Alone: must be a PeerStrategy or a flwr"),
    ],
)
def test_bad_parameters_die_before_the_start(name, params, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(name, params=params))
    assert str(caught.value).startswith(line)


def test_a_strategy_that_depends_on_values_cannot_run_timing_only(tmp_path):
    with pytest.raises(ConfigError, match="cannot run timing-only: its choices depend on values"):
        run(experiment(f"{__name__}:Reads"), tmp_path, timing_only=True)


def test_check_strategy_asks_the_strategy_itself():
    class Own(FedAvg):
        def check(self, clients):
            raise ZeroDivisionError(clients)

    with pytest.raises(ZeroDivisionError, match="7"):
        check_strategy(Own(), 7)


def test_updates_are_the_strategys_own_or_local_sgd():
    given = load(experiment())
    assert isinstance(updates_of(FedAvg(), given)["train"], LocalSGD)
    own = FedAvg()
    own.updates = {"train.anchor": LocalSGD(given.strategy.local)}
    assert updates_of(own, given) == own.updates


def test_fedprox_stays_closer_to_where_it_started(tmp_path):
    params = {"fraction_evaluate": 0.0}
    start = flat(
        run(experiment(stop={"rounds": 1}, params={**params, "fraction_train": 0.0}), tmp_path).weights()
    )
    plain = flat(run(experiment(stop={"rounds": 1}, params=params), tmp_path).weights())
    pulled = flat(
        run(
            experiment("FedProx", stop={"rounds": 1}, params={**params, "proximal_mu": 5.0}), tmp_path
        ).weights()
    )
    # two steps a client at lr 0.1 and mu 5: the second step takes back half of the first
    assert 0 < np.linalg.norm(pulled - start) < 0.85 * np.linalg.norm(plain - start)


def test_a_strategy_that_asks_nobody_ends_with_a_diagnosis(tmp_path):
    params = {"fraction_train": 0.0, "fraction_evaluate": 0.0}
    given = experiment(params=params, stop={"sim_time_s": 10}, evaluate={"every": 1_000_000})
    with pytest.raises(StalledError, match="asked no client"):
        run(given, tmp_path)
