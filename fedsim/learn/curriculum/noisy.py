"""A dataset around another one, whose samples are made hard in a way that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data.datasets import Dataset
from fedsim.parts import NotNegative, Share
from fedsim.rng import stream

NOISY = "noisy "
"""How the names of such data begin."""


def noisy(
    *,
    of: str | dict[str, Any] = "mnist",
    levels: list[NotNegative],
    wrong: Share = 0.0,
    clients: int,
    seed: int,
    root: Path | None = None,
    beside: Path | None = None,
) -> Dataset:
    """Return another dataset, whose training inputs get noise and whose labels may be wrong; the test stays clean.

    Args:
        of: the other dataset: its name, or a block with its name and parameters.
        levels: standard deviations of the Gaussian noise of a sample, in the unit of the inputs; each is as likely as
            any other.
        wrong: the share of the labels that are replaced by another class.
        clients: how many natural clients there are, where the other dataset asks.
        seed: which sample has which noise.
        root: the data folder.
        beside: where a dotted path of the other dataset is looked up.

    Returns:
        The dataset; its ``difficulty`` is the standard deviation of each sample's noise, and one more than the largest
        where the label is wrong.

    Raises:
        BadValue: if there is no level, wrong labels are asked of data without classes, or the other dataset is unknown,
            refuses its parameters, or has such noise already.

    >>> data = noisy(of="digits", levels=[0.0, 0.5], clients=2, seed=0)
    >>> sorted(set(data.difficulty.tolist())), data.name
    ([0.0, 0.5], 'noisy digits')
    """
    if not levels:
        raise BadValue("levels", levels, "give at least 1 level")
    name, params = (
        (of, {}) if isinstance(of, str) else (str(of.get("name")), {k: of[k] for k in of if k != "name"})
    )
    try:
        source = parts.call(
            parts.find("datasets", name, beside),
            params,
            {"clients": clients, "seed": seed, "root": root, "beside": beside},
        )
    except BadValue as error:
        key = "of" if error.key == "name" else f"of.{error.key}"
        raise BadValue(key, error.value, error.rule, error.hint) from error
    if source.name.startswith(NOISY):  # both would draw the same noise, and only one be told of
        raise BadValue("of", name, "has noise already", "give all levels to one")
    if not isinstance(source.x, Tensor):
        raise BadValue("of", name, "has several inputs, and noise is for one")
    draw = stream(seed, "noise")
    difficulty = np.asarray(levels, dtype=float)[draw.integers(len(levels), size=len(source.y))]
    noise = torch.from_numpy(draw.standard_normal(tuple(source.x.shape), dtype=np.float32)).to(source.x.dtype)
    scale = torch.from_numpy(difficulty).to(source.x.dtype).view(-1, *[1] * len(source.shape))
    x, y = source.x + scale * noise, source.y
    if wrong:
        y, false = _mistaken(source, wrong, stream(seed, "wrong labels"))
        difficulty[false] = max(levels) + 1
    noised: Dataset = replace(source, name=f"{NOISY}{source.name}", x=x, y=y, difficulty=difficulty)
    return noised


def _mistaken(source: Dataset, share: float, rng: np.random.Generator) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the labels with a share of them wrong, and which."""
    if source.classes < 2:
        raise BadValue(
            "wrong", share, "labels can be wrong where there are at least 2 classes", "leave it out"
        )
    false = rng.permutation(len(source.y))[: round(share * len(source.y))]
    y = source.y.clone()
    y[false] = (y[false] + torch.from_numpy(rng.integers(1, source.classes, len(false)))) % source.classes
    return y, false
