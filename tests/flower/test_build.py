"""Flower's own strategies in an experiment file: who takes part, who evaluates, what is refused before the start."""

from __future__ import annotations

import logging
import math
import random

import numpy as np
import pytest
import torch
from flwr.app import MetricRecord
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

import fedsim
from fedsim import api
from fedsim.errors import ConfigError
from fedsim.record import read
from fedsim.running.build import make_strategy, prepare
from fedsim.running.threads import limited
from fedsim.spec.experiment import load

LOCAL = {"steps": 2, "batch_size": 8, "lr": 0.1}


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def experiment(strategy, clients=6, **more):
    return {
        "seed": 4,
        "data": {"clients": clients, "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 3}},
        "model": "softmax",
        "strategy": {"local": LOCAL, **strategy},
        "network": {
            "latency_ms": {"distribution": "uniform", "low": 5, "high": 80},
            "edge_mbps": 1,
            "detect_s": 1,
        },
        "stop": {"rounds": 3},
        "compute": {"dtype": "float64"},
        "record": {"report": False},
        **more,
    }


def flat(weights):
    return np.concatenate([value.reshape(-1) for value in weights.values()])


def refused(given):
    with pytest.raises(ConfigError) as caught:
        api.check(given)
    return str(caught.value)


# who takes part

CHURN = {"name": "exponential", "online_s": 20, "offline_s": 10}


@pytest.mark.parametrize("participants", [1, 4, 6])
@pytest.mark.parametrize("select", [None, "round_robin"])
def test_fedavg_is_fedprox_without_its_term(participants, select, tmp_path):
    """Same clients, bytes, times, order of events and models; under churn, fewer take part where fewer are online."""
    more = {"churn": CHURN, "devices": {"seconds_per_sample": 0.3}, "stop": {"rounds": 6}}
    both = {"participants": participants, "select": select}
    one = api.run(experiment({"name": "fedavg", **both}, **more), out=tmp_path)
    two = api.run(experiment({"name": "fedprox", "mu": 0.0, **both}, **more), out=tmp_path)
    assert one.summary["event_hash"] == two.summary["event_hash"]
    assert one.summary["bytes_up"] == two.summary["bytes_up"]
    assert one.summary["sim_time_s"] == two.summary["sim_time_s"] > 0
    assert np.abs(flat(one.weights()) - flat(two.weights())).max() < 1e-12  # sums in another order


def test_some_rounds_of_that_had_fewer_participants_than_asked_for(tmp_path):
    more = {"churn": CHURN, "devices": {"seconds_per_sample": 0.3}, "stop": {"rounds": 6}}
    result = api.run(experiment({"name": "fedprox", "mu": 0.0, "participants": 6}, **more), out=tmp_path)
    assert result.metrics()["replies"][1:].min() < 6


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ({"participants": 7}, "strategy.participants: 7: at most 6, the number of clients"),
        ({"participants": 0}, "strategy.participants: 0: must be at least 1"),
        ({"participants": 2.0}, "strategy.participants: 2.0: "),
        ({"particpants": 2}, "strategy.particpants: unknown key; did you mean participants?"),
        (
            {"participants": 2, "fraction_train": 0.5},
            "strategy.participants: 2: says how many clients take part",
        ),
        (
            {"participants": 2, "min_train_nodes": 2},
            "strategy.participants: 2: says how many clients take part",
        ),
    ],
)
def test_a_wrong_number_of_participants_is_refused(strategy, line):
    assert refused(experiment({"name": "fedavg", **strategy})).startswith(line)


def test_participants_may_wait_for_more_to_be_online():
    strategy = make_strategy(
        load(experiment({"name": "fedavg", "participants": 2, "min_available_nodes": 5}))
    )
    assert (strategy.fraction_train, strategy.min_available_nodes) == (1.0, 5)
    assert (
        make_strategy(load(experiment({"name": "fedavg", "participants": 1}, clients=1))).min_available_nodes
        == 1
    )


# who evaluates


