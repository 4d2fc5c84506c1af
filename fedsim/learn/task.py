"""A model and a loss, as functions of one flat vector of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from fedsim.learn.contents import Leaf


class Batch(NamedTuple):
    """Samples of one step.

    Args:
        x: inputs [B, …].
        y: labels or targets [B].
        weight: 1 for a sample, 0 for padding [B].
    """

    x: Tensor
    y: Tensor
    weight: Tensor


Gradient = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""From weights [P] and a batch to the mean gradient [P] and the mean loss []."""


class Task:
    """What is learned: a model whose weights are one vector, and a loss.

    The model is in training mode where a gradient is computed, and in evaluation mode everywhere else.

    Args:
        module: the model; its trainable parameters in the order of ``named_parameters`` make up the vector.
        loss: ``"cross_entropy"``, or ``"half_square"`` for 0.5 (prediction - target)^2.
        device: where weights and data live.
        dtype: their type.

    Attributes:
        draws: whether the model draws random numbers in training, with torch's own generators.
        fixed: what it had beside its weights when it was tried out; empty if that has not been done.

    >>> task = Task(nn.Linear(2, 3), "cross_entropy")
    >>> task.size, [shape for _, shape in task.layout]
    (9, [(3, 2), (3,)])
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str = "cross_entropy",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.module = module.to(device=device, dtype=dtype)
        self.module.eval()  # many an overridden train() returns nothing, and eval() calls it
        self.device, self.dtype = torch.device(device), dtype
        self.classifies, self.draws = loss == "cross_entropy", False
        self.fixed: dict[str, Leaf] = {}
        named = {name: p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        self.layout = [(name, tuple(p.shape)) for name, p in named.items()]
        self.initial = torch.cat([p.reshape(-1) for p in named.values()])
        self._sizes = [p.numel() for p in named.values()]

    @property
    def size(self) -> int:
        """The number of weights P."""
        return self.initial.numel()

    @property
    def fixed_bytes(self) -> int:
        """The size of what the model has beside its weights: frozen parameters and buffers."""
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        return sum(tensor.nbytes for tensor in (*frozen, *self.module.buffers()))

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
        return whole

    def predict(self, weights: Tensor, x: Tensor, training: bool = False) -> Tensor:
        """Return the model's outputs for inputs [B, …] with weights [P]."""
        names = [name for name, _ in self.layout]
        parameters = dict(zip(names, self.split(weights), strict=True))
        with self.mode(training):
            outputs: Tensor = functional_call(self.module, parameters, (x,))
        return outputs

    def split(self, weights: Tensor) -> list[Tensor]:
        """Return the parameters that a vector [P] holds, as views, in the order of :attr:`layout`."""
        pieces = torch.split(weights, self._sizes)
        return [piece.view(shape) for (_, shape), piece in zip(self.layout, pieces, strict=True)]

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
        """Return the loss of each sample [B]."""
        if self.classifies:
            return nn.functional.cross_entropy(outputs, y, reduction="none")
        return 0.5 * (outputs - y) ** 2

    def loss(self, weights: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the samples of a batch in training, padding left out."""
        return self.mean(self.predict(weights, batch.x, training=True), batch)

    def mean(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss over the samples of a batch, padding left out."""
        losses = self.losses(outputs, batch.y)
        return (losses * batch.weight).sum() / batch.weight.sum().clamp(min=1.0)

    @torch.no_grad()
    def scores(self, weights: Tensor, x: Tensor, y: Tensor, measure: str = "loss") -> Tensor:
        """Return how hard each sample is [B], without a trace in the model.

        Args:
            weights: of the model that judges [P].
            x: inputs [B, …].
            y: labels or targets [B].
            measure: ``"loss"``, or ``"error"`` for 1 where a sample is classified wrongly and 0 elsewhere.
        """
        outputs = self.predict(weights, x)
        if measure == "error":
            return (outputs.argmax(-1) != y).to(outputs.dtype)
        return self.losses(outputs, y)

    def gradient(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return gradient [P] and loss [] of one client's batch."""
        weights = weights.detach().requires_grad_()
        with self.mode(training=True):  # the backward pass, too: it may compute something again
            loss = self.loss(weights, batch)
            return torch.autograd.grad(loss, weights)[0], loss.detach()

    def pure_gradient(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the same as :meth:`gradient`, as a function that can be mapped over clients."""
        gradient, loss = grad_and_value(self.loss)(weights, batch)
        return gradient, loss
