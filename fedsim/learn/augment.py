"""What is done to the inputs of a batch before a gradient: crops, flips and noise, drawn from the job's own key.

An augmentation is a function of inputs [B, …] and of a job's draws. What it draws follows from the key, the step and a
sample's place in the batch, so that it is the same in every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.masks import Draws
from fedsim.learn.several import X, leaves
from fedsim.parts import Count, NotNegative, bind, find
from fedsim.spec.blocks import Part

Augmentation = Callable[[X, Draws], X]


def flip(*, x: Tensor, draws: Draws, p: NotNegative = 0.5) -> Tensor:
    """Return images of which a share is turned left to right.

    Args:
        x: images [B, channels, height, width].
        draws: of the job.
        p: the share.

    Raises:
        BadValue: if it is no share.
    """
    if p > 1:
        raise BadValue("p", p, "must be at most 1")
    _images("flip", x)
    turned = draws.uniform((len(x), 1, 1, 1)) < p
    return torch.where(turned, x.flip(-1), x)


def crop(*, x: Tensor, draws: Draws, padding: Count = 4) -> Tensor:
    """Return images that are shifted by up to so many pixels, with zeros at the edges, as by padding and cropping.

    Args:
        x: images [B, channels, height, width].
        draws: of the job.
        padding: the most pixels of a shift, to each side.
    """
    _images("crop", x)
    height, width = x.shape[-2:]
    wide = torch.nn.functional.pad(x, [padding] * 4)
    down, right = (_shift(draws, x, padding) for _ in range(2))
    rows = down + torch.arange(height, device=x.device)[:, None]
    columns = right + torch.arange(width, device=x.device)[None, :]
    places = (rows * (width + 2 * padding) + columns).flatten(2)
    picked = wide.flatten(2).gather(2, places.expand(-1, x.shape[1], -1))
    return picked.view(x.shape)


def noise(*, x: Tensor, draws: Draws, std: NotNegative) -> Tensor:
    """Return inputs with Gaussian noise.

    Args:
        x: inputs [B, …], floating-point.
        draws: of the job.
        std: the standard deviation of the noise on each number.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise BadValue("name", "noise", "needs one floating-point input")
    return x + std * draws.normal(tuple(x.shape), x.dtype)


def augmentation(blocks: Sequence[Part], x: X) -> Augmentation | None:
    """Return what does one after the other, tried out on a sample; None if there is nothing to do.

    Args:
        blocks: names or dotted paths, with parameters.
        x: some inputs [B, …].

    Raises:
        BadValue: for one that is unknown, refuses its parameters, or does not fit the inputs.

    >>> blocks = [Part.model_validate({"name": "flip", "p": 1.0})]
    >>> turn = augmentation(blocks, torch.zeros(1, 1, 1, 2))
    >>> turn(torch.tensor([[[[1.0, 2.0]]]]), Draws(torch.tensor(0)))
    tensor([[[[2., 1.]]]])
    """
    steps = []
    for index, block in enumerate(blocks):
        try:
            step = bind(find("augmentations", block.name), block.params, ("x", "draws"))
            found = step(x=x, draws=Draws(torch.tensor(0, device=leaves(x)[0].device)))
            if not _alike(found, x):
                raise BadValue("name", block.name, "must return inputs of the same shape and type")
        except BadValue as error:
            key = f"local.augment.{index}.{error.key}"
            raise BadValue(key, error.value, error.rule, error.hint) from error
        steps.append(step)
    return Steps(steps) if steps else None


class Steps:
    """One augmentation after another.

    Args:
        steps: functions of ``x`` and ``draws``.
    """

    def __init__(self, steps: Sequence[Callable[..., X]]) -> None:
        self.steps = steps

    def __call__(self, x: X, draws: Draws) -> X:
        """Return inputs of the same shape."""
        for step in self.steps:
            x = step(x=x, draws=draws)
        return x


def _alike(found: Any, x: X) -> bool:
    """Tell whether an augmentation has returned what it may."""
    if type(found) is not type(x):
        return False
    pairs = zip(leaves(found), leaves(x), strict=False)
    same = all(isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    return same and len(leaves(found)) == len(leaves(x))


def _shift(draws: Draws, x: Tensor, padding: int) -> Tensor:
    return draws.bits((len(x), 1, 1, 1)) % (2 * padding + 1)


def _images(name: str, x: X) -> None:
    if not isinstance(x, Tensor):
        raise BadValue("name", name, "is for one input, and these samples have several")
    if x.dim() != 4:
        raise BadValue(
            "name", name, f"needs images (channels, height, width), not samples of shape {tuple(x.shape[1:])}"
        )