def test_nobody_evaluates_unless_that_is_asked_for(tmp_path):
    plain = api.run(experiment({"name": "fedavg"}), out=tmp_path)
    asked = api.run(experiment({"name": "fedavg", "fraction_evaluate": 1.0}), out=tmp_path)
    setup = prepare(load(experiment({"name": "fedavg"})))
    layout = setup.learner.engine.task.layout
    model = len("arrays") + sum(len(name) + 128 + 8 * math.prod(shape) for name, shape in layout)
    config = len("config") + len("server-round") + 8
    reply = len("metrics") + sum(len(name) + 8 for name in ("num-examples", "loss", "accuracy"))
    assert asked.summary["bytes_up"] - plain.summary["bytes_up"] == 3 * 6 * (model + config + reply + 2 * 64)
    assert asked.summary["weights_hash"] == plain.summary["weights_hash"]
    assert not any(name.startswith("eval_") for name in plain.metrics())


def test_what_clients_find_is_recorded_for_each_and_weighted_over_all(tmp_path):
    given = experiment({"name": "fedavg", "fraction_evaluate": 1.0}, evaluate={"every": 2})
    result = api.run(given, out=tmp_path)
    setup, weights = prepare(load(given)), {k: torch.from_numpy(v) for k, v in result.weights().items()}
    logits = setup.dataset.x.double().flatten(1) @ weights["1.weight"].T + weights["1.bias"]
    right, y = (logits.argmax(1) == setup.dataset.y).double(), setup.dataset.y
    table = read(result.path, "metrics", round=3)
    for client, own in enumerate(setup.owned):
        mine = {
            name: value
            for name, value, node in zip(table["name"], table["value"], table["node"], strict=True)
            if node == client
        }
        assert mine["eval_accuracy"] == pytest.approx(float(right[own].mean()), abs=1e-9)
        assert mine["eval_loss"] == pytest.approx(float(cross_entropy(logits[own], y[own])), abs=1e-9)
    everything = np.concatenate(setup.owned)  # the mean weighted by samples is the mean over all samples
    columns = result.metrics(every_round=True)
    assert columns["round"].tolist() == [0, 1, 2, 3]
    assert columns["eval_accuracy"][3] == pytest.approx(float(right[everything].mean()), abs=1e-9)
    assert np.isfinite(columns["eval_accuracy"]).tolist() == [False, True, True, True]
    assert np.isfinite(columns["accuracy"]).tolist() == [True, False, True, True]
    assert result.metrics()["round"].tolist() == [0, 2, 3]


def test_its_cost_is_said(caplog):
    api.check(experiment({"name": "fedavg", "fraction_evaluate": 0.5}))
    setup = prepare(load(experiment({"name": "fedavg"})))
    mb = 3 * (len("arrays") + 8 * setup.learner.engine.task.size + 2 * 128 + len("1.weight1.bias")) / 1e6
    [said] = [record.getMessage() for record in caplog.records if "fraction_evaluate" in record.getMessage()]
    assert f"in every round, 3 of 6 clients are sent the model once more ({mb:.3g} MB)" in said


class Evaluating(FedAvg):
    """Has made two choices of its own."""

    def __init__(self, **more):
        super().__init__(fraction_evaluate=0.5, fraction_train=0.75, **more)


class Inclined(FedAvg):
    """Lets others choose, and has a default of its own."""

    def __init__(self, fraction_evaluate: float = 0.25, **more):
        super().__init__(fraction_evaluate=fraction_evaluate, **more)


def test_a_class_of_ones_own_may_have_chosen_itself(tmp_path):
    strategy = make_strategy(load(experiment({"name": f"{__name__}:Evaluating", "participants": 2})))
    assert (strategy.fraction_evaluate, strategy.min_available_nodes) == (0.5, 1)
    assert make_strategy(load(experiment({"name": f"{__name__}:Evaluating"}))).fraction_train == 0.75
    assert make_strategy(load(experiment({"name": f"{__name__}:Inclined"}))).fraction_evaluate == 0.25
    result = api.run(experiment({"name": f"{__name__}:Evaluating", "participants": 2}), out=tmp_path)
    asked = read(result.path, "events", kind="deliver")
    trained = (asked["node"] < 6) & (asked["round"] == 1)
    assert trained.sum() == 2 + 3  # to train, and to evaluate


# functions by dotted path


def spread(contents, key):
    """Say how far apart the clients are, and how many they are."""
    found = [content.metric_records["metrics"] for content in contents]
    losses = [metrics["loss" if "loss" in metrics else "train_loss"] for metrics in found]
    return MetricRecord({"spread": max(losses) - min(losses), "clients": len(losses), "key_length": len(key)})


