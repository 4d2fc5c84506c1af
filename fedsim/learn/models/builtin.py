"""Models, and the way to build any model reproducibly.

A model is a function of one sample's shape and the number of classes. What a model keeps in training, such as batch
statistics, and what it draws is found out by trying it: see :mod:`fedsim.learn.trial`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsim.errors import MISSING, BadValue, FedsimError
from fedsim.learn.raised import passes, told
from fedsim.learn.several import Shape
from fedsim.machine import require_room
from fedsim.parts import call


def linear(*, shape: tuple[int, ...], target: tuple[int, ...] = ()) -> nn.Module:
    """Return a linear function without a bias, for regression.

    Args:
        shape: a sample's shape; its values are read as one vector of d numbers.
        target: the shape of its targets, () if it has one.

    Returns:
        A module from [B, *shape] to [B, *target] whose only parameter holds d weights for each target.

    >>> linear(shape=(5,))(torch.ones(3, 5)).shape, linear(shape=(5,), target=(2,))(torch.ones(3, 5)).shape
    (torch.Size([3]), torch.Size([3, 2]))
    """
    last = nn.Linear(_size(shape), _size(target), bias=False)
    return nn.Sequential(nn.Flatten(), last, *_shaped(target))


def softmax(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return multinomial logistic regression; like all classifiers here it gives logits.

    Args:
        shape: a sample's shape; its values are read as one vector.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes].

    >>> softmax(shape=(1, 28, 28), classes=10)(torch.ones(3, 1, 28, 28)).shape
    torch.Size([3, 10])
    """
    check_classes("softmax", classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(_size(shape), classes))


def mlp(
    *,
    shape: tuple[int, ...],
    classes: int,
    target: tuple[int, ...] = (),
    hidden: list[int] | int = 64,
) -> nn.Module:
    """Return a multi-layer perceptron with ReLU between its layers.

    Args:
        shape: a sample's shape; its values are read as one vector.
        classes: how many classes there are, 0 for numbers to predict.
        target: the shape of a sample's targets, () if it has one.
        hidden: the width of the hidden layer, or the widths of several in order.

    Returns:
        A module from [B, *shape] to logits [B, classes]; or without classes to [B, *target].

    Raises:
        BadValue: if there is no hidden layer or one is empty.

    >>> model = mlp(shape=(1, 28, 28), classes=10, hidden=100)
    >>> sum(p.numel() for p in model.parameters())
    79510
    """
    widths = [hidden] if isinstance(hidden, int) else hidden
    if not widths or min(widths) < 1:
        raise BadValue(
            "hidden", hidden, "every hidden layer needs a width of at least 1", "use softmax for none"
        )
    sizes, outputs = [_size(shape), *widths], classes or _size(target)
    weights = sum(a * b for a, b in pairwise([*sizes, outputs]))
    require_room("hidden", hidden, 3 * 4.0 * weights, f"{weights:.3g} weights, a gradient and a client's own")
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    shaped = [] if classes else _shaped(target)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], outputs), *shaped)


