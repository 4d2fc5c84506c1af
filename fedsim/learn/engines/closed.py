"""Forward and backward written out, for chains of plain layers: no graph, no module call, one vector of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsim.learn.engines.base import Shard, TrainJob, Unfit
from fedsim.learn.engines.layers import Convolve, Dense, Flat, Layer, PoolPairs, Rectify, Tensors
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.local import LocalSGD, LocalUpdate, State
from fedsim.learn.several import leaves
from fedsim.learn.task import Batch, Task
from fedsim.pulse import beat

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


NLL, NLL_BACKWARD = torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss_backward.default
LOG_SOFTMAX_BACKWARD = torch.ops.aten._log_softmax_backward_data.default

MEAN, NO_LABEL = 1, -100
"""What torch calls a mean over the samples, and the label of none."""


class Closed(Sequential):
    """Gradients written out, for chains of plain layers: the fastest on a CPU.

    The rest is the sequential engine's; :mod:`fedsim.learn.engines.layers` has the layers.

    Args:
        task: model and loss.
        data: the clients' training data.

    Raises:
        Unfit: if the model is no chain of such layers.
    """

    def __init__(self, task: Task, data: Shard) -> None:
        super().__init__(task, data)
        if not isinstance(data.x, Tensor) or data.y.dim() > 1 or not data.x.is_floating_point():
            raise Unfit("its layers take numbers, and one target for each sample")
        if task.augment is not None:
            raise Unfit("inputs are augmented")
        self._layers = chain(task, data.x.shape[1:])
        # The first one with weights: nobody needs the gradient of what goes in there.
        self._first = next(i for i, one in enumerate(self._layers) if isinstance(one, Dense | Convolve))

    @torch.no_grad()
    def carried(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient [W] and the mean loss [] of a batch, which has no padding, and no buffers."""
        gradient = torch.empty_like(weights)
        loss = self._write(self.task.split(gradient), self.task.split(weights), leaves(batch.x)[0], batch.y)
        return gradient, loss, buffers

    def _write(self, gradient: Tensors, weights: Tensors, x: Tensor, y: Tensor) -> Tensor:
        """Write the mean gradient of a batch, parameter by parameter, and return the mean loss []."""
        kept = []
        for layer in self._layers:
            x, needed = layer.forward(weights, x)
            kept.append(needed)
        up, loss = (cross_entropy if self.task.classifies else half_square)(x, y)
        for place in reversed(range(self._first, len(self._layers))):
            up = self._layers[place].backward(weights, kept[place], up, gradient, place == self._first)
        return loss

    def _walked(self, job: TrainJob, own: Tensor, given: State) -> State:
        """Return a job's result; plain descent needs no memory that is not there before its first step."""
        return self._descended(job, own, given) if descends(job.update) else super()._walked(job, own, given)

    def draws(self, job: TrainJob) -> bool:
        """Tell whether anything may draw: none of these layers does, nor does plain descent."""
        return not descends(job.update)

    @cached_property
    def _desk(self) -> tuple[Tensor, Tensors]:
        """A vector of gradients [W], and its parts: the same for every job, as its memory is at hand then."""
        gradient = torch.empty(self.task.trained, dtype=self.task.dtype, device=self.task.device)
        return gradient, self.task.split(gradient)

    @torch.no_grad()
    def _descended(self, job: TrainJob, own: Tensor, given: State) -> State:
        """Go down the gradient in place: the numbers of the update's own steps, and their bits."""
        update, x, y = job.update, leaves(self.data.x)[0], self.data.y
        assert isinstance(update, LocalSGD)  # nothing else only descends
        state = update.init(given)
        state["weights"] = weights = state["weights"].clone()
        (gradient, into), parts = self._desk, self.task.split(weights)
        room = x.new_empty((job.rows.shape[-1], *x.shape[1:]))
        for index in self.rows(job, own):
            torch.index_select(x, 0, index, out=(batch := room[: len(index)]))
            loss = self._write(into, parts, batch, y.index_select(0, index))
            weights.add_(gradient.mul_(-update.step_size(state)))
            state |= {"loss": state["loss"] + loss, "steps": state["steps"] + 1}
            beat()
        return update.final(state)


def descends(update: LocalUpdate) -> bool:
    """Tell whether all that an update does in a step is to go down the gradient.

    >>> from fedsim.spec.experiment import Local
    >>> descends(LocalSGD(Local(epochs=1))), descends(LocalSGD(Local(epochs=1, momentum=0.9)))
    (True, False)
    """
    if not isinstance(update, LocalSGD):
        return False
    its_own = {name: getattr(type(update), name) for name in ("init", "step", "final", "step_size")}
    local, more = update.local, update.proximal or update.optimiser is not None
    more = more or local.momentum or local.weight_decay or local.clip_norm is not None
    return not more and all(one is getattr(LocalSGD, name) for name, one in its_own.items())


