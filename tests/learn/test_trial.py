"""Models with hidden state or randomness: the same weights whatever happens around them, or one line before t = 0."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fedsim
from fedsim.errors import BadValue, ConfigError, NotFiniteError, RunError
from fedsim.learn import build as learning
from fedsim.learn.curriculum.expert import Judge
from fedsim.learn.draws import seeded
from fedsim.learn.local import LocalSGD
from fedsim.running.memory import need_mb
from fedsim.spec.experiment import Local
from fedsim.spec.local import Expert
from tests.learn import odd_models

KEPT = "all clients share the module"
DROPPING = ["dropout", "FunctionalDropout"]
DRAWING = [
    "rrelu",
    "Noise",
    "Gumbel",
    "Depth",
    "Attention",
    "Heads",
    "Recurrent",
]
STEADY = [
    "Net",
    "Partly",
    "always_the_same",
    "OnlyInTraining",
    "Constants",
    "Table",
    "Shows",
    "Tied",
    "Centred",
    "RunningMean",
    "instance_norm",
    "spectral",
    "batch_norm",
]
UNSTACKED = [*DRAWING, "spectral"]
REFUSED = {
    "AlwaysDrops": "draws random numbers in evaluation, too; let it do so only if self.training",
    "Seeds": "draws random numbers in evaluation, too",
    "Checkpointed": "does not learn from the weights it is called with: .*; use .* without checkpoints",
    "Aside": "does not learn from the weights it is called with: .*; use its weights by their names alone",
    "Counts": rf"changes its buffer in forward \(batches\); {KEPT}",
    "PlainMean": rf"changes its state with every call \(attribute mean\); {KEPT}",
    "PlainCount": rf"changes its state in forward \(attribute calls\); {KEPT}",
    "CountsInATensor": rf"changes its state with every call \(attribute calls\); {KEPT}",
    "KeepsEveryInput": rf"changes its state with every call \(attribute seen\[\d+\]\); {KEPT}",
    "Carries": r"changes its state with every call \(attribute hidden\)",
    "FirstBatch": r"the same samples other outputs after other calls \(attribute scale\)",
    "KeepsWeights": r"other outputs after other calls \(attribute kept\)",
    "Renormalised": r"changes its weights in forward \(words\.weight\); nn\.Embedding does so with max_norm",
    "PythonsRandom": "draws random numbers from Python's random; draw from torch",
    "NumPysRandom": "draws random numbers from NumPy's global generator; draw from torch",
    "OwnGenerator": r"changes its state in forward \(attribute generator\)",
    "SystemsRandom": "gives the same samples other outputs after other calls; ",
    "Remembers": "gives the same samples other outputs after other calls; ",
    "ChangesMode": r"changes its state in forward \(attribute first\.training\)",
    "NumPysWeights": "has other initial weights or buffers when it is made a second time; draw them from torch",
}


def experiment(model, **changes):
    name, _, rest = model.partition(" ")
    params = dict(pair.split("=") for pair in rest.split())
    return {
        "data": {"name": "tests.learn.odd_models:points", "clients": 3},
        "model": {"name": f"tests.learn.odd_models:{name}", **params},
        "strategy": {"name": "dpsgd", "local": {"epochs": 1, "batch_size": 3, "lr": 0.1}},
        "topology": "ring",
        "stop": {"rounds": 3},
        "compute": {"device": "cpu", "dtype": "float64"},
        "record": {"report": False},
        **changes,
    }


def peers(result):
    return load_file(result.path / "weights.safetensors")["peers/weights"]


@pytest.mark.parametrize("name", [*DRAWING, *DROPPING, *STEADY])
def test_weights_depend_on_the_experiment_alone(name, tmp_path):
    def run(**changes):
        return fedsim.run(experiment(name), overrides=changes, out=tmp_path)

    first = run()
    assert first.summary["engine"] == "lean"
    torch.rand(5)  # what ran before is of no account
    changed = run(**{"evaluate.every": 3, "evaluate.batch_size": 5})
    assert changed.summary["weights_hash"] == first.summary["weights_hash"]
    alone = run(**{"compute.engine": "sequential"})
    np.testing.assert_allclose(peers(alone), peers(first), rtol=0, atol=1e-10)
    stacked = {"compute.engine": "stacked"}
    if name in UNSTACKED:
        with pytest.raises(ConfigError, match=r"compute\.engine: stacked: does not fit this model: .*$"):
            run(**stacked)
    elif name in (*DROPPING, "Centred", "batch_norm", "RunningMean", "instance_norm"):
        np.testing.assert_allclose(peers(run(**stacked)), peers(first), rtol=0, atol=1e-10)
    assert np.abs(peers(first) - peers(run(seed=1))).max() > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_or_the_model_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=REFUSED[name]) as caught:
        learning.build(fedsim.load(experiment(name)))
    text = str(caught.value)
    assert text.startswith("model.name: ")
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("name", DRAWING)
def test_what_is_drawn_depends_on_client_and_round_and_differs_between_them(name):
    learner, _, _ = learning.build(fedsim.load(experiment(name)))
    task = learner.engine.task
    assert task.draws
    batch = odd_models.points(clients=3, seed=0)
    x = batch.x.double()

    def outputs(seed):
        with seeded(seed, task.device), torch.no_grad():
            return task.predict(task.initial, x, training=True)

    assert torch.equal(outputs(1), outputs(1))
    assert any(not torch.equal(outputs(1), outputs(seed)) for seed in range(2, 12))
    with torch.no_grad():
        assert torch.equal(task.predict(task.initial, x), task.predict(task.initial, x))


def test_evaluation_is_not_training(tmp_path):
    result = fedsim.run(experiment("OnlyInTraining"), out=tmp_path)
    # in evaluation all logits are 0: the first class is said, which 8 of the 24 samples have, and the loss is ln 3
    assert result.summary["accuracy"] == pytest.approx(8 / 24, abs=1e-12)
    assert result.summary["loss"] == pytest.approx(np.log(3), abs=1e-12)


def test_scores_are_the_saved_model_in_evaluation(tmp_path):
    given = experiment("FunctionalDropout", strategy={"name": "fedavg"}, topology="star")
    result = fedsim.run(given, out=tmp_path)
    module = odd_models.FunctionalDropout().double().eval()
    module.load_state_dict({k: torch.from_numpy(v) for k, v in result.weights().items()}, strict=True)
    data = odd_models.points(clients=3, seed=0)
    hits = (module(data.x_test.double()).argmax(1) == data.y_test).double().mean()
    assert result.summary["accuracy"] == pytest.approx(float(hits), abs=1e-12)


@pytest.mark.parametrize("name", ["Constants", "Shapes", "Tied", "Net"])
def test_the_saved_model_can_be_built_again(name, tmp_path):
    result = fedsim.run(experiment(name, strategy={"name": "fedavg"}, topology="star"), out=tmp_path)
    module = getattr(odd_models, name)().double()
    weights = {k: torch.from_numpy(v) for k, v in result.weights().items()}
    module.load_state_dict(weights, strict=True)
    data = odd_models.points(clients=3, seed=0)
    loss = torch.nn.functional.cross_entropy(module.eval()(data.x_test.double()), data.y_test)
    assert result.summary["loss"] == pytest.approx(float(loss.detach()), abs=1e-12)
    assert list(weights) == list(module.state_dict())
    engine = learning.build(fedsim.load(experiment(name)))[0].engine
    # a layer of 6 x 4 weights with 6 biases, and three buffers of 6 numbers; or one of 6 x 6, and a number
    fixed = 8 * {"Constants": 6 * 4 + 6 + 3 * 6, "Shapes": 6 * 6 + 1}.get(name, 0)
    trained = sum(v.numel() for v in module.parameters() if v.requires_grad)
    assert engine.task.size == trained
    update = LocalSGD(Local(batch_size=2))
    # weights, their gradient, three numbers that the update holds, two samples of 4 numbers with a label, in bytes
    assert need_mb(engine, [update]) == pytest.approx([(fixed + 8 * (2 * trained + 3 + 2 * 5)) / 1e6] * 3)


PLACE = r"\(tests/learn/odd_models\.py:[0-9]+\)$"


@pytest.mark.parametrize("policy", ["stop", "drop"])
@pytest.mark.parametrize("error", ["KeyError", "SystemExit"])
@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("made", "cannot be made"),
        ("evaluation", r"does not fit points \(samples of shape \(4,\)\)"),
        ("training", "fails in training"),
    ],
)
def test_a_model_that_raises_before_the_run_is_one_line_with_its_place(when, words, error, policy):
    strategy = {"name": "fedavg", "on_failure": policy}
    given = experiment(f"Fails when={when} error={error}", strategy=strategy, topology="star")
    with pytest.raises(ConfigError, match=rf"^model\.name: \S*Fails: {words}: {error}: 7 {PLACE}") as caught:
        learning.build(fedsim.load(given))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("error", ["KeyError", "SystemExit"])
def test_a_model_that_raises_in_the_run_names_the_client(error, tmp_path):
    # batches of 5 are the first of two in each pass over 8 samples; the trial before the run has at most 4
    strategy = {"name": "fedavg", "local": {"epochs": 1, "batch_size": 5, "lr": 0.1}}
    given = experiment(f"FailsLater error={error}", strategy=strategy, topology="star")
    with pytest.raises(RunError, match=rf"^node [0-2], round 1, t = \S+ s, train: {error}: 0 {PLACE}"):
        fedsim.run(given, out=tmp_path)
    dropping = fedsim.run(given, overrides={"strategy.on_failure": "drop"}, out=tmp_path)
    assert dropping.summary["dropped_updates"] == 9  # three clients in three rounds
    assert json.loads((dropping.path / "summary.json").read_text())["rounds"] == 3


@pytest.mark.parametrize("strategy", ["fedavg", "dpsgd"])
@pytest.mark.parametrize("error", ["KeyError", "SystemExit"])
def test_a_model_that_raises_in_evaluation_is_told_with_round_and_time(error, strategy, tmp_path):
    given = experiment(f"FailsInEvaluation error={error}", strategy=strategy, topology="star")
    with pytest.raises(RunError, match=rf"^round 0, t = 0\.000000 s, evaluate: {error}: 3 {PLACE}") as caught:
        fedsim.run(given, out=tmp_path)
    assert isinstance(caught.value.__cause__, KeyError | SystemExit | RunError)


LATE = {"name": "dpsgd", "local": {"epochs": 1, "batch_size": 5, "lr": 0.1}}


def test_what_the_trial_has_not_seen_drawn_is_drawn_from_the_jobs_own_seed(tmp_path):
    given = experiment("Late what=draws", strategy=LATE, compute={"engine": "sequential", "dtype": "float64"})
    first = fedsim.run(given, out=tmp_path)
    torch.rand(5)
    again = fedsim.run(given, overrides={"evaluate.every": 3}, out=tmp_path)
    assert again.summary["weights_hash"] == first.summary["weights_hash"]


def test_what_the_trial_has_not_seen_changed_makes_the_run_fail(tmp_path):
    given = experiment("Late what=counts", strategy=LATE, compute={"engine": "sequential"})
    with pytest.raises(
        RunError,
        match=r"^node [0-2], round 1, .*the model has changed its buffer in forward \(count\), which it left",
    ):
        fedsim.run(given, out=tmp_path)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_what_is_drawn_in_evaluation_alone_makes_the_run_fail(engine, tmp_path):
    with pytest.raises(RunError, match=r"round 0, .*the model draws random numbers in evaluation"):
        fedsim.run(experiment("DrawsForMany", compute={"engine": engine, "device": "cpu"}), out=tmp_path)


def test_a_model_that_mixes_the_samples_of_a_batch_is_told_of(caplog):
    learning.build(fedsim.load(experiment("Centred")))
    learning.build(fedsim.load(experiment("Net")))
    warned = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warned) == 1
    assert "Centred depend on what else is in a batch: results depend on evaluate.batch_size" in warned[0]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("weights", r"has NaN or infinity in its initial weights \(last\.bias\)"),
        (
            "outputs",
            "gives a loss or a gradient that is NaN or infinite for samples of points before it has learned",
        ),
        (
            "gradient",
            "gives a loss or a gradient that is NaN or infinite for samples of points before it has learned",
        ),
    ],
)
def test_an_initial_model_that_gives_no_numbers_is_told_as_such(where, words):
    with pytest.raises(ConfigError, match=words) as caught:
        learning.build(fedsim.load(experiment(f"NotANumber where={where}")))
    assert not re.search("learning rate", str(caught.value))


def expert(module, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    data = odd_models.points(clients=3, seed=0)
    torch.manual_seed(0)
    return Judge(module().eval(), data.x, data.y, Expert(epochs=2), seed=1)


def test_what_an_expert_draws_depends_on_the_seed_alone(tmp_path, monkeypatch):
    first = expert(odd_models.FunctionalDropout, tmp_path / "first", monkeypatch)
    before = torch.get_rng_state()
    wanted = first.losses
    assert torch.equal(torch.get_rng_state(), before)
    again = expert(odd_models.FunctionalDropout, tmp_path / "again", monkeypatch)
    torch.rand(5)
    np.testing.assert_array_equal(again.losses, wanted)
    module, data = first.module.eval(), odd_models.points(clients=3, seed=0)
    found = torch.nn.functional.cross_entropy(module(data.x), data.y, reduction="none").detach()
    np.testing.assert_allclose(wanted, found.double().numpy(), rtol=1e-6)
    without = expert(odd_models.Net, tmp_path / "without", monkeypatch)
    assert np.abs(without.losses - wanted).max() > 1e-3  # the same weights and batches: something was dropped


def test_an_expert_that_fails_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(BadValue, match=rf"^expert: cannot be trained: KeyError: 7 {PLACE}"):
        expert(lambda: odd_models.Fails(when="training"), tmp_path, monkeypatch).losses  # noqa: B018


def test_an_expert_that_fails_before_the_run_is_a_mistake_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    given = experiment("FailsLater", expert={"epochs": 1, "batch_size": 5})
    given["data"]["partition"] = "by_difficulty"
    with pytest.raises(ConfigError, match=rf"^expert: cannot be trained: SystemExit: 0 {PLACE}"):
        learning.build(fedsim.load(given))


def test_the_trial_leaves_every_generator_as_it_was():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for name in ("FunctionalDropout", "PythonsRandom", "NumPysRandom"):
        try:
            learning.build(fedsim.load(experiment(name)))
        except ConfigError:
            assert name != "FunctionalDropout"
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_client_that_makes_nan_and_one_that_is_given_it_are_told_apart(tmp_path):
    given = experiment(
        "Net", strategy={"name": "fedavg", "local": {"steps": 9, "lr": 1e300}}, topology="star"
    )
    with pytest.raises(NotFiniteError, match="a smaller learning rate may help"):
        fedsim.run(given, out=tmp_path)
