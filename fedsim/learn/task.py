"""A model and a loss, as functions of one flat vector of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.learn.contents import Leaf
from fedsim.learn.losses import Loss, loss_of
from fedsim.learn.masks import Draws
from fedsim.learn.measured import Metric
from fedsim.learn.several import Several, X


class Batch(NamedTuple):
    """Samples of one step.

    Args:
        x: inputs [B, …]; several where a model takes several.
        y: labels or targets [B].
        weight: 1 for a sample, 0 for padding [B].
    """

    x: X
    y: Tensor
    weight: Tensor


Gradient = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""From weights [W] and a batch to the mean gradient [W] and the mean loss []."""

Augment = Callable[[X, Draws], X]
"""From inputs [B, …] to others of the same shape."""

Held = Literal["average", "local", "fedbn", "server"]
"""Whose buffers a client trains with: see :attr:`fedsim.spec.experiment.Strategy.buffers`."""


class Task:
    """What is learned: a model whose whole state is one vector, and a loss.

    The vector [P] has the W weights first, and behind them the numbers in the buffers that training changes, such as
    running means. What a local update computes with are the weights alone; the engine carries the buffers along.
    The model is in training mode where a gradient is computed, and in evaluation mode everywhere else.

    Args:
        module: the model; its trainable parameters in the order of ``named_parameters`` make up the weights.
        loss: what is to be small, or its name: ``"cross_entropy"``, ``"half_square"`` …
        device: where weights and data live.
        dtype: their type.
        buffers: the names of the buffers that training changes, in order.
        held: whose they are.

    Attributes:
        draws: whether the model draws random numbers in training, with torch's own generators.
        drops: whether it drops out by masks that follow from a job's key, as ``nn.Dropout`` does.
        mixes: whether its outputs for a sample depend on the others in a batch in training.
        augment: what is done to the inputs of a batch before a gradient, with a job's draws, or None.
        metrics: what is measured on the held-out data beside loss and accuracy, by name.
        fixed: what it had beside its weights when it was tried out; empty if that has not been done.
        kept: the names of the weights that the strategy leaves with each client.

    >>> task = Task(nn.Linear(2, 3), "cross_entropy")
    >>> task.size, [shape for _, shape in task.layout]
    (9, [(3, 2), (3,)])
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | Loss = "cross_entropy",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        buffers: Sequence[str] = (),
        held: Held = "average",
    ) -> None:
        self.module = module.to(device=device, dtype=dtype)
        self.module.eval()  # many an overridden train() returns nothing, and eval() calls it
        self.device, self.dtype, self.held = torch.device(device), dtype, held
        self.criterion = loss_of(loss) if isinstance(loss, str) else loss
        self.draws, self.drops = False, False
        self.mixes = False
        self.augment: Augment | None = None
        self.metrics: dict[str, Metric] = {}
        self.fixed: dict[str, Leaf] = {}
        self.kept: tuple[str, ...] = ()
        named = {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        kept = {name: self.module.get_buffer(name).detach() for name in buffers}
        self.buffers = list(kept)
        self.trained = sum(p.numel() for p in named.values())
        self.layout = [(name, tuple(p.shape)) for name, p in (named | kept).items()]
        self.initial = torch.cat([p.reshape(-1).to(dtype) for p in (named | kept).values()])
        self._sizes = [p.numel() for p in (named | kept).values()]
        self._types = {name: buffer.dtype for name, buffer in kept.items()}

    def named_by(self) -> object:
        """Name all that a local update depends on.

        What is measured beside loss and accuracy is not among that, nor what follows from the rest and is there once
        somebody has asked for it.
        """
        idle = {"metrics", "norms", "own"} | (set() if self.kept else {"kept"})
        return {name: one for name, one in vars(self).items() if name not in idle}

    @property
    def classifies(self) -> bool:
        """Whether targets are labels, of which the right ones can be counted."""
        return self.criterion.classifies

    @property
    def size(self) -> int:
        """The length P of the vector."""
        return self.initial.numel()

    @property
    def sent(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what is sent with a model: no client's own weights, buffers only where averaged."""
        end = len(self.layout) - len(self.buffers)
        weights = [one for one in self.layout[:end] if one[0] not in self.mine]
        return weights + self.layout[end:] if self.held == "average" else weights

    @property
    def mine(self) -> list[str]:
        """The names of the weights that are a client's own."""
        own = {*self.kept, *self.norms}
        return [name for name, _ in self.layout if name in own] if self.kept else self.norms

    @cached_property
    def norms(self) -> list[str]:
        """The names of the weights that are a client's own: scales and shifts of batch normalisation, for FedBN."""
        if self.held != "fedbn":
            return []
        trained = {name for name, _ in self.layout}
        layers = [(path, part) for path, part in self.module.named_modules() if isinstance(part, _BatchNorm)]
        found = [f"{path}.{name}".lstrip(".") for path, part in layers for name, _ in part.named_parameters()]
        return [name for name in found if name in trained]

    @cached_property
    def own(self) -> Tensor:
        """Where in a vector a client's own weights are [n], int64."""
        places = torch.split(torch.arange(self.size, device=self.device), self._sizes)
        found = [place for (name, _), place in zip(self.layout, places, strict=True) if name in self.mine]
        return torch.cat([self.initial.new_zeros(0, dtype=torch.long), *found])

    @property
    def mask(self) -> Tensor:
        """1 where a client's own weights are, and 0 elsewhere [W]."""
        return torch.zeros_like(self.initial[: self.trained]).index_fill(0, self.own, 1.0)

    @property
    def fixed_bytes(self) -> int:
        """The size of what the model has beside its vector: frozen parameters and the other buffers."""
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        others = [buffer for name, buffer in self.module.named_buffers() if name not in self._types]
        return sum(tensor.nbytes for tensor in (*frozen, *others))

    def state(self, trained: Mapping[str, Any]) -> dict[str, Any]:
        """Return all that the model needs to be built again, as NumPy arrays, under the names of its ``state_dict``.

        Args:
            trained: arrays by the names of :attr:`layout`; the others are frozen, constant, or other names for these.

        >>> module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False).requires_grad_(False))
        >>> list(Task(module).state({"0.weight": torch.ones(1, 1).numpy()}))
        ['0.weight', '1.weight']
        """
        first = {id(p): name for name, p in self.module.named_parameters()}
        held = {k: v for k, v in self.module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        whole: dict[str, Any] = dict.fromkeys((*held, *trained))
        for name in whole:
            source = first.get(id(held.get(name)), name)
            whole[name] = (
                trained[source] if source in trained else held[name].detach().cpu().contiguous().numpy()
            )
            if name in self._types:
                whole[name] = self.typed(name, torch.as_tensor(whole[name])).numpy()
        return whole

    def predict(self, vector: Tensor, x: X, training: bool = False) -> Tensor:
        """Return the model's outputs for inputs [B, …] with a vector [P], or with weights [W] alone."""
        outputs, _ = self.call(vector[: self.trained], x, vector[self.trained :], training)
        return outputs

    def call(self, weights: Tensor, x: X, buffers: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Return the model's outputs for inputs [B, …], and the buffers afterwards.

        Args:
            weights: [W].
            x: inputs [B, …].
            buffers: [P - W]; or empty for the module's own, of which nothing is returned.
            training: whether the model is in training mode.
        """
        held = dict(zip((name for name, _ in self.layout), self.split(weights), strict=False))
        if buffers.numel():
            held |= {
                name: self.typed(name, piece).clone() for name, piece in self.split_buffers(buffers).items()
            }
        elif self.buffers:
            held |= {name: self.module.get_buffer(name).clone() for name in self.buffers}
        with self.mode(training):
            outputs: Tensor = functional_call(self.module, held, *_arguments(x))
        if not buffers.numel():
            return outputs, buffers
        after = [held[name].detach().reshape(-1).to(buffers.dtype) for name in self.buffers]
        return outputs, torch.cat(after)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return the parameters (and buffers) that weights [W] or a vector [P] hold, as views, in order."""
        count = len(self._sizes) - (len(self.buffers) if vector.shape[-1] == self.trained else 0)
        pieces = torch.split(vector, self._sizes[:count])
        return [piece.view(shape) for (_, shape), piece in zip(self.layout, pieces, strict=False)]

    def split_buffers(self, buffers: Tensor) -> dict[str, Tensor]:
        """Return the buffers that a vector [P - W] holds, as views, by name."""
        count = len(self.layout) - len(self.buffers)
        pieces = torch.split(buffers, self._sizes[count:])
        return {
            name: piece.view(shape) for (name, shape), piece in zip(self.layout[count:], pieces, strict=True)
        }

    def typed(self, name: str, values: Tensor) -> Tensor:
        """Return numbers of a vector in the type of the buffer that they belong to: counters are averaged, too."""
        dtype = self._types[name]
        return values.to(dtype) if dtype.is_floating_point else values.round().to(dtype)

    @contextmanager
    def mode(self, training: bool) -> Iterator[None]:
        """Put the model into a mode, and into the former one again afterwards; whoever steps often does so outside."""
        before = self.module.training
        if before != training:
            self.module.train(training)
        try:
            yield
        finally:
            if self.module.training != before:
                self.module.train(before)

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each sample [B]: the mean over its targets, if it has several."""
        sums, counts = self.totals(outputs, y)
        return sums if counts is None else sums / counts.clamp(min=1.0)

    def totals(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the sum of each sample's losses [B], and how many targets count [B]; None if each counts one."""
        values = self.criterion.values(outputs, y)
        if values.dim() == 1 and (self.criterion.plain or y.dim() > 1):
            return values, None
        sums = values.flatten(1).sum(1) if values.dim() > 1 else values
        return sums, self.criterion.counts(y, sums.dtype)

    def loss(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss over a batch in training, padding left out, and the buffers afterwards."""
        outputs, after = self.call(weights, batch.x, buffers, training=True)
        return self.mean(outputs, batch), after

    @property
    def start(self) -> Tensor:
        """The buffers at the beginning [P - W]."""
        return self.initial[self.trained :]

    def mean(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the samples of a batch, padding left out."""
        sums, counts = self.totals(outputs, batch.y)
        weight = batch.weight if counts is None else batch.weight * counts
        return (sums * batch.weight).sum() / weight.sum().clamp(min=1.0)

    @torch.no_grad()
    def scores(self, vector: Tensor, x: X, y: Tensor, measure: str = "loss") -> Tensor:
        """Return how hard each sample is [B], without a trace in the model.

        Args:
            vector: of the model that judges [P].
            x: inputs [B, …].
            y: labels or targets [B].
            measure: ``"loss"``, or ``"error"`` for the share of its labels that are said wrongly.
        """
        outputs = self.predict(vector, x)
        if measure == "error":
            right, counts = self.criterion.hits(outputs, y), self.criterion.counts(y, outputs.dtype)
            return 1 - right / counts.clamp(min=1.0)
        return self.losses(outputs, y)

    def gradient(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return gradient [W] and loss [] of one client's batch, with the buffers of the beginning."""
        gradient, loss, _ = self.carried(weights, batch, self.start)
        return gradient, loss

    def carried(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradient [W] and loss [] of one client's batch, and the buffers [P - W] afterwards."""
        weights = weights.detach().requires_grad_()
        with self.mode(training=True):  # the backward pass, too: it may compute something again
            loss, after = self.loss(weights, batch, buffers)
            return torch.autograd.grad(loss, weights)[0], loss.detach(), after

    def pure(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as :meth:`carried`, as a function that can be mapped over clients."""
        gradient, (loss, after) = grad_and_value(self.loss, has_aux=True)(weights, batch, buffers)
        return gradient, loss, after


def _arguments(x: X) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a module is called with."""
    return (x.args, x.kwargs) if isinstance(x, Several) else ((x,), {})
