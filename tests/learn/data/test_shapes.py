"""Colour pictures that are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import BadValue
from fedsim.learn.data.shapes import SHAPES, shapes


def images(**more: float) -> np.ndarray:
    data = shapes(
        **{"clients": 1, "samples": 400, "size": 32, "noise": 0.0, "test_samples": 1, "seed": 0, **more}
    )  # type: ignore[arg-type]
    assert isinstance(data.x, torch.Tensor)
    return data.x.numpy()


def test_a_clients_pictures_do_not_depend_on_how_many_clients_there_are() -> None:
    few, many = (shapes(clients=clients, samples=6, size=12, seed=3) for clients in (2, 5))
    assert torch.equal(few.x, many.x[:12])  # type: ignore[arg-type, index]
    assert torch.equal(few.y, many.y[:12])
    assert torch.equal(few.x_test, many.x_test)  # type: ignore[arg-type]


def test_without_noise_a_picture_has_two_colours_and_the_shape_is_the_brighter_one() -> None:
    for picture in images():
        colours = np.unique(picture.reshape(3, -1).T, axis=0)
        assert len(colours) == 2
        assert (colours[1] > colours[0]).all() or (colours[0] > colours[1]).all()


def test_each_shape_covers_what_geometry_says() -> None:
    """Shares of a square of side 2 around shapes of radius 1; pixels of 1/32 make a few hundredths of difference."""
    from fedsim.learn.data.shapes import _inside

    line = (np.arange(400) + 0.5) / 200 - 1
    x, y = line[None, None, :], line[None, :, None]
    covers = dict(zip(SHAPES, _inside(x, y)[:, 0].mean((1, 2)), strict=True))
    assert covers["disc"] == pytest.approx(np.pi / 4, abs=0.01)
    assert covers["ring"] == pytest.approx(np.pi * (1 - 0.36) / 4, abs=0.01)
    assert covers["square"] == pytest.approx(0.81, abs=0.01)
    assert covers["frame"] == pytest.approx(0.81 - 0.25, abs=0.01)
    assert covers["diamond"] == pytest.approx((2.42 - 4 * 0.01) / 4, abs=0.01)  # corners beyond 1 are cut off
    assert covers["triangle"] == pytest.approx(2 * 1.8 / 2 / 4, abs=0.01)  # a base of 2 and a height of 1.8
    assert covers["plus"] == pytest.approx((2 * 1.8 * 0.6 - 0.36) / 4, abs=0.01)
    assert covers["bars"] == covers["stripes"] == pytest.approx(2 * 1.8 * 0.5 / 4, abs=0.01)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_clients_differ_in_their_noise_as_they_are_known_to(spread: float) -> None:
    data = shapes(clients=20, samples=30, size=16, noise=0.3, noise_spread=spread, seed=2)
    assert data.difficulty is not None
    levels = data.difficulty.reshape(20, 30)
    assert (levels == levels[:, :1]).all()
    assert isinstance(data.x, torch.Tensor)
    # Neighbouring pixels of the outermost row are ground: their difference has the variance of two noises.
    edge = data.x.numpy()[:, :, 0]
    measured = (np.diff(edge)[..., ::2] / np.sqrt(2)).reshape(20, -1).std(1)
    np.testing.assert_allclose(measured, levels[:, 0], rtol=0.1, atol=0.003)
    assert (levels.std() > 0.1) == (spread > 0)
    assert levels.min() >= 0
    assert levels.max() <= 0.3 * (1 + spread) + 1e-12


def test_clients_differ_in_colours_as_far_as_they_are_told_to() -> None:
    data = shapes(clients=60, samples=40, size=12, noise=0.0, colour_spread=0.5, seed=1)
    assert isinstance(data.x, torch.Tensor)
    means = data.x.reshape(60, 40, 3, -1).mean((1, 3))
    assert 0.4 < means.std() < 0.6


def test_all_classes_are_everywhere() -> None:
    data = shapes(clients=4, samples=200, size=12, seed=0)
    for client in range(4):
        assert (data.y[data.groups == client].bincount(minlength=10) > 5).all()


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(BadValue, match=r"noise_spread: 1\.5: must be at most 1"):
        shapes(clients=2, noise_spread=1.5, seed=0)
    with pytest.raises(BadValue, match="size: 11: must be at least 12 pixels"):
        shapes(clients=2, size=11, seed=0)


def test_a_curriculum_may_order_by_the_known_difficulty() -> None:
    experiment = {
        "data": {
            "name": "shapes",
            "clients": 4,
            "samples": 8,
            "size": 12,
            "test_samples": 20,
            "partition": "natural",
        },
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
        "stop": {"rounds": 1},
    }
    assert fedsim.check(experiment).data.name == "shapes"