NOT_A_FUNCTION = 3


def test_functions_are_dotted_paths_and_what_they_return_is_recorded(tmp_path):
    own = {f"{kind}_metrics_aggr_fn": f"{__name__}:spread" for kind in ("train", "evaluate")}
    given = experiment({"name": "fedavg", "fraction_evaluate": 0.5, **own})
    result = api.run(given, out=tmp_path)
    columns = result.metrics()
    assert columns["eval_clients"][1:].tolist() == [3, 3, 3]
    assert columns["train_clients"][1:].tolist() == [6, 6, 6]
    assert columns["train_key_length"][1] == len("num-examples")
    table = read(result.path, "metrics", round=3, name="eval_loss")
    alone = table["value"][table["node"] >= 0]
    assert columns["eval_spread"][3] == pytest.approx(alone.max() - alone.min(), abs=1e-12)


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ({"train_metrics_aggr_fn": "mean"}, "strategy.train_metrics_aggr_fn: mean: must be the dotted path"),
        ({"train_metrics_aggr_fn": 3}, "strategy.train_metrics_aggr_fn: 3: must be text"),
        (
            {"train_metrics_aggr_fn": "math:nothing"},
            "strategy.train_metrics_aggr_fn: math:nothing: cannot be imported",
        ),
        ({"train_metrics_aggr_fn": f"{__name__}:NOT_A_FUNCTION"}, "strategy.train_metrics_aggr_fn: "),
        (
            {"evaluate_metrics_aggr_fn": "math:fsum"},
            "strategy.evaluate_metrics_aggr_fn: math:fsum: has no effect",
        ),
        (
            {"name": "fedadam", "eta_l": 0.2},
            "strategy.eta_l: 0.2: must be that of the clients, who have the rate",
        ),
        ({"min_evaluate_nodes": 3}, "strategy.min_evaluate_nodes: 3: has no effect"),
        ({"arrayrecord_key": "model"}, "strategy.arrayrecord_key: model: clients know arrays"),
        ({"configrecord_key": "arrays"}, "strategy.configrecord_key: arrays: is what the weights are called"),
        (
            {"weighted_by_key": "count"},
            "strategy.weighted_by_key: count: in training, clients send num-examples",
        ),
        (
            {"weighted_by_key": "train_loss", "fraction_evaluate": 1.0},
            "strategy.weighted_by_key: train_loss: in training and evaluation, clients send num-examples",
        ),
    ],
)
def test_what_flower_could_not_use_is_one_line(strategy, line):
    said = refused(experiment({"name": "fedavg", **strategy}))
    assert said.startswith(line)
    assert "\n" not in said


class Fussy(FedAvg):
    """Refuses what it is given, in one way or another."""

    def __init__(self, *, depth: int = 1, width: int = 1) -> None:
        super().__init__()
        if depth > 3:
            raise RuntimeError("the depth must not be above 3.")
        self.ratio = depth / width


@pytest.mark.parametrize(
    ("name", "strategy", "line"),
    [
        ("fedtrimmedavg", {"beta": 0.5}, "strategy.beta: 0.5: `beta` must be in the range [0, 0.5)"),
        ("fedtrimmedavg", {"beta": -0.1}, "strategy.beta: -0.1: `beta` must be in the range [0, 0.5)"),
        (f"{__name__}:Fussy", {"depth": 4}, "strategy.depth: 4: the depth must not be above 3"),
        (
            f"{__name__}:Fussy",
            {"width": 0},
            f"strategy.name: {__name__}:Fussy: cannot be made with these parameters",
        ),
    ],
)
def test_a_constructor_that_raises_is_one_line(name, strategy, line):
    said = refused(experiment({"name": name, **strategy}))
    assert said.startswith(line)
    assert "\n" not in said


def test_an_error_that_names_no_parameter_names_its_line():
    said = refused(experiment({"name": f"{__name__}:Fussy", "width": 0}))
    line = Fussy.__init__.__code__.co_firstlineno + 4
    assert said.endswith(f"ZeroDivisionError: division by zero; raised at {__file__}:{line}")


# robust strategies


