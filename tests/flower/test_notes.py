"""What strategies say about their rounds reaches the record, with and without training."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedsim import api
from fedsim.methods.metrics import Metric
from fedsim.record import read
from fedsim.running.build import make_strategy
from fedsim.running.threads import limited
from fedsim.spec.experiment import load
from strategies.server.fedprox import FedProx


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def experiment(strategy, **more):
    return {
        "seed": 7,
        "data": {"clients": 8, "partition": {"name": "dirichlet", "alpha": 1.0, "minimum": 3}},
        "model": "softmax",
        "strategy": {"local": {"steps": 2, "batch_size": 8, "lr": 0.1}, **strategy},
        "stop": {"rounds": 6},
        "evaluate": {"every": 4},
        "record": {"report": False},
        **more,
    }


class Telling(FedProx):
    """Counts what it may count, what has the name of a score, and what nobody has computed in a timing-only run."""

    reads = False

    def metrics(self, round):
        yield Metric("first", self.came[0].node)
        yield Metric("accuracy", 7)
        yield Metric("time_s", 8)
        if self.reads:
            yield Metric("loss_sum", sum(reply.metrics["train_loss"] for reply in self.came))


class Reading(Telling):
    """Reads losses."""

    reads = True


class Measuring(FedProx):
    """Reads weights."""

    def metrics(self, round):
        yield Metric("norm", float(self.came[0].vectors["arrays"].value().norm()))


class Tags(FedAvg):
    """One of Flower's, whose clients' numbers it copies in every way that Python knows."""

    def aggregate_train(self, server_round, replies):
        came = list(replies)
        for reply in came:
            metrics = reply.content["metrics"]
            copies = [
                pickle.loads(pickle.dumps(metrics)),
                pickle.loads(pickle.dumps(reply.content))["metrics"],
                copy.deepcopy(metrics),
                copy.deepcopy(reply.content)["metrics"],
                copy.deepcopy(reply).content["metrics"],
                copy.copy(metrics),
            ]
            assert all(one == metrics for one in copies)
            assert copies[0]["train_loss"] == metrics["train_loss"]
        return super().aggregate_train(server_round, came)


def test_the_roles_of_every_round_are_recorded(tmp_path):
    """Anchors and miners are drawn by the strategy's own coins, so anybody can draw them again."""
    given = experiment({"name": "fedamd", "participants": 5, "p": 0.5})
    result, dry = (api.run(given, out=tmp_path, timing_only=timing) for timing in (False, True))
    strategy = make_strategy(load(given))
    table = read(result.path, "events", kind="deliver")  # a client is sent its role
    for columns in (result.metrics(every_round=True), dry.metrics()):
        for round in range(1, 7):
            down = (table["peer"] == 8) & (table["round"] == round)
            cohort = sorted(set(table["node"][down].tolist()))
            assert len(cohort) == 5
            row = columns["round"].tolist().index(round)
            anchors = sum(strategy.is_anchor(round, node) for node in cohort)
            assert (columns["anchors"][row], columns["miners"][row]) == (anchors, 5 - anchors)
            assert columns["cached"][row] == 8  # the warm pass has been everywhere
    assert {3, 4, 5} & set(result.metrics(every_round=True)["miners"][1:].tolist())  # not the same every time


def test_rounds_between_evaluations_are_there_if_one_asks_for_them(tmp_path):
    result = api.run(experiment({"name": "fedprox", "participants": 3, "mu": 0.0}), out=tmp_path)
    assert result.metrics()["round"].tolist() == [0, 4, 6]
    assert np.isfinite(result.metrics()["accuracy"]).all()
    columns = result.metrics(every_round=True)
    assert columns["round"].tolist() == list(range(7))
    assert columns["replies"][1:].tolist() == [3] * 6


@pytest.mark.parametrize("name", ["fedbuff", "fedasync"])
def test_staleness_does_not_depend_on_training(name, tmp_path):
    own = {"fedbuff": {"buffer": 2}, "fedasync": {}}[name]
    devices = {"seconds_per_sample": {"distribution": "lognormal", "median": 0.1, "sigma": 1.0}}
    given = experiment({"name": name, "concurrency": 5, **own}, devices=devices, stop={"rounds": 12})
    result, dry = (api.run(given, out=tmp_path, timing_only=timing) for timing in (False, True))
    whole = result.metrics(every_round=True)
    assert whole["staleness_max"][1:].max() > 0
    for key in ("staleness", "staleness_max"):
        assert dry.metrics()[key].tolist() == whole[key][1:].tolist()


def test_facts_never_hide_a_score_or_a_column(tmp_path):
    block = {"name": f"{__name__}:Telling", "participants": 3, "mu": 0.0}
    result = api.run(experiment(block), out=tmp_path)
    columns = result.metrics()
    assert columns["strategy_accuracy"][1:].tolist() == [7, 7]
    assert columns["strategy_time_s"][1:].tolist() == [8, 8]
    assert columns["accuracy"].max() <= 1
    assert columns["time_s"][-1] == result.summary["sim_time_s"]


def test_timing_only_leaves_out_what_nobody_has_computed(tmp_path):
    """Such numbers would be zeros: in the record they would look like measured ones."""
    found = {}
    for name in ("Telling", "Reading", "Measuring"):
        block = {"name": f"{__name__}:{name}", "participants": 3, "mu": 0.0}
        for timing in (False, True):
            columns = api.run(experiment(block), out=tmp_path, timing_only=timing).metrics()
            found[name, timing] = {"first", "loss_sum", "norm"} & columns.keys()
    assert found == {
        ("Telling", False): {"first"},
        ("Telling", True): {"first"},
        ("Reading", False): {"first", "loss_sum"},
        ("Reading", True): set(),
        ("Measuring", False): {"norm"},
        ("Measuring", True): set(),
    }


def test_replies_can_be_pickled_and_copied(tmp_path):
    one, two = (api.run(experiment({"name": name}), out=tmp_path) for name in (f"{__name__}:Tags", "fedavg"))
    assert one.summary["run_hash"] == two.summary["run_hash"]
