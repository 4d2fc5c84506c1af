"""All strategies that Flower has run unmodified, with an unmodified ClientApp, in simulated time.

Eight clients pull six numbers halfway towards their own number, so after three rounds every mean, median or selection
lies strictly between the extremes. There is no XGBoost here: the boosters are JSON in XGBoost's
form, with made-up trees.
"""

from __future__ import annotations

import json
from pathlib import Path

import flwr.serverapp.strategy as flowers
import numpy as np
import pytest

from fedsim.flower import run_app

APP = Path(__file__).parent / "apps" / "rows"
PLAIN = [
    *("FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "FedMedian", "FedTrimmedAvg", "FedProx"),
    *("QFedAvg", "Krum", "MultiKrum", "Bulyan"),
]
PRIVATE = {
    "DifferentialPrivacyServerSideFixedClipping": "",
    "DifferentialPrivacyServerSideAdaptiveClipping": "",
    "DifferentialPrivacyClientSideFixedClipping": "fixed",
    "DifferentialPrivacyClientSideAdaptiveClipping": "adaptive",
}
BOOSTED = ["FedXgbBagging", "FedXgbCyclic"]
WORLD = {"network.latency_ms": 5, "record.report": False, "seed": 2}


def run(name, out, mod="", **world):
    config = f'strategy="{name}" mod="{mod}"'
    return run_app(APP, nodes=8, run_config=config, overrides={**WORLD, **world}, out=out)


def test_these_are_all_of_them():
    assert {*PLAIN, *PRIVATE, *BOOSTED} == {*flowers.__all__} - {"Strategy", "Result"}


@pytest.mark.parametrize("name", PLAIN)
def test_a_strategy_moves_the_model_towards_the_clients(name, tmp_path):
    one, two = run(name, tmp_path), run(name, tmp_path)
    weights = one.weights()["w"]
    assert one.summary["rounds"] == 3
    assert (weights > 0).all()
    assert (weights < 8).all()
    assert one.summary["run_hash"] == two.summary["run_hash"]


@pytest.mark.parametrize("name", PRIVATE)
def test_private_strategies_clip_and_add_noise(name, tmp_path):
    """In a round the model moves by at most the clipping norm and the noise; adaptive norms grow by less than 1.3."""
    result = run(name, tmp_path, PRIVATE[name])
    weights = result.weights()["w"]
    assert result.summary["rounds"] == 3
    assert 0 < np.linalg.norm(weights) < 3 * 1.3**3 + 1
    assert len(np.unique(weights)) == 6  # the noise differs where the clients agree
    assert result.summary["weights_hash"] == run(name, tmp_path, PRIVATE[name]).summary["weights_hash"]


def test_a_clipping_mod_without_its_strategy_gives_error_replies(tmp_path):
    """Error replies are counted out by Flower, so the model stays where it was."""
    result = run("FedAvg", tmp_path, "fixed")
    assert not result.weights()["w"].any()
    assert "train_loss" not in result.summary["metrics"]


def booster(result):
    model = json.loads(result.weights()["0"].tobytes())["learner"]["gradient_booster"]["model"]
    return model, [tree["leaf"] for tree in model["trees"]]


def test_bagging_collects_a_tree_from_each_client(tmp_path):
    model, leaves = booster(run("FedXgbBagging", tmp_path))
    assert model["gbtree_model_param"]["num_trees"] == "12"
    assert [tree["id"] for tree in model["trees"]] == list(range(12))
    assert all(
        len({*leaves[4 * k : 4 * k + 4]}) == 4 for k in range(3)
    )  # four clients in each of three rounds


def test_cyclic_passes_one_model_on(tmp_path):
    result = run("FedXgbCyclic", tmp_path)
    assert len(booster(result)[1]) == 1
    assert result.summary["work_samples"] == 3 * (10 + 4)  # one client trains and one evaluates in a round