@pytest.mark.parametrize(
    ("name", "attackers", "fewest"),
    [
        ("bulyan", 0, 3),
        ("bulyan", 1, 7),
        ("krum", 1, 5),
        ("krum", 2, 7),
        ("multikrum", 0, 3),
        ("multikrum", 1, 5),
    ],
)
def test_a_robust_strategy_needs_so_many_replies(name, attackers, fewest):
    block = {"name": name, "num_malicious_nodes": attackers}
    api.check(experiment(block, clients=fewest))
    api.check(experiment({**block, "participants": fewest}, clients=9))
    rule = rf"strategy.num_malicious_nodes: {attackers}: .* = {fewest} replies in a round, and there are {fewest - 1}"
    for few in (
        experiment(block, clients=fewest - 1),
        experiment({**block, "participants": fewest - 1}, clients=9),
        experiment({**block, "min_train_nodes": fewest - 1, "fraction_train": 0.1}, clients=9),
        experiment({**block, "participants": 2 * fewest - 2, "quorum": 0.5}, clients=2 * fewest),
    ):
        with pytest.raises(ConfigError, match=rule):
            api.check(few)


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ({"name": "krum", "num_malicious_nodes": -1}, "strategy.num_malicious_nodes: -1: must be at least 0"),
        (
            {"name": "multikrum", "num_nodes_to_select": 0},
            "strategy.num_nodes_to_select: 0: must be at least 1 and",
        ),
        (
            {"name": "multikrum", "num_nodes_to_select": 7},
            "strategy.num_nodes_to_select: 7: must be at least 1 and",
        ),
        (
            {"name": "bulyan", "num_malicious_nodes": 1},
            "strategy.num_malicious_nodes: 1: Bulyan needs at least 4 x 1",
        ),
    ],
)
def test_what_a_robust_strategy_cannot_do_is_refused(strategy, line):
    assert refused(experiment(strategy)).startswith(line)


def test_a_trimmed_mean_that_cuts_nothing_off_says_so(caplog):
    api.check(experiment({"name": "fedtrimmedavg", "beta": 0.17}))  # 0.17 x 6 is 1.02
    assert not caplog.records
    api.check(experiment({"name": "fedtrimmedavg", "beta": 0.16}))
    assert "cuts nothing off 6 replies" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bulyan", "Insufficient replies, skipping Bulyan aggregation"),
        ("krum", "has 6 replies, and Krum needs 7"),
    ],
)
def test_too_few_replies_in_a_run_are_said_once(name, text, tmp_path, caplog):
    block = {"name": name, "num_malicious_nodes": {"bulyan": 1, "krum": 2}[name]}
    given = experiment(block, clients=7, faults=[{"name": "crash", "at_s": 0.001, "nodes": [2]}])
    with caplog.at_level(logging.WARNING):
        assert api.run(given, out=tmp_path).summary["rounds"] == 3  # and 6 have replied in each
    assert [text in record.getMessage() for record in caplog.records].count(True) == 1


class Drawing(FedAvg):
    """Keeps what no file can hold."""

    def __init__(self, **more):
        super().__init__(**more)
        self.dice = random.Random(3)


def test_a_strategy_that_cannot_be_saved_is_refused_only_where_that_was_asked_for(tmp_path, caplog):
    """The file in a run's folder says every default, and nobody has asked for these."""
    given = experiment({"name": f"{__name__}:Drawing"}, stop={"rounds": 3}, record={"report": False})
    refusal = "the strategy Drawing cannot be saved: its attribute dice holds a Random"
    with pytest.raises(ConfigError, match=refusal):
        fedsim.run(given, out=tmp_path / "asked", overrides={"record.checkpoint": {"every_rounds": 1}})

    def stop(now):
        if now.round == 2:
            raise KeyboardInterrupt

    with caplog.at_level(logging.INFO, "fedsim"):
        whole = fedsim.run(given, out=tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            fedsim.run(given, out=tmp_path / "stopped", progress=stop)
    assert caplog.text.count(f"this run makes no checkpoints: {refusal}") == 2
    [folder] = (tmp_path / "stopped").iterdir()
    assert fedsim.resume(folder).summary["run_hash"] == whole.summary["run_hash"]
    again = fedsim.run(folder / "experiment.yaml", out=tmp_path / "again")
    assert again.summary["run_hash"] == whole.summary["run_hash"]
