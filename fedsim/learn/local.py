"""What a client does to the weights that it receives, as pure functions of tensors for one client.

An engine loops these functions over clients or maps them over a stack of clients; a deployed client calls them as
they are. They know nothing of time, of other clients, or of where they run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import MISSING, BadValue
from fedsim.learn.codec import Codec
from fedsim.learn.curriculum.order import Order
from fedsim.learn.optimisers import clipped, optimiser
from fedsim.learn.sampling import LargeBatch, LocalBatches, Nothing, Sampling
from fedsim.learn.task import Batch, Gradient
from fedsim.spec.experiment import Local
from fedsim.spec.local import Curriculum

State = dict[str, Tensor]

CHUNK = 256
"""How many samples of a large batch are differentiated at a time."""

MINE = "mine"
"""What says which weights are the client's own."""


class LocalUpdate(ABC):
    """A client's part of an algorithm.

    Attributes:
        takes: the vectors it reads, by name; the weights are called ``"arrays"`` as in Flower.
        sends: the vectors it sends back, by name.
        models: those of the vectors sent that are weights, and not gradients or differences.
        moved: how far the weights have moved along the client's own gradients, in units of ``"arrays"``, where that is
            no weights: 1 for y - x, -1 for x - y, 0 where they stay; None where what is sent means something else.
        metrics: the numbers it sends back, by name.
        keeps: the vectors that the client keeps from visit to visit, by name, and never sends. ``init`` finds them
            beside those received, zeros at the first visit; ``final`` returns the new ones.
        codec: how the vectors are written on their way to the server; None writes every number.
        sampling: which samples it uses, in what batches; by default none at all.
        gradients: how many gradients of each of them it computes.
        splits: whether ``init`` finds as ``"mine"`` a vector [W] that is 1 where the client's own weights are, and 0
            elsewhere.
        order: ranks the client's samples at the start of a visit: then the positions in its batches are ranks, and
            ``init`` finds the mean score as ``"score"``. None leaves the samples as they are.
    """

    takes: tuple[str, ...] = ("arrays",)
    sends: tuple[str, ...] = ("arrays",)
    models: tuple[str, ...] = ("arrays",)
    moved: float | None = None
    metrics: tuple[str, ...] = ("train_loss",)
    keeps: tuple[str, ...] = ()
    codec: Codec | None = None
    sampling: Sampling = Nothing()
    gradients: int = 1
    splits: bool = False
    order: Order | None = None

    def at(self, round: int) -> LocalUpdate:
        """Return what the client does in a round: always the same by default."""
        return self

    @property
    def curriculum(self) -> Curriculum | None:
        """How its batches grow, or None."""
        return self.sampling.curriculum

    def work(self, samples: int) -> int:
        """Return how many per-sample gradients a client with that many samples computes."""
        return self.gradients * self.sampling.size(samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return which samples each step uses.

        Args:
            samples: how many samples the client has.
            rng: the client's own stream for this round.

        Returns:
            Positions into the client's samples [steps, batch], -1 where a batch is short.
        """
        return self.sampling.batches(samples, rng)

    def width(self, samples: int) -> int:
        """Return the largest batch that a client with at most that many samples uses."""
        return self.sampling.width(samples)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return numbers that belong to one client; ``init`` finds them by name.

        A server that sends a number of the same name in its message's configuration has it used instead.

        Args:
            client: its id, for what is given to each, such as a learning rate.
            samples: how many it has, for what follows from them, such as where a phase of its plan ends.
        """
        return {}

    def draws(self, size: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Return random vectors that belong to one visit; ``init`` finds them by name.

        Args:
            size: the number of weights P.
            rng: the client's own stream for this visit, which no batch was drawn from.

        Returns:
            Vectors [P].
        """
        return {}

    @abstractmethod
    def init(self, given: State) -> State:
        """Return the state before the first step, from the vectors [P] and the scalars [] given."""

    @abstractmethod
    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Return the state after one more step."""

    @abstractmethod
    def final(self, state: State) -> State:
        """Return what the client sends and keeps: vectors [P], and metrics [] such as ``"train_loss"``."""


class LocalSGD(LocalUpdate):
    """Local stochastic gradient descent with momentum and weight decay, both starting afresh at each visit.

    Args:
        local: epochs or steps, batch size, learning rate (one, or one per client), momentum, weight decay.
        proximal: weight μ of FedProx's term 0.5 μ |w - w_0|^2, where w_0 are the weights received (Li et al., 2020).
    """

    def __init__(self, local: Local, proximal: float = 0.0) -> None:
        self.local, self.proximal, self.sampling = local, proximal, LocalBatches(local)
        self.optimiser = optimiser(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the client's learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Start at the weights received, at rest."""
        weights, zero = given["arrays"], torch.zeros_like(given["lr"])
        momentum = {"momentum": torch.zeros_like(weights)} if self.local.momentum else {}
        start = {"start": weights} if self.proximal else {}
        held = {} if self.optimiser is None else _prefixed(self.optimiser.init(weights))
        return {
            "weights": weights,
            "lr": given["lr"],
            "loss": zero,
            "steps": zero,
            **momentum,
            **start,
            **held,
        }

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Take one step against the gradient."""
        weights = state["weights"]
        direction, loss = gradient(weights, batch)
        if self.local.clip_norm is not None:
            direction = clipped(direction, self.local.clip_norm)
        decoupled = self.optimiser is not None and self.optimiser.decoupled
        if self.local.weight_decay and not decoupled:
            direction = direction + self.local.weight_decay * weights
        if self.proximal:
            direction = direction + self.proximal * (weights - state["start"])
        new = {**state, "loss": state["loss"] + loss, "steps": state["steps"] + 1}
        if self.optimiser is not None:
            held = {name: state[f"optimiser.{name}"] for name in self.optimiser.init(weights)}
            step, held = self.optimiser.step(direction, held, new["steps"])
            kept = 1 - self.step_size(state) * self.local.weight_decay if decoupled else 1
            return {**new, **_prefixed(held), "weights": weights * kept - self.step_size(state) * step}
        if self.local.momentum:
            direction = self.local.momentum * state["momentum"] + direction
            new["momentum"] = direction
            new["weights"] = weights - self.step_size(state) * direction
        else:  # the same numbers in the gradient's own memory, which nobody reads again
            new["weights"] = direction.mul_(-self.step_size(state)).add_(weights)
        return new

    def step_size(self, state: State) -> Tensor:
        """Return the learning rate; the first two steps have the same, as in the paper on curricula."""
        if not self.local.lr_decay:
            return state["lr"]
        later = (state["steps"] - 1).clamp(min=0)
        return state["lr"] * (1 + self.local.lr_decay * later) ** -self.local.lr_power

    def final(self, state: State) -> State:
        """Send the weights and the mean loss over the steps."""
        return {"arrays": state["weights"], "train_loss": state["loss"] / state["steps"]}


class MeanGradient(LocalUpdate):
    """One large-batch gradient at the weights received: ∇f_i(x; B).

    Args:
        large_batch: how many samples, drawn without replacement; None for all.
    """

    models = ()

    def __init__(self, large_batch: int | None = None) -> None:
        self.sampling = LargeBatch(large_batch, CHUNK)

    def init(self, given: State) -> State:
        """Start a sum of gradients."""
        weights = given["arrays"]
        zero = torch.zeros((), dtype=weights.dtype, device=weights.device)
        return {"weights": weights, "sum": torch.zeros_like(weights), "loss": zero, "count": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add the gradients of a chunk."""
        chunk, loss = gradient(state["weights"], batch)
        count = batch.weight.sum()
        return {
            "weights": state["weights"],
            "sum": state["sum"] + count * chunk,
            "loss": state["loss"] + count * loss,
            "count": state["count"] + count,
        }

    def final(self, state: State) -> State:
        """Send the mean gradient."""
        return {"arrays": state["sum"] / state["count"], "train_loss": state["loss"] / state["count"]}


def _prefixed(state: State) -> State:
    return {f"optimiser.{name}": value for name, value in state.items()}


def rate(local: Local, client: int) -> float:
    """Return a client's learning rate."""
    return local.lr[client] if isinstance(local.lr, list) else local.lr


def without_momentum(local: Local, method: str, hint: str = "") -> Local:
    """Return local training, for a method that has no local momentum.

    Args:
        local: local training.
        method: the method's name, for the message.
        hint: what to do instead.

    Raises:
        BadValue: if it has momentum.
    """
    if local.momentum:
        raise BadValue("local.momentum", local.momentum, f"{method} has no local momentum", hint)
    return local


def steps_of(local: Local, method: str) -> int:
    """Return K of a method that counts local steps and has neither momentum nor weight decay.

    Args:
        local: local training.
        method: the method's name, for the message.

    Raises:
        BadValue: if local training says something else.

    >>> steps_of(Local(steps=3), "FedAMD")
    3
    """
    if local.steps is None:
        raise BadValue("local.steps", MISSING, f"{method} counts local steps, not epochs", "give local.steps")
    for key, value in {"momentum": local.momentum, "weight_decay": local.weight_decay}.items():
        if value:
            raise BadValue(f"local.{key}", value, f"{method} has neither momentum nor weight decay")
    return local.steps
