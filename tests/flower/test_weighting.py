"""How much a client counts in an average: what selectors say, what the file says, and what is recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.flower import compat, run_app
from fedsim.flower.deploy.template import write_app
from fedsim.flower.simulate.weighting import Uniform as Alike
from fedsim.learn.data.datasets import Dataset
from fedsim.methods.select import Uniform, proportional
from fedsim.record import facts
from fedsim.rng import stream
from fedsim.running.threads import limited

SIZES = [1] * 50 + [9] * 50
ROUNDS = 20


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster with one thread, as in a run."""
    with limited(1):
        yield


def halves(*, clients: int, seed: int) -> Dataset:
    """Half of the clients hold one sample of target 0, the others nine of target 1; a test sample has the target 0."""
    groups = np.repeat(np.arange(clients), SIZES)
    y = torch.from_numpy((groups >= clients // 2).astype(np.float64))
    one = torch.ones(1, 1, dtype=torch.float64)
    return Dataset(
        "halves", one.expand(len(y), 1).clone(), y, one, torch.zeros(1).double(), 0, groups, "half_square"
    )


class Loaded(Uniform):
    """Draws uniformly, and has an opinion that means nothing."""

    weighting = "heavy"


def experiment(strategy):
    return {
        "seed": 3,
        "data": {"name": f"{__name__}:halves", "clients": 100, "partition": "natural"},
        "model": "linear",
        "strategy": {
            "participants": 20,
            "local": {"steps": 1, "batch_size": None, "lr": 1.0},
            "select": "by_size",
            **strategy,
        },
        "compute": {"dtype": "float64"},
        "stop": {"rounds": ROUNDS},
        "record": {"report": False},
    }


def models(result):
    """The one weight w at the end of every round, from the test loss 0.5 (w - 0)^2."""
    return np.sqrt(2 * result.metrics()["loss"][1:])


def large(rounds=ROUNDS):
    """How many of the 20 drawn by size in each round have nine samples."""
    sizes = dict(enumerate(SIZES))
    draws = [proportional(sizes, 20, stream(3, "cohort", round=round)) for round in range(1, rounds + 1)]
    return np.array([sum(node >= 50 for node in drawn) for drawn in draws])


OURS, FLOWERS = {"name": "fedprox", "mu": 0.0}, {"name": "fedavg"}
AVERAGING = [OURS, FLOWERS, {"name": "fedavgm", "momentum": 0.0}, {"name": "fednova"}]


@pytest.mark.parametrize("strategy", AVERAGING, ids=lambda block: block["name"])
def test_size_counts_once(strategy, tmp_path):
    """One step of rate 1 takes a client's model from anywhere to the mean of its targets, 0 or 1.

    So the average of a round in which k of 20 have the target 1 is k / 20; by samples it would be 9 k / (8 k + 20).
    The mean of all 500 targets is 450 / 500 = 0.9.
    """
    k = large()
    plain = api.run(experiment(strategy), out=tmp_path)
    assert models(plain) == pytest.approx(k / 20, abs=1e-9)
    assert models(plain).mean() == pytest.approx(0.9, abs=0.03)
    assert facts(plain.path)["weighting"] == "uniform"
    twice = api.run(experiment({**strategy, "weighting": "samples"}), out=tmp_path)
    assert models(twice) == pytest.approx(9 * k / (8 * k + 20), abs=1e-9)
    assert models(twice).mean() > 0.97
    assert facts(twice.path)["weighting"] == "samples"
    assert twice.summary["event_hash"] == plain.summary["event_hash"]


def test_drawn_by_size_the_plain_mean_has_no_bias():
    """Each of 50 large ones takes part with 20 * 9 / 500 = 0.36: 18 of 20, where drawing one by one gives 17.7."""
    k = large(4000)
    assert k.mean() == pytest.approx(18, abs=4 * k.std() / np.sqrt(4000))
    assert 4 * k.std() / np.sqrt(4000) < 0.15


@pytest.mark.parametrize("participants", [80, 100])
@pytest.mark.parametrize("strategy", AVERAGING, ids=lambda block: block["name"])
def test_who_is_always_drawn_counts_by_its_samples(strategy, participants, tmp_path):
    """Of 80, the 50 large ones are always there, and 30 of the small ones with 30 / 50 each.

    So a large one counts 9 and a small one 1 / 0.6: (50 * 9) / (50 * 9 + 30 / 0.6) = 450 / 500 = 0.9 in every round.
    """
    result = api.run(experiment({**strategy, "participants": participants}), out=tmp_path, stop__rounds=3)
    assert models(result) == pytest.approx(np.full(3, 0.9), abs=1e-6)


@pytest.mark.parametrize("strategy", [OURS, FLOWERS], ids=["ours", "flower"])
def test_drawn_uniformly_clients_count_by_their_samples_unless_the_file_says_no(strategy, tmp_path):
    by_samples = api.run(experiment({**strategy, "select": None}), out=tmp_path)
    alike = api.run(experiment({**strategy, "select": "uniform", "weighting": "uniform"}), out=tmp_path)
    share = models(alike)  # k / 20 of every round
    assert models(by_samples) == pytest.approx(9 * share / (8 * share + 1), abs=1e-9)
    assert [facts(run.path)["weighting"] for run in (by_samples, alike)] == ["samples", "uniform"]


@pytest.mark.parametrize("name", ["feddyn", "mifa", "scaffold"])
def test_papers_that_average_plainly_still_do(name, tmp_path):
    result = api.run(experiment({"name": name, "select": "uniform"}), out=tmp_path, stop__rounds=1)
    assert facts(result.path)["weighting"] == "uniform"


@pytest.mark.parametrize(
    ("strategy", "line"),
    [
        ({"name": "scaffold", "weighting": "samples"}, "strategy.weighting: samples: SCAFFOLD never weighs"),
        (
            {"name": "fedmedian", "weighting": "samples"},
            "strategy.weighting: samples: FedMedian never weighs",
        ),
        ({"name": "fedavg", "weighting": "sample"}, "strategy.weighting: sample: must be samples or uniform"),
        (
            {"name": "fedavg", "weighted_by_key": "train_loss"},
            "strategy.weighted_by_key: train_loss: contradicts",
        ),
        (
            {"name": "fedavg", "select": f"{__name__}:Loaded"},
            "strategy.select: Loaded: has the weighting",
        ),
    ],
)
def test_a_weighting_that_means_nothing_is_refused(strategy, line):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment(strategy))
    assert str(caught.value).startswith(line)


def test_peers_have_no_weighting():
    given = {
        "data": {"clients": 4},
        "strategy": {"name": "dpsgd", "weighting": "uniform"},
        "topology": "ring",
    }
    with pytest.raises(ConfigError, match=r"strategy\.weighting: uniform: belongs to a server"):
        api.check({**given, "stop": {"rounds": 1}})


def test_who_else_has_a_reply_keeps_the_number_of_samples():
    with compat.session(0, 9, lambda _: None):
        asked = Message(RecordDict({"arrays": ArrayRecord([np.zeros(1)])}), 1, "train")
        replies = []
        for count in (1, 9):
            content = {"arrays": ArrayRecord([np.full(1, float(count))])}
            content["metrics"] = MetricRecord({"num-examples": count, "train_loss": float(count)})
            compat.name_message(asked, str(count), 9)
            replies.append(Message(RecordDict(content), reply_to=asked))
        arrays, metrics = Alike(FedAvg()).aggregate_train(1, replies)
    assert arrays["0"].numpy().tolist() == [5.0]  # not (1 + 81) / 10
    assert metrics["train_loss"] == 5.0
    assert [reply.content["metrics"]["num-examples"] for reply in replies] == [1, 9]


def test_a_deployment_weighs_as_the_simulation_does(tmp_path):
    given = {
        "seed": 5,
        "data": {"name": "digits", "clients": 4, "partition": {"name": "dirichlet", "alpha": 0.5}},
        "model": "softmax",
        "strategy": {
            "name": "fedavg",
            "participants": 3,
            "select": "by_size",
            "local": {"epochs": 1, "batch_size": 64, "lr": 0.1},
        },
        "stop": {"rounds": 2},
        "compute": {"engine": "sequential", "device": "cpu"},
        "record": {"report": False},
    }
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(given))
    write_app(tmp_path / "app", experiment=file)
    direct = api.run(given, out=tmp_path / "runs")
    through = run_app(
        tmp_path / "app", nodes=4, overrides={"record.report": False, "seed": 5}, out=tmp_path / "runs"
    )
    assert through.summary["weights_hash"] == direct.summary["weights_hash"]
    other = api.run(given, out=tmp_path / "runs", strategy__weighting="samples")
    assert other.summary["weights_hash"] != direct.summary["weights_hash"]
