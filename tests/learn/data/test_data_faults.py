"""Faults of data: as many labels and samples as counted by hand, of the clients that are named, and no others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import BadValue, ConfigError
from fedsim.learn import build as learning
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.data.faults import DataFault, FeatureNoise, LabelFlips
from fedsim.rng import stream
from tests.learn.odd_models import points

HERE = "tests.learn.data.test_data_faults"


def experiment(*faults, clients=4, **data):
    return {
        "data": {
            "name": "tests.learn.odd_models:points",
            "clients": clients,
            "faults": list(faults),
            **data,
        },
        "model": "softmax",
        "strategy": {"name": "fedavg", "local": {"epochs": 1, "batch_size": 4, "lr": 0.1}},
        "stop": {"rounds": 2},
        "compute": {"device": "cpu", "dtype": "float64"},
        "record": {"report": False},
    }


def built(*faults, **data):
    learner, dataset, owned = learning.build(fedsim.load(experiment(*faults, **data)))
    return learner, dataset, owned, points(clients=data.get("clients", 4), seed=0)


@pytest.mark.parametrize(
    ("who", "hit"), [({"nodes": [2, 0]}, 2), ({"count": 3}, 3), ({"fraction": 0.5}, 2), ({"nodes": [1]}, 1)]
)
def test_labels_are_flipped_at_chosen_clients_alone(who, hit):
    # every client has 8 samples: round(0.3 x 8) = round(2.4) = 2 labels of each that is hit
    _, dataset, owned, clean = built({"name": "label_flips", "share": 0.3, **who})
    wrong = [int((dataset.y[own] != clean.y[own]).sum()) for own in owned]
    assert sorted(wrong) == [0] * (4 - hit) + [2] * hit
    if "nodes" in who:
        assert [client for client in range(4) if wrong[client]] == sorted(who["nodes"])
    assert torch.equal(dataset.x, clean.x)
    assert torch.equal(dataset.y_test, clean.y_test)
    assert dataset.note.startswith(f"{2 * hit} labels are wrong, in training, of the clients [")


def test_the_next_class_stands_there():
    _, dataset, owned, clean = built({"name": "label_flips", "share": 1.0, "to": "next", "nodes": [3]})
    assert torch.equal(dataset.y[owned[3]], (clean.y[owned[3]] + 1) % 3)


def test_other_classes_are_as_likely_as_each_other():
    y = torch.zeros(3000, dtype=torch.int64)
    data = Dataset("zeros", torch.zeros(3000, 1), y, torch.zeros(1, 1), y[:1], 4)
    fault = LabelFlips(share=0.5, nodes=[0])
    counts = fault.apply(data, [np.arange(3000)], stream(0, "test")).y.bincount(minlength=4)
    assert counts[0] == 1500
    # 1,500 flips to three classes: 500 each, with a standard deviation of sqrt(1500 x 1/3 x 2/3) = 18
    assert (counts[1:] - 500).abs().max() < 4 * 18


def test_padding_of_sequences_stays_padding():
    y = torch.tensor([[0, 1, -100], [1, -100, -100], [0, 0, 0]])
    data = Dataset("texts", torch.zeros(3, 2), y, torch.zeros(3, 2), y, 2)
    made = LabelFlips(share=1.0, nodes=[0]).apply(data, [np.array([0, 1]), np.array([2])], stream(0, "test"))
    assert made.y.tolist() == [[1, 0, -100], [0, -100, -100], [0, 0, 0]]
    assert data.y.tolist() == y.tolist()  # what was given is as it was
    assert made.note == "3 labels are wrong, in training, of the clients [0]"


def test_noise_is_in_a_share_of_the_samples_and_as_large_as_said():
    x = torch.zeros(400, 50)
    data = Dataset("zeros", x, torch.zeros(400), x[:1], torch.zeros(1), 0, loss="half_square")
    owned = [np.arange(200), np.arange(200, 400)]
    made = FeatureNoise(std=0.5, share=0.25, nodes=[1]).apply(data, owned, stream(0, "test"))
    noisy = (made.x != 0).any(1)
    assert (int(noisy[:200].sum()), int(noisy[200:].sum())) == (0, 50)
    # 2,500 draws: the standard deviation of their standard deviation is about 0.5 / sqrt(5000) = 0.007
    assert float(made.x[noisy].std()) == pytest.approx(0.5, abs=0.03)
    assert not x.any()


def test_noise_is_in_every_floating_point_input():
    words, numbers = torch.arange(8).view(4, 2), torch.zeros(4, 3)
    y = torch.tensor([0, 1, 0, 1])
    data = Dataset("two", {"words": words, "numbers": numbers}, y, {"words": words, "numbers": numbers}, y, 2)
    made = FeatureNoise(std=1.0, nodes=[0]).apply(data, [np.array([0, 2]), np.array([1, 3])], stream(0, "t"))
    assert torch.equal(made.x.kwargs["words"], words)
    assert made.x.kwargs["numbers"].any(1).tolist() == [True, False, True, False]
    assert not made.x_test.kwargs["numbers"].any()


def test_faults_follow_the_seed_and_are_drawn_each_from_its_own_stream():
    flips, noise = {"name": "label_flips", "share": 0.5, "count": 2}, {"name": "feature_noise", "std": 1.0}
    noise["nodes"] = [0]
    first, again = (built(flips, noise)[1] for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert torch.equal(built(flips)[1].y, first.y)  # what comes behind draws nothing of it


def test_who_has_what_is_decided_before_and_tests_stay_clean():
    fault = {"name": "label_flips", "share": 1.0, "fraction": 1.0}
    how = {"partition": {"name": "dirichlet", "alpha": 0.5, "minimum": 4}, "client_test_share": 0.25}
    learner, dataset, owned, clean = built(fault, **how)
    _, _, without, _ = built(**how)
    assert [own.tolist() for own in owned] == [own.tolist() for own in without]
    trained = np.concatenate(owned)
    assert bool((dataset.y[trained] != clean.y[trained]).all())
    held = torch.cat(list(learner.tests))
    assert torch.equal(dataset.y[held], clean.y[held])


def test_only_results_of_clients_that_are_hit_have_another_identity():
    names = []
    for faults in ((), ({"name": "label_flips", "share": 0.3, "nodes": [1]},)):
        learner = built(*faults)[0]
        names.append([learner.evaluate(learner.initial, client).identity for client in range(4)])
    assert [a == b for a, b in zip(*names, strict=True)] == [True, False, True, True]


def test_a_run_learns_from_wrong_labels_and_says_so(tmp_path):
    fault = {"name": "label_flips", "share": 1.0, "to": "next", "fraction": 1.0}
    clean, wrong = (fedsim.run(experiment(*faults), out=tmp_path) for faults in ((), (fault,)))
    assert wrong.summary["loss"] > clean.summary["loss"]
    assert "32 labels are wrong" in str(wrong.summary["notes"])
    engines = [
        fedsim.run(experiment(fault), overrides={"compute.engine": name}, out=tmp_path)
        for name in ("sequential", "stacked")
    ]
    assert engines[0].summary["loss"] == pytest.approx(engines[1].summary["loss"], abs=1e-10)


@dataclass(kw_only=True)
class Zeros(DataFault):
    """Some samples are zeros."""

    touches_inputs = True
    what = "samples are zeros"

    def check(self, data):
        """Take all."""

    def strike(self, data, own, rng):
        """Wipe."""
        hit = self.some(own, rng)
        data.x[hit] = 0
        return len(hit)


def test_one_of_ones_own():
    _, dataset, owned, clean = built({"name": f"{HERE}:Zeros", "share": 0.5, "nodes": [0]})
    assert int((dataset.x[owned[0]] == 0).all(1).sum()) == 4
    assert bool(clean.x.any(1).all())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            {"name": "label_flips", "share": 0.5},
            "data.faults.0.nodes: give exactly one of nodes, count and fraction",
        ),
        ({"name": "label_flips", "share": 0.5, "nodes": [4]}, r"nodes: \[4\]: no such node: 4"),
        ({"name": "label_flips", "share": 0.0, "nodes": [1]}, r"share: 0\.0: must be "),
        ({"name": "label_flips", "share": 0.05, "nodes": [1]}, r"share: 0\.05: hits no sample"),
        (
            {"name": "label_flip", "share": 0.5, "nodes": [1]},
            r"no such fault of data; did you mean label_flips",
        ),
        ({"name": "feature_noise", "nodes": [1]}, r"std: .*required"),
        ({"name": "feature_noise", "std": -1, "nodes": [1]}, r"std: -1: must be "),
        ({"name": f"{HERE}:experiment"}, r"is no DataFault"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(fault, words):
    with pytest.raises(ConfigError, match=words) as caught:
        fedsim.check(experiment(fault))
    assert str(caught.value).startswith("data.faults.0")
    assert len(str(caught.value).splitlines()) == 1


def test_what_does_not_fit_the_data_is_refused():
    numbers = Dataset(
        "numbers", torch.zeros(2, 1), torch.zeros(2), torch.zeros(1, 1), torch.zeros(1), 0, loss="mse"
    )
    with pytest.raises(BadValue, match="label_flips: needs classes, and numbers has numbers"):
        LabelFlips(share=1.0, nodes=[0]).apply(numbers, [np.arange(2)], stream(0, "test"))
    y = torch.tensor([0, 1])
    words = Dataset("words", y[:, None], y, y[:, None], y, 2)
    with pytest.raises(BadValue, match="feature_noise: needs floating-point inputs, and words has none"):
        FeatureNoise(std=1.0, nodes=[0]).apply(words, [np.arange(2)], stream(0, "test"))
