"""A task that no model can solve: a part of the training labels is wrong, and which is known."""

from __future__ import annotations

import numpy as np
import torch

from fedsim.learn.data.datasets import Dataset
from fedsim.rng import stream


def mislabelled(*, seed: int, samples: int = 480, wrong: float = 0.3) -> Dataset:
    """Four overlapping clouds in 12 dimensions, where a share of the training labels is drawn anew."""
    rng = stream(seed, "mislabelled")
    centres = 0.8 * rng.standard_normal((4, 12))
    truth = rng.integers(0, 4, samples + 600)
    x = (centres[truth] + rng.standard_normal((len(truth), 12))).astype(np.float32)
    labels, spoilt = truth.copy(), rng.random(len(truth)) < wrong
    labels[spoilt] = (truth[spoilt] + rng.integers(1, 4, int(spoilt.sum()))) % 4
    inputs = torch.from_numpy(x)
    return Dataset(
        "mislabelled",
        inputs[:samples],
        torch.from_numpy(labels[:samples]),
        inputs[samples:],
        torch.from_numpy(truth[samples:]),
        4,
        difficulty=spoilt[:samples].astype(float),
    )
