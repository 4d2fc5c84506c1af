"""What a SuperNode answers when it is asked how hard its samples are."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

import fedsim
from fedsim import rng
from fedsim.flower import client_app, compat, run_app
from fedsim.flower.deploy.template import write_app
from fedsim.learn import build as learning
from fedsim.methods.select_curriculum import QUERY_SCORE
from fedsim.spec.experiment import load

SEED, CLIENTS, PARTITION = 6, 4, 2
DATA = {"name": "digits", "partition": {"name": "dirichlet", "alpha": 0.5}}
LOCAL = {"epochs": 2, "batch_size": 32, "lr": 0.1}


@pytest.fixture(autouse=True)
def _identity():
    with compat.session(0, 99, lambda _: None):
        yield


@pytest.fixture(scope="module")
def samples():
    """Return the samples of the partition: pixels [n, 64] and labels [n]."""
    experiment = load(
        {
            "seed": SEED,
            "data": {**DATA, "clients": CLIENTS},
            "model": "softmax",
            "strategy": "fedavg",
            "stop": {"rounds": 1},
        }
    )
    _, dataset, owned = learning.build(experiment)
    own = owned[PARTITION]
    return dataset.x[own].flatten(1).double().numpy(), np.asarray(dataset.y)[own]


def blocks(score, **local):
    strategy = {
        "name": "fedprox",
        "participants": 2,
        "mu": 0.1,
        "select": {"name": "curriculum", "rounds": 5, "score": score},
        "local": {**LOCAL, **local},
    }
    return {"model": "softmax", "data": DATA, "strategy": strategy, "seed": SEED}


def supernode():
    return compat.make_context(3, {"partition-id": PARTITION, "num-partitions": CLIENTS}, {})


def drawn(purpose):
    """Return weights that nobody has trained."""
    draw = rng.stream(0, purpose).standard_normal
    return {"1.weight": draw((10, 64)).astype("float32"), "1.bias": draw(10).astype("float32")}


def ask(app, context, kind, weights, round):
    arrays = ArrayRecord({name: Array(array) for name, array in weights.items()})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": round})})
    return app(Message(content, 3, kind), context).content


def score_of(app, context, weights, round=1):
    return ask(app, context, QUERY_SCORE, weights, round)["metrics"]["score"]


def weights_of(reply):
    return {name: array.numpy() for name, array in reply["arrays"].items()}


def cross_entropy(weights, samples):
    """Return the mean of log(sum of exp(logits)) - the logit of the label."""
    x, y = samples
    logits = x @ weights["1.weight"].astype(float).T + weights["1.bias"].astype(float)
    highest = logits.max(axis=1)
    normaliser = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return float((normaliser - logits[np.arange(len(y)), y]).mean())


def test_a_score_is_the_mean_cross_entropy_of_the_model_sent(samples):
    app, context, sent = client_app(**blocks("global")), supernode(), drawn("sent")
    reply = ask(app, context, QUERY_SCORE, sent, 1)
    assert list(reply) == ["metrics"]  # no weights go back
    assert set(reply["metrics"]) == {"num-examples", "score"}
    assert reply["metrics"]["num-examples"] == len(samples[1])
    assert reply["metrics"]["score"] == pytest.approx(cross_entropy(sent, samples), rel=1e-5)
    other = drawn("other")
    assert score_of(app, context, other) == pytest.approx(cross_entropy(other, samples), rel=1e-5)
    zero = {name: np.zeros_like(array) for name, array in sent.items()}
    assert score_of(app, context, zero) == pytest.approx(np.log(10), rel=1e-5)


def test_a_global_score_knows_nothing_of_earlier_visits(samples):
    app, context, sent = client_app(**blocks("global")), supernode(), drawn("sent")
    fresh = score_of(app, context, sent)
    ask(app, context, "train", sent, 1)
    assert score_of(app, context, sent, 2) == fresh
    assert not [name for name in context.state if name.startswith("kept.")]


def test_a_local_score_is_that_of_the_clients_own_last_model(samples):
    app, context, sent = client_app(**blocks("local")), supernode(), drawn("sent")
    assert score_of(app, context, sent) == pytest.approx(cross_entropy(sent, samples), rel=1e-5)
    for round in (1, 2):
        trained = weights_of(ask(app, context, "train", drawn(f"start {round}"), round))
        later = client_app(**blocks("local"))  # a SuperNode starts a process for every message
        found = [score_of(later, context, drawn(name), round + 1) for name in ("one", "another")]
        assert found[0] == found[1]  # whatever is sent
        assert found[0] == pytest.approx(cross_entropy(trained, samples), rel=1e-5)


def test_a_score_of_both_is_the_sum(samples):
    app, context, sent = client_app(**blocks("both")), supernode(), drawn("sent")
    assert score_of(app, context, sent) == pytest.approx(cross_entropy(sent, samples), rel=1e-5)
    trained = weights_of(ask(app, context, "train", sent, 1))
    wanted = cross_entropy(sent, samples) + cross_entropy(trained, samples)
    assert score_of(app, context, sent, 2) == pytest.approx(wanted, rel=1e-5)


def test_an_order_by_errors_inside_of_a_client_leaves_its_score_a_loss(samples):
    app = client_app(**blocks("local", curriculum={"measure": "error", "floor": 1}))
    context = supernode()
    trained = weights_of(ask(app, context, "train", drawn("sent"), 1))
    x, y = samples
    wrong = ((x @ trained["1.weight"].T + trained["1.bias"]).argmax(axis=1) != y).mean()
    found = score_of(app, context, drawn("sent"), 2)
    assert found == pytest.approx(cross_entropy(trained, samples), rel=1e-5)
    assert abs(found - wrong) > 0.01


def test_a_client_that_nobody_ranks_is_not_asked_for_scores():
    plain = {
        **blocks("global"),
        "strategy": {"name": "fedprox", "participants": 2, "mu": 0.1, "local": LOCAL},
    }
    with pytest.raises(ValueError, match="No query function registered"):
        ask(client_app(**plain), supernode(), QUERY_SCORE, drawn("sent"), 1)


@pytest.mark.parametrize("score", ["global", "local", "expert"])
def test_an_app_with_a_curriculum_gives_the_weights_of_the_experiment(score, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    given = blocks(score, curriculum={"score": "both", "floor": 16})
    experiment = {
        **given,
        "expert": {"epochs": 2},
        "data": {**DATA, "clients": CLIENTS},
        "stop": {"rounds": 4},
        "compute": {"engine": "sequential", "device": "cpu"},
        "record": {"report": False},
    }
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(experiment))
    write_app(tmp_path / "app", experiment=tmp_path / "given.yaml")
    direct = fedsim.run(experiment, out=tmp_path / "runs")
    through = run_app(
        tmp_path / "app", nodes=CLIENTS, overrides={"record.report": False}, out=tmp_path / "runs"
    )
    wanted, found = direct.weights(), through.weights()
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    experts = list(tmp_path.glob("expert-*.npy"))
    assert len(experts) == (score == "expert")  # the app's is that of the experiment