def cross_entropy(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the outputs [B, classes] and the mean cross entropy [] for labels [B]."""
    logs = outputs.log_softmax(-1)
    loss, count = NLL(logs, y, None, MEAN, NO_LABEL)
    up = NLL_BACKWARD(torch.ones_like(loss), logs, y, None, MEAN, NO_LABEL, count)
    return LOG_SOFTMAX_BACKWARD(up, logs, -1, logs.dtype), loss


def half_square(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the outputs [B] and the mean of half the squared distance [] to targets [B]."""
    apart = outputs - y
    return apart / len(y), 0.5 * (apart**2).mean()


def chain(task: Task, shape: Sequence[int]) -> list[Layer]:
    """Return a model's layers.

    Args:
        task: model and loss.
        shape: a sample's.

    Raises:
        Unfit: with the reason, if it is no chain of layers that are known here.

    >>> task = Task(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> [type(layer).__name__ for layer in chain(task, (2, 2))]
    ['Flat', 'Dense', 'Rectify', 'Dense']
    >>> chain(Task(nn.Sequential(nn.Linear(4, 3), nn.GELU())), (4,))
    Traceback (most recent call last):
    fedsim.learn.engines.base.Unfit: GELU is not among its layers
    """
    places = {name: place for place, (name, _) in enumerate(task.layout)}
    if not task.criterion.plain:
        raise Unfit(f"its gradients are known for no loss like {task.criterion.name}")
    if any(True for _ in task.module.buffers()):
        raise Unfit("the model has buffers")
    layers, x = [], torch.zeros(1, *shape, dtype=task.dtype, device=task.device)
    for name, part in _parts(task.module, ""):
        layers.append(_layer(part, name, places, x))
        with torch.no_grad():
            x = part(x)
    if places:
        raise Unfit(f"{next(iter(places))} belongs to none of its layers")
    return _pooled_early(layers)


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Return the layers of nested ``nn.Sequential`` in their order, with the beginnings of their parameters' names."""
    if any(getattr(module, hooks) for hooks in HOOKS):
        raise Unfit("the model has hooks")
    if type(module) is not nn.Sequential:
        yield name, module
        return
    for place, part in module.named_children():
        yield from _parts(part, f"{name}{place}.")


def _layer(part: nn.Module, name: str, places: dict[str, int], x: Tensor) -> Layer:
    """Return one layer, and take its parameters' places out of those left."""
    if type(part) is nn.Flatten:
        return Flat(part.start_dim, part.end_dim)
    if type(part) is nn.ReLU and not part.inplace:
        return Rectify()
    if type(part) is nn.MaxPool2d and _pairs(part, x):
        return PoolPairs()
    plain = type(part) is nn.Linear and x.dim() == 2
    images = type(part) is nn.Conv2d and x.dim() == 4 and part.padding_mode == "zeros"
    if not (plain or (images and not isinstance(part.padding, str))):
        raise Unfit(f"{type(part).__name__} is not among its layers")
    named = dict(part.named_parameters())
    if set(named) - {"weight", "bias"} or any(f"{name}{one}" not in places for one in named):
        raise Unfit(f"a parameter of {type(part).__name__} is frozen, or shared, or one of its own")
    found = [places.pop(f"{name}{one}") if one in named else None for one in ("weight", "bias")]
    weight, bias = found
    assert weight is not None  # both layers have one
    return Convolve(weight, bias, part) if isinstance(part, nn.Conv2d) else Dense(weight, bias)


def _pairs(pool: nn.MaxPool2d, x: Tensor) -> bool:
    """Tell whether a pool takes the largest of each two by two, with nothing left over."""
    square = (pool.kernel_size in (2, (2, 2)), pool.stride in (2, (2, 2)), pool.padding in (0, (0, 0)))
    plain = pool.dilation in (1, (1, 1)) and not pool.ceil_mode and not pool.return_indices
    return all(square) and plain and x.dim() == 4 and x.shape[-1] % 2 == 0 and x.shape[-2] % 2 == 0


def _pooled_early(layers: list[Layer]) -> list[Layer]:
    """Pool before cutting off what is negative, which gives the same from a quarter of the numbers."""
    for i, (one, other) in enumerate(pairwise(layers)):
        if isinstance(one, Rectify) and isinstance(other, PoolPairs):
            layers[i], layers[i + 1] = other, one
    return layers
