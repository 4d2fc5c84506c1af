"""Models of images and texts that others have published: their sizes, by hand, and runs of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import BadValue
from fedsim.learn.models import text, vision
from fedsim.parts import call, find


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_cnn_of_the_paper():
    # (25 + 1) 32 + (25 x 32 + 1) 64 + (7 x 7 x 64 + 1) 512 + 513 x 10, as McMahan et al. say: 1,663,370
    assert 26 * 32 + 801 * 64 + 3137 * 512 + 513 * 10 == 1_663_370
    assert size(vision.cnn(shape=(1, 28, 28), classes=10)) == 1_663_370
    assert vision.cnn(shape=(3, 9, 10), classes=4)(torch.zeros(2, 3, 9, 10)).shape == (2, 4)


def resnet18_by_hand(channels, classes, stem):
    blocks, inputs = 0, 64
    for outputs in (64, 128, 256, 512):
        blocks += inputs * outputs * 9 + 3 * outputs * outputs * 9 + 4 * 2 * outputs
        blocks += (inputs * outputs + 2 * outputs) if inputs != outputs else 0
        inputs = outputs
    return channels * 64 * stem**2 + 2 * 64 + blocks + 513 * classes


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_resnet18_has_the_sizes_that_are_known(norm):
    small = vision.resnet18(shape=(3, 32, 32), classes=10, norm=norm)
    large = vision.resnet18(shape=(3, 224, 224), classes=1000, norm=norm)
    assert size(small) == resnet18_by_hand(3, 10, 3) == 11_173_962
    assert size(large) == resnet18_by_hand(3, 1000, 7) == 11_689_512
    assert sum("running" in name for name, _ in small.named_buffers()) == (40 if norm == "batch" else 0)
    with torch.no_grad():
        assert small.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert large.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_groups_must_divide_the_channels():
    with pytest.raises(BadValue, match="groups: 48: must divide 64"):
        vision.resnet18(shape=(3, 32, 32), classes=10, norm="group", groups=48)


def test_the_lstm_of_the_paper():
    # two layers of 4 gates of 256 units from 8 and 256 inputs, with two biases each; 80 characters of 8 numbers; logits
    gates = 4 * 256 * (8 + 256 + 2) + 4 * 256 * (256 + 256 + 2)
    assert size(text.lstm(shape=(80,), classes=80)) == gates + 80 * 8 + 257 * 80


def test_words_behind_are_not_seen():
    torch.manual_seed(0)
    for make in (text.lstm, text.gru, text.transformer):
        model = make(shape=(6,), classes=5, target=(6,)).eval()
        x = torch.tensor([[0, 1, 2, 3, 4, 0]])
        other = x.clone()
        other[0, 4:] = 2
        with torch.no_grad():
            one, two = model(x), model(other)
        assert one.shape == (1, 5, 6)
        torch.testing.assert_close(one[..., :4], two[..., :4])
        assert not torch.allclose(one[..., 4], two[..., 4])


def test_a_rating_by_hand():
    model = text.matrix_factorisation(shape=(2,), users=2, items=3, factors=2)
    with torch.no_grad():
        model.users.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        model.items.weight.copy_(torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 5.0]]))
        model.biases[0].weight.copy_(torch.tensor([[0.5], [0.0]]))
        model.biases[1].weight.copy_(torch.tensor([[0.0], [0.0], [0.25]]))
        model.mean.fill_(3.0)
        ratings = model(torch.tensor([[0, 2], [1, 1]]))
    assert ratings.tolist() == [10 + 0.5 + 0.25 + 3, 0 + 3]
    with pytest.raises(BadValue, match="needs pairs of user and item"):
        text.matrix_factorisation(shape=(3,), users=2, items=3)


@pytest.mark.parametrize("name", ["lstm", "gru", "transformer"])
def test_texts_are_needed(name):
    with pytest.raises(BadValue, match=rf"{name}: needs texts of T words, not samples of shape \(1, 8, 8\)"):
        call(find("models", name), {}, {"shape": (1, 8, 8), "classes": 4, "target": ()})


@pytest.mark.parametrize(
    ("model", "engine"),
    [("cnn", "closed"), ({"name": "transformer", "dropout": 0.2, "width": 8, "heads": 2}, "lean")],
)
def test_they_learn_and_repeat(model, engine, tmp_path):
    data = "digits" if model == "cnn" else "tests.learn.test_losses:texts"
    given = {
        "data": {"name": data, "clients": 2, "partition": "iid"},
        "model": model,
        "strategy": {"name": "fedavg", "local": {"steps": 3, "batch_size": 8, "lr": 0.1}},
        "stop": {"rounds": 2},
        "compute": {"device": "cpu"},
        "record": {"report": False},
    }
    first, again = (fedsim.run(given, out=tmp_path) for _ in range(2))
    assert first.summary["engine"] == engine
    assert first.summary["weights_hash"] == again.summary["weights_hash"]
    losses = first.metrics()["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
