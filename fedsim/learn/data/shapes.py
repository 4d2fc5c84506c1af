"""Shapes: small colour pictures that are made, for networks that look at pictures, where there are no files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.errors import BadValue
from fedsim.learn.data.dataset import Dataset
from fedsim.machine import require_room
from fedsim.parts import Count, NotNegative
from fedsim.rng import stream

Array = NDArray[Any]

SHAPES = ("disc", "ring", "square", "frame", "diamond", "triangle", "plus", "cross", "bars", "stripes")
"""What is on a picture, in the order of the classes."""


def shapes(
    *,
    samples: Count = 60,
    size: Count = 32,
    noise: NotNegative = 0.4,
    noise_spread: NotNegative = 0.0,
    colour_spread: NotNegative = 0.0,
    test_samples: Count = 1000,
    clients: int,
    seed: int,
) -> Dataset:
    """Return colour pictures of ten shapes, somewhere on a plain ground, one group for each client; needs no files.

    Clients have all classes alike, and can differ in two ways that labels do not show: in how noisy their pictures are,
    so that some clients are harder than others, and in the colours that they have.

    Args:
        samples: how many training pictures a client has.
        size: how many pixels high and wide they are.
        noise: the mean of the standard deviation of the noise on every pixel, whose values are about between 0 and 1.
        noise_spread: how far clients differ in it: client i has ``noise`` (1 + noise_spread u) with u uniform between
            -1 and 1; at most 1. The test has the mean noise.
        colour_spread: how far clients differ in colours: their own shift, of the three channels, is normal with that
            standard deviation.
        test_samples: how many pictures the test has.
        clients: how many natural clients there are.
        seed: which pictures. A client's do not depend on how many clients there are.

    Returns:
        Pictures [N, 3, size, size] in float32 and 10 classes; the standard deviation of its noise is how difficult a
        picture is known to be.

    Raises:
        BadValue: if the noise spread is above 1, or pictures are too small to tell shapes apart.

    >>> made = shapes(samples=5, size=12, clients=3, test_samples=20, seed=0)
    >>> made.shape, made.classes, made.groups.tolist()
    ((3, 12, 12), 10, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    """
    if noise_spread > 1:
        raise BadValue("noise_spread", noise_spread, "must be at most 1, where the least noise is 0")
    if size < 12:
        raise BadValue("size", size, "must be at least 12 pixels, to tell shapes apart")
    total = clients * samples + test_samples
    require_room("samples", samples, 60.0 * total * size * size, f"{total} pictures")
    made, hard = [], []
    for client in range(clients):
        rng = stream(seed, "shapes", client)
        level = noise * (1 + noise_spread * rng.uniform(-1, 1))
        made.append(_pictures(samples, size, level, colour_spread * rng.normal(0, 1, 3), rng))
        hard.append(level)
    test = _pictures(test_samples, size, noise, np.zeros(3), stream(seed, "shapes test"))
    train = (np.concatenate(part) for part in zip(*made, strict=True))
    x, y, x_test, y_test = (torch.from_numpy(part) for part in (*train, *test))
    groups, difficulty = np.repeat(np.arange(clients), samples), np.repeat(np.array(hard), samples)
    return Dataset("shapes", x, y, x_test, y_test, 10, groups, difficulty=difficulty)


def _pictures(
    count: int, size: int, noise: float, shift: Array, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return pictures [N, 3, size, size] and what is on them [N]."""
    labels = rng.integers(0, len(SHAPES), count)
    place, radius = rng.uniform(-0.35, 0.35, (2, count, 1, 1)), rng.uniform(0.35, 0.6, (count, 1, 1))
    # Bright shapes on a dark ground, or there might be nothing to see.
    colours = np.stack([rng.uniform(0.5, 1, (count, 3, 1, 1)), rng.uniform(0, 0.4, (count, 3, 1, 1))])
    line = np.linspace(-1, 1, size)
    across, down = (line[None, None, :] - place[0]) / radius, (line[None, :, None] - place[1]) / radius
    on = _inside(across, down)[labels, np.arange(count)][:, None]
    pictures = np.where(on, colours[0], colours[1]) + shift[:, None, None]
    pictures += noise * rng.standard_normal(pictures.shape)
    return pictures.astype(np.float32), labels


def _inside(x: Array, y: Array) -> Array:
    """Return where each shape of radius 1 around 0 is [shapes, N, size, size]."""
    far, most, least = np.hypot(x, y), np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    box, steps = most < 0.9, np.abs(x) + np.abs(y)
    plus = box & (least < 0.3)
    turned = np.minimum(np.abs(x - y), np.abs(x + y)) < 0.4
    bars = box & (np.abs(np.abs(x) - 0.6) < 0.25)
    stripes = box & (np.abs(np.abs(y) - 0.6) < 0.25)
    masks = {
        "disc": far < 1,
        "ring": (far < 1) & (far > 0.6),
        "square": box,
        "frame": box & (most > 0.5),
        "diamond": steps < 1.1,
        "triangle": (np.abs(y) < 0.9) & (np.abs(x) < (y + 0.9) / 1.8),
        "plus": plus,
        "cross": box & turned,
        "bars": bars,
        "stripes": stripes,
    }
    return np.stack([masks[name] for name in SHAPES])
