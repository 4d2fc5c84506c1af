"""Larger models of images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.errors import BadValue
from fedsim.learn.models.builtin import check_classes, image_shape
from fedsim.parts import Count

LARGE = 64
"""Images with sides from here on are made smaller first, as those of ImageNet are."""


def cnn(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the convolutional network of the paper on federated averaging.

    Args:
        shape: (channels, height, width), both sides at least 4.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 1,663,370 parameters for 1 x 28 x 28 and 10 classes.

    Raises:
        BadValue: if the samples are no such images.

    References:
        McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017.

    >>> sum(p.numel() for p in cnn(shape=(1, 28, 28), classes=10).parameters())
    1663370
    """
    check_classes("cnn", classes)
    channels, height, width = image_shape("cnn", shape, 4)
    layers = [
        *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 512), nn.ReLU()),
    ]
    return nn.Sequential(*layers, nn.Linear(512, classes))


def resnet18(
    *, shape: tuple[int, ...], classes: int, norm: Literal["batch", "group"] = "batch", groups: Count = 32
) -> nn.Module:
    """Return ResNet-18, with batch or group normalisation.

    On images with sides below 64 the first convolution is 3 x 3 without stride and pool, as is usual on CIFAR.

    Args:
        shape: (channels, height, width), both sides at least 8.
        classes: how many classes there are.
        norm: ``batch`` keeps statistics, which ``strategy.buffers`` says what to do with; ``group`` keeps nothing.
        groups: how many groups each normalisation has.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 11,173,962 parameters for 3 x 32 x 32 and 10 classes.

    Raises:
        BadValue: if the samples are no such images, or the groups do not divide 64 channels.

    References:
        He et al., Deep residual learning for image recognition, CVPR 2016.
        Wu and He, Group normalization, ECCV 2018.

    >>> sum(p.numel() for p in resnet18(shape=(3, 32, 32), classes=10).parameters())
    11173962
    """
    check_classes("resnet18", classes)
    channels, height, width = image_shape("resnet18", shape, 8)
    if norm == "group" and 64 % groups:
        raise BadValue("groups", groups, "must divide 64, the number of channels of the first layers")
    of = groups if norm == "group" else 0
    if min(height, width) < LARGE:
        first = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), _norm(64, of), nn.ReLU()]
    else:
        wide = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        first = [wide, _norm(64, of), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    sizes = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
    stages = [block for a, b, stride in sizes for block in (Basic(a, b, stride, of), Basic(b, b, 1, of))]
    return nn.Sequential(*first, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


class Basic(nn.Module):
    """Two 3 x 3 convolutions and a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution.
        groups: of the normalisation; 0 takes batch normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        self.first = _convolved(inputs, outputs, 3, stride, groups)
        self.second = _convolved(outputs, outputs, 3, 1, groups)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _convolved(inputs, outputs, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


def _convolved(inputs: int, outputs: int, side: int, stride: int, groups: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, _norm(outputs, groups))


def _norm(channels: int, groups: int) -> nn.Module:
    return nn.GroupNorm(groups, channels) if groups else nn.BatchNorm2d(channels)
