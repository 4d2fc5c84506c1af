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

from fedsim.config import Local
from fedsim.learn.task import Batch, Gradient

State = dict[str, Tensor]


class LocalUpdate(ABC):
    """A client's part of an algorithm.

    Attributes:
        takes: the vectors it reads, by name; the weights are called ``"arrays"`` as in Flower.
        sends: the vectors it sends back, by name.
        metrics: the numbers it sends back, by name.
    """

    takes: tuple[str, ...] = ("arrays",)
    sends: tuple[str, ...] = ("arrays",)
    metrics: tuple[str, ...] = ("train_loss",)

    @abstractmethod
    def work(self, samples: int) -> int:
        """Return how many per-sample gradients a client with that many samples computes."""

    @abstractmethod
    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return which samples each step uses.

        Args:
            samples: how many samples the client has.
            rng: the client's own stream for this round.

        Returns:
            Positions into the client's samples [steps, batch], -1 where a batch is short.
        """

    @abstractmethod
    def width(self, samples: int) -> int:
        """Return the largest batch that a client with at most that many samples uses."""

    def scalars(self, client: int) -> Mapping[str, float]:
        """Return numbers that belong to one client, such as its learning rate; ``init`` finds them by name."""
        del client
        return {}

    @abstractmethod
    def init(self, given: State) -> State:
        """Return the state before the first step, from the vectors [P] and the scalars [] given."""

    @abstractmethod
    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Return the state after one more step."""

    @abstractmethod
    def final(self, state: State) -> State:
        """Return what the client sends back: vectors [P], and metrics [] such as ``"train_loss"``."""


class LocalSGD(LocalUpdate):
    """Local stochastic gradient descent with momentum and weight decay, both starting afresh at each visit.

    Args:
        local: epochs or steps, batch size, learning rate (one, or one per client), momentum, weight decay.
        proximal: weight μ of FedProx's term 0.5 μ |w - w_0|^2, where w_0 are the weights received (Li et al., 2020).
    """

    def __init__(self, local: Local, proximal: float = 0.0) -> None:
        self.local, self.proximal = local, proximal

    def work(self, samples: int) -> int:
        """Count one gradient for each sample of each batch."""
        return samples_used(samples, self.width(samples), self.local.epochs, self.local.steps)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches."""
        return shuffled_batches(samples, self.width(samples), self.local.epochs, self.local.steps, rng)

    def scalars(self, client: int) -> Mapping[str, float]:
        """Return the client's learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Start at the weights received, at rest."""
        weights, zero = given["arrays"], torch.zeros_like(given["lr"])
        momentum = {"momentum": torch.zeros_like(weights)} if self.local.momentum else {}
        start = {"start": weights} if self.proximal else {}
        return {"weights": weights, "lr": given["lr"], "loss": zero, "steps": zero, **momentum, **start}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Take one step against the gradient."""
        weights = state["weights"]
        direction, loss = gradient(weights, batch)
        if self.local.weight_decay:
            direction = direction + self.local.weight_decay * weights
        if self.proximal:
            direction = direction + self.proximal * (weights - state["start"])
        new = {**state, "loss": state["loss"] + loss, "steps": state["steps"] + 1}
        if self.local.momentum:
            direction = self.local.momentum * state["momentum"] + direction
            new["momentum"] = direction
        new["weights"] = weights - state["lr"] * direction
        return new

    def final(self, state: State) -> State:
        """Send the weights and the mean loss over the steps."""
        return {"arrays": state["weights"], "train_loss": state["loss"] / state["steps"]}


def rate(local: Local, client: int) -> float:
    """Return a client's learning rate."""
    return local.lr[client] if isinstance(local.lr, list) else local.lr


def batch_width(local: Local, samples: int) -> int:
    """Return the batch size of a client, or all its samples if there are fewer."""
    return min(local.batch_size or samples, samples)


def samples_used(samples: int, width: int, epochs: int | None, steps: int | None) -> int:
    """Return how many samples the batches of :func:`shuffled_batches` hold in all.

    >>> samples_used(5, 2, None, 4)
    7
    """
    if steps is None:
        return samples * (epochs or 1)
    passes, rest = divmod(steps, -(-samples // width))
    return passes * samples + min(rest * width, samples)


def shuffled_batches(
    samples: int, width: int, epochs: int | None, steps: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Cut shuffled passes over a client's samples into batches; the last batch of a pass may be short.

    Args:
        samples: how many samples there are.
        width: the batch size, at most ``samples``.
        epochs: how many passes; or
        steps: how many batches, over as many passes as it takes.
        rng: shuffles each pass afresh.

    Returns:
        Positions [steps, width], -1 as padding.

    >>> from fedsim.rng import stream
    >>> shuffled_batches(3, 2, 1, None, stream(0, "doc")).tolist()
    [[1, 0], [2, -1]]
    """
    in_pass = -(-samples // width)
    total = steps if steps is not None else in_pass * (epochs or 1)
    passes = -(-total // in_pass)
    rows = np.full((passes, in_pass * width), -1, dtype=np.int64)
    for row in rows:
        row[:samples] = rng.permutation(samples)
    return rows.reshape(passes * in_pass, width)[:total]