def lenet5(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return LeNet-5 with ReLU and max-pooling.

    On images with a side below 20 both convolutions are padded by 2, since little would be left of them
    otherwise.

    Args:
        shape: (channels, height, width), both sides at least 4.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 44,426 parameters for 1 x 28 x 28 and 10 classes.

    Raises:
        BadValue: if the samples are no such images.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 1998.

    >>> lenet5(shape=(1, 8, 8), classes=10)(torch.ones(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """
    check_classes("lenet5", classes)
    channels, height, width = image_shape("lenet5", shape, 4)
    padding = 2 if min(height, width) < 20 else 0
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    wide = nn.Linear(_outputs(features, shape), 120)
    return nn.Sequential(*features, wide, nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes))


def gn_lenet(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return GN-LeNet: three convolutions with group normalisation and one linear layer.

    The first block pools before it normalises, the others after, as in the code of published experiments. On
    images with a side below 15 the pools are padded by 1, since nothing would be left for the last one.

    Args:
        shape: (channels, height, width), both sides at least 2.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 85,354 parameters for 3 x 32 x 32 and 10 classes.

    Raises:
        BadValue: if the samples are no such images.

    References:
        Hsieh et al., The non-IID data quagmire of decentralized machine learning, ICML 2020.

    >>> gn_lenet(shape=(3, 32, 32), classes=10)(torch.ones(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_classes("gn-lenet", classes)
    channels, height, width = image_shape("gn-lenet", shape, 2)
    padding = 1 if min(height, width) < 15 else 0
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, padding=padding),
        nn.GroupNorm(2, 32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.GroupNorm(2, 32),
        nn.MaxPool2d(3, 2, padding=padding),
        nn.ReLU(),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.GroupNorm(2, 64),
        nn.MaxPool2d(3, 2, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
    )
    return nn.Sequential(*features, nn.Linear(_outputs(features, shape), classes))


def resnet8_gn(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return an 8-layer residual network with group normalisation in the place of batch normalisation.

    Three stages of one basic block with 16, 32 and 64 channels, built like the first paper's networks for
    CIFAR-10, with the second paper's normalisation in 8 groups.

    Args:
        shape: (channels, height, width), both sides at least 4.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 78,042 parameters for 3 x 32 x 32 and 10 classes.

    Raises:
        BadValue: if the samples are no such images.

    References:
        He et al., Deep residual learning for image recognition, CVPR 2016.
        Wu and He, Group normalization, ECCV 2018.

    >>> resnet8_gn(shape=(3, 32, 32), classes=10)(torch.ones(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_classes("resnet8-gn", classes)
    channels, _, _ = image_shape("resnet8-gn", shape, 4)
    return nn.Sequential(
        _conv_norm(channels, 16),
        nn.ReLU(),
        _Residual(16, 16),
        _Residual(16, 32, stride=2),
        _Residual(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def resnet9_gn(*, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a 9-layer residual network with group normalisation in the place of batch normalisation.

    Eight convolutions of 64 to 512 channels, each with normalisation in 32 groups, in which two pairs are passed by;
    and one linear layer.

    Args:
        shape: (channels, height, width), both sides at least 4.
        classes: how many classes there are.

    Returns:
        A module from [B, *shape] to logits [B, classes]; 6,621,540 parameters for 3 x 32 x 32 and 100 classes.

    Raises:
        BadValue: if the samples are no such images.

    References:
        He et al., Deep residual learning for image recognition, CVPR 2016.
        Wu and He, Group normalization, ECCV 2018.

    >>> sum(p.numel() for p in resnet9_gn(shape=(3, 32, 32), classes=100).parameters())
    6621540
    """
    check_classes("resnet9-gn", classes)
    channels, _, _ = image_shape("resnet9-gn", shape, 4)
    features = nn.Sequential(
        _conv_relu(channels, 64),
        _conv_relu(64, 128, pool=2),
        _Around(_conv_relu(128, 128), _conv_relu(128, 128)),
        _conv_relu(128, 256, pool=2),
        _conv_relu(256, 512, pool=2),
        _Around(_conv_relu(512, 512), _conv_relu(512, 512)),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*features, nn.Linear(512, classes))


def build(
    make: Callable[..., nn.Module],
    params: Mapping[str, Any],
    shape: Shape,
    classes: int,
    rng: np.random.Generator,
    target: tuple[int, ...] = (),
    counts: tuple[int, ...] = (),
) -> nn.Module:
    """Build any model reproducibly.

    Args:
        make: a function of this module, or anybody's module class or function; ``shape`` and ``classes`` are
            supplied if it names them.
        params: the user's parameters for it.
        shape: one sample's shape; of several inputs their shapes, in order or by name.
        classes: how many classes there are, 0 for regression.
        target: the shape of one sample's targets, () if it has one; supplied, too.
        counts: how many values each number of an input can have, or () if nobody knows; supplied, too.
        rng: the only thing the initial weights depend on; torch's own generator is left as it was.

    Returns:
        The model, in float32 unless ``make`` chooses otherwise.

    Raises:
        BadValue: if a parameter is refused, or (key ``name``) if the model cannot be made, or has nothing to train.

    >>> first, second = (build(nn.Linear, {"in_features": 2, "out_features": 1}, (2,), 0,
    ...                        np.random.default_rng(5)) for _ in range(2))
    >>> torch.equal(first.weight, second.weight)
    True
    """
    name = getattr(make, "__name__", str(make))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        try:
            known = {"shape": shape, "classes": classes, "target": target, "counts": counts}
            model = call(make, params, known)
        except FedsimError:
            raise
        except (
            BaseException
        ) as error:  # whatever a user's module raises, from wrong sizes to the end of the program
            if passes(error):
                raise
            raise BadValue("name", name, f"cannot be made: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise BadValue("name", name, f"must return a torch.nn.Module, not a {type(model).__name__}")
    _check_weights(name, model)
    return model


class _Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv_norm(inputs, outputs, 3, stride)
        self.second = _conv_norm(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).relu())
        return torch.relu(y + self.shortcut(x))


class _Around(nn.Module):
    """Layers, and their input added to what they return."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y


def _conv_relu(inputs: int, outputs: int, pool: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(32, outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool, ceil_mode=True)] if pool > 1 else []))


def _conv_norm(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(8, outputs))


def _size(shape: tuple[int, ...]) -> int:
    if not isinstance(shape, tuple) or not all(isinstance(one, int) for one in shape):
        rule = f"takes one input, and these samples have several: {shape}"
        raise BadValue("name", MISSING, rule, "take a model of your own, whose forward takes them")
    return int(np.prod(shape, dtype=np.int64))


def _shaped(target: tuple[int, ...]) -> list[nn.Module]:
    """Return what makes numbers [B, n] as many as there are targets [B, *target]."""
    if not target:
        return [nn.Flatten(0)]
    return [nn.Unflatten(1, target)] if len(target) > 1 else []


def _outputs(features: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many numbers ``features`` makes of one sample."""
    with torch.no_grad():
        return int(features(torch.zeros(1, *shape)).shape[1])


def image_shape(name: str, shape: tuple[int, ...], side: int) -> tuple[int, int, int]:
    """Return channels, height and width of images with sides of at least so many pixels, or refuse a model by name."""
    if len(shape) != 3 or min(shape[1:]) < side:
        rule = (
            f"needs images (channels, height, width) of {side} x {side} or more, not samples of shape {shape}"
        )
        raise BadValue("name", name, rule, "use softmax or mlp")
    return shape[0], shape[1], shape[2]


def check_classes(name: str, classes: int) -> None:
    """Refuse a model by name that classifies where there is nothing to choose from."""
    if classes < 2:
        raise BadValue(
            "name", name, f"classifies and needs at least 2 classes, not {classes}", "use linear or mlp"
        )


def _check_weights(name: str, model: nn.Module) -> None:
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise BadValue(
            "name", name, "has lazy layers, whose weights do not exist yet", "write out their sizes"
        )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_complex():
            rule = f"has complex numbers ({path}), and everything here is real"
            raise BadValue(
                "name", name, rule, "keep real and imaginary parts, as torch.view_as_real gives them"
            )
    if not any(weight.requires_grad for weight in model.parameters()):
        raise BadValue("name", name, "has no trainable parameters")
