"""Crops, flips and noise come from a visit's own key: the same in every engine and number of processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import vmap

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.augment import crop, flip, noise
from fedsim.learn.data.dataset import Dataset
from fedsim.learn.masks import Draws

KEY = torch.tensor(99)
IMAGES = torch.arange(1.0, 1 + 200 * 2 * 4 * 5).view(200, 2, 4, 5)


def pictures(*, clients, seed):
    rng = np.random.default_rng(seed)
    y = torch.arange(7 * clients) % 3
    x = torch.from_numpy(rng.standard_normal((len(y), 1, 4, 5)).astype(np.float32)) + y[:, None, None, None]
    return Dataset("pictures", x, y, x.flip(0), y.flip(0), 3)


def doubled(x):
    return torch.cat([x, x])


def test_a_share_of_images_is_turned():
    turned = flip(x=IMAGES, draws=Draws(KEY), p=0.3)
    is_turned = (turned == IMAGES.flip(-1)).flatten(1).all(1)
    assert torch.equal(turned[~is_turned], IMAGES[~is_turned])
    # 200 images: a share of 0.3, give or take five standard deviations of sqrt(0.3 x 0.7 / 200)
    assert abs(float(is_turned.double().mean()) - 0.3) < 5 * (0.21 / 200) ** 0.5
    assert torch.equal(flip(x=IMAGES, draws=Draws(KEY), p=0.0), IMAGES)
    assert torch.equal(flip(x=IMAGES, draws=Draws(KEY), p=1.0), IMAGES.flip(-1))


def test_a_crop_is_a_window_of_the_padded_image():
    cropped = crop(x=IMAGES, draws=Draws(KEY), padding=2)
    wide = torch.nn.functional.pad(IMAGES, [2] * 4)
    seen = set()
    for image, window in zip(wide, cropped, strict=True):
        fits = [
            (i, j) for i in range(5) for j in range(5) if torch.equal(image[:, i : i + 4, j : j + 5], window)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 25  # of 200 images, all 25 shifts are there


def test_noise_has_its_deviation():
    noisy = noise(x=torch.zeros(1000, 10), draws=Draws(KEY), std=2.0)
    # the deviation of 10,000 numbers, give or take five times 2 / sqrt(20,000)
    assert abs(float(noisy.std()) - 2.0) < 5 * 2.0 / 20_000**0.5
    assert torch.equal(noise(x=IMAGES, draws=Draws(KEY), std=0.0), IMAGES)


@pytest.mark.parametrize("augment", [flip, crop])
def test_clients_in_a_stack_see_what_they_see_alone(augment):
    keys, x = torch.tensor([3, 4]), IMAGES[:10].view(2, 5, 2, 4, 5)
    stacked = vmap(lambda one, key: augment(x=one, draws=Draws(key)))(x, keys)
    for i, key in enumerate(keys):
        assert torch.equal(stacked[i], augment(x=x[i], draws=Draws(key)))
    assert not torch.equal(stacked[0] - x[0], stacked[1] - x[1])


def experiment(augment, **compute):
    local = {"epochs": 1, "batch_size": 3, "lr": 0.1, "augment": augment}
    return {
        "data": {"name": "tests.learn.test_augment:pictures", "clients": 3},
        "model": "softmax",
        "strategy": {"name": "dpsgd", "local": local},
        "topology": "ring",
        "stop": {"rounds": 2},
        "compute": {"device": "cpu", "dtype": "float64", **compute},
        "record": {"report": False},
    }


ALL = ["flip", {"name": "crop", "padding": 1}, {"name": "noise", "std": 0.1}]


def test_the_result_depends_on_no_engine_and_no_process(tmp_path):
    first = fedsim.run(experiment(ALL), out=tmp_path)
    assert first.summary["engine"] == "lean"  # gradients written out would see the inputs as they are
    again = fedsim.run(experiment(ALL, workers=2, engine="lean"), out=tmp_path)
    assert again.summary["weights_hash"] == first.summary["weights_hash"]
    stacked = fedsim.run(experiment(ALL, engine="stacked"), out=tmp_path)
    assert stacked.summary["loss"] == pytest.approx(first.summary["loss"], abs=1e-10)
    plain = fedsim.run(experiment([]), out=tmp_path)
    assert abs(plain.summary["loss"] - first.summary["loss"]) > 1e-3


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (["flop"], r"augment\.0.*no such augmentation; did you mean flip\?"),
        ([{"name": "flip", "p": 2.0}], r"augment\.0\.p: 2\.0: must be at most 1"),
        (["flip", "noise"], r"augment\.1\.std: is required"),
        (["tests.learn.test_augment:doubled"], r"augment\.0.* must return inputs of the same shape"),
    ],
)
def test_mistakes_are_one_line(augment, words):
    with pytest.raises(ConfigError, match=rf"^strategy\.local\.{words}") as caught:
        fedsim.check(experiment(augment))
    assert len(str(caught.value).splitlines()) == 1


def test_what_needs_images_says_so():
    given = experiment(["flip"])
    given["data"]["name"] = "tests.learn.odd_models:points"
    with pytest.raises(ConfigError, match=r"augment\.0.*flip: needs images .* not samples of shape \(4,\)"):
        fedsim.check(given)
