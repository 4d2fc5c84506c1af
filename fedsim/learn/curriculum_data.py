"""A dataset around another one, whose samples are made hard in a way that is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data import Dataset
from fedsim.parts import NotNegative
from fedsim.rng import stream


def noisy(
    *,
    of: str | dict[str, Any] = "mnist",
    levels: list[NotNegative],
    clients: int,
    seed: int,
    root: Path | None = None,
) -> Dataset:
    """Return another dataset, each training sample with Gaussian noise of one of some strengths; the test stays clean.

    Args:
        of: the other dataset: its name, or a block with its name and parameters.
        levels: standard deviations of the noise, in the unit of the inputs; each is as likely as any other.
        clients: how many natural clients there are, where the other dataset asks.
        seed: which sample has which noise.
        root: the data folder.

    Returns:
        The dataset; its ``difficulty`` is the standard deviation of each sample's noise.

    Raises:
        BadValue: if there is no level, or the other dataset is unknown or refuses its parameters.

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
            parts.find("datasets", name), params, {"clients": clients, "seed": seed, "root": root}
        )
    except BadValue as error:
        key = "of" if error.key == "name" else f"of.{error.key}"
        raise BadValue(key, error.value, error.rule, error.hint) from error
    draw = stream(seed, "noise")
    difficulty = np.asarray(levels)[draw.integers(len(levels), size=len(source.y))]
    noise = torch.from_numpy(draw.standard_normal(tuple(source.x.shape), dtype=np.float32)).to(source.x.dtype)
    scale = torch.from_numpy(difficulty).to(source.x.dtype).view(-1, *[1] * len(source.shape))
    noised: Dataset = replace(
        source, name=f"noisy {source.name}", x=source.x + scale * noise, difficulty=difficulty
    )
    return noised
