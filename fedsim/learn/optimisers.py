"""What a client makes of its gradients: steps of Adam and others, as pure functions that engines can map over clients.

Plain and momentum SGD are in :class:`fedsim.learn.local.LocalSGD` itself. All state starts afresh at each visit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.parts import NotNegative, Positive, call, find
from fedsim.spec.blocks import Part
from fedsim.spec.local import Local

State = dict[str, Tensor]


class Optimiser(ABC):
    """Makes steps of directions.

    Attributes:
        decoupled: whether weight decay shrinks the weights by its factor times the learning rate, and is not added
            to the gradient.
    """

    decoupled: bool = False

    @abstractmethod
    def init(self, weights: Tensor) -> State:
        """Return the state before the first step, for weights [W]."""

    @abstractmethod
    def step(self, direction: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """Return what is subtracted from the weights for a learning rate of 1 [W], and the new state.

        Args:
            direction: the gradient, with what has been added to it [W].
            state: by name, as before.
            count: the number of this step, from 1 [].
        """


class Adam(Optimiser):
    """Steps scaled by running means of gradients and of their squares (Kingma and Ba: Adam. ICLR 2015).

    Args:
        beta1: how much of the mean of gradients stays at each step.
        beta2: how much of the mean of their squares stays.
        eps: added to the root of the latter.

    >>> adam, start = Adam(), torch.zeros(2)
    >>> step, _ = adam.step(torch.tensor([3.0, -0.5]), adam.init(start), torch.tensor(1.0))
    >>> step  # the first one has the gradient's sign alone
    tensor([ 1.0000, -1.0000])
    """

    def __init__(self, *, beta1: NotNegative = 0.9, beta2: NotNegative = 0.999, eps: Positive = 1e-8) -> None:
        self.betas, self.eps = (_share("beta1", beta1), _share("beta2", beta2)), eps

    def init(self, weights: Tensor) -> State:
        """Start both means at zero."""
        return {"first": torch.zeros_like(weights), "second": torch.zeros_like(weights)}

    def step(self, direction: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """Divide the one mean by the root of the other, both without the bias of their start."""
        one, two = self.betas
        first = one * state["first"] + (1 - one) * direction
        second = two * state["second"] + (1 - two) * direction**2
        scale = (second / (1 - two**count)).sqrt() + self.eps
        return first / (1 - one**count) / scale, {"first": first, "second": second}


class AdamW(Adam):
    """Adam whose weight decay shrinks the weights (Loshchilov and Hutter: Decoupled weight decay. ICLR 2019).

    Args:
        beta1: how much of the mean of gradients stays at each step.
        beta2: how much of the mean of their squares stays.
        eps: added to the root of the latter.
    """

    decoupled = True


class RMSprop(Optimiser):
    """Steps scaled by a running mean of squared gradients (Tieleman and Hinton: Lecture 6.5, 2012).

    Args:
        alpha: how much of the mean stays at each step.
        eps: added to its root.
    """

    def __init__(self, *, alpha: NotNegative = 0.99, eps: Positive = 1e-8) -> None:
        self.alpha, self.eps = _share("alpha", alpha), eps

    def init(self, weights: Tensor) -> State:
        """Start the mean at zero."""
        return {"square": torch.zeros_like(weights)}

    def step(self, direction: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """Divide by the root of the mean."""
        del count
        square = self.alpha * state["square"] + (1 - self.alpha) * direction**2
        return direction / (square.sqrt() + self.eps), {"square": square}


class SGD(Optimiser):
    """Plain steps against the gradient; strategy.local.momentum gives them momentum."""

    def init(self, weights: Tensor) -> State:
        """Hold nothing."""
        return {}

    def step(self, direction: Tensor, state: State, count: Tensor) -> tuple[Tensor, State]:
        """Take the direction as it is."""
        del state, count
        return direction, {}


def optimiser(local: Local) -> Optimiser | None:
    """Return what local training makes its steps with; None for SGD, whose steps are local SGD's own.

    Raises:
        BadValue: if there is no such optimiser, or it refuses its parameters.

    >>> optimiser(Local()), type(optimiser(Local.model_validate({"optimizer": "adam"}))).__name__
    (None, 'Adam')
    """
    block = local.optimizer
    if block == Part(name="sgd"):
        return None
    try:
        part = find("optimisers", block.name)
        of_torch = isinstance(part, type) and issubclass(part, torch.optim.Optimizer)
        made = None if of_torch else call(part, block.params, {})
    except BadValue as error:
        raise BadValue(f"local.optimizer.{error.key}", error.value, error.rule, error.hint) from error
    if not isinstance(made, Optimiser):
        rule = "is not an optimiser that can be mapped over clients"
        hint = "take adam, adamw, rmsprop or sgd, or a subclass of fedsim.learn.optimisers.Optimiser"
        raise BadValue("local.optimizer.name", block.name, rule, hint)
    return None if type(made) is SGD else made


def clipped(gradient: Tensor, max_norm: float) -> Tensor:
    """Return a gradient [W] that is no longer than a norm, as ``torch.nn.utils.clip_grad_norm_`` shortens it.

    >>> clipped(torch.tensor([3.0, 4.0]), 1.0)
    tensor([0.6000, 0.8000])
    """
    factor: Tensor = (max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0)
    return gradient * factor


def _share(key: str, value: float) -> float:
    if value >= 1:
        raise BadValue(key, value, "must be less than 1")
    return value
