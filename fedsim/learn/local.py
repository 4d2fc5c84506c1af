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
from fedsim.learn.curriculum.pacing import Curriculum, budget, pass_sizes, plan, plan_counts
from fedsim.learn.task import Batch, Gradient
from fedsim.spec.experiment import Local

State = dict[str, Tensor]

CHUNK = 256
"""How many samples of a large batch are differentiated at a time."""


class LocalUpdate(ABC):
    """A client's part of an algorithm.

    Attributes:
        takes: the vectors it reads, by name; the weights are called ``"arrays"`` as in Flower.
        sends: the vectors it sends back, by name.
        models: those of the vectors sent that are weights, and not gradients or differences.
        metrics: the numbers it sends back, by name.
        keeps: the vectors that the client keeps from visit to visit, by name, and never sends. ``init`` finds them
            beside those received, zeros at the first visit; ``final`` returns the new ones.
        codec: how the vectors are written on their way to the server; None writes every number.
        curriculum: how its batches grow, where they are those of :func:`local_batches`; None is not at all.
        order: ranks the client's samples at the start of a visit: then the positions in its batches are ranks, and
            ``init`` finds the mean score as ``"score"``. None leaves the samples as they are.
    """

    takes: tuple[str, ...] = ("arrays",)
    sends: tuple[str, ...] = ("arrays",)
    models: tuple[str, ...] = ("arrays",)
    metrics: tuple[str, ...] = ("train_loss",)
    keeps: tuple[str, ...] = ()
    codec: Codec | None = None
    curriculum: Curriculum | None = None
    order: Order | None = None

    def at(self, round: int) -> LocalUpdate:
        """Return what the client does in a round: always the same by default."""
        return self

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
        self.local, self.proximal, self.curriculum = local, proximal, local.curriculum

    def work(self, samples: int) -> int:
        """Count one gradient for each sample of each batch."""
        return local_samples(self.local, samples)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches."""
        return local_batches(self.local, samples, rng)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
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
        new["weights"] = weights - self._rate(state) * direction
        return new

    def _rate(self, state: State) -> Tensor:
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
        self.large_batch = large_batch

    def work(self, samples: int) -> int:
        """Count one gradient for each sample of the batch."""
        return min(self.large_batch or samples, samples)

    def width(self, samples: int) -> int:
        """Cut the batch into chunks that fit into memory."""
        return min(self.work(samples), CHUNK)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the batch."""
        return chunks(rng.permutation(samples)[: self.work(samples)], self.width(samples))

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


def chunks(drawn: np.ndarray, width: int) -> np.ndarray:
    """Cut one large batch into rows; the last may be short.

    Args:
        drawn: positions [B] into the client's samples.
        width: the samples in a row.

    Returns:
        Positions [rows, width], -1 as padding.

    >>> chunks(np.array([4, 0, 2]), 2).tolist()
    [[4, 0], [2, -1]]
    """
    rows = np.full(-(-len(drawn) // width) * width, -1, dtype=np.int64)
    rows[: len(drawn)] = drawn
    return rows.reshape(-1, width)


def local_batches(local: Local, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the batches of a local training: shuffled passes, over all samples or those of the curriculum.

    Args:
        local: epochs or steps, batch size, curriculum.
        samples: how many the client has.
        rng: shuffles each pass afresh.

    Returns:
        Positions, or ranks if the update has an order [steps, width], -1 as padding.
    """
    width = batch_width(local, samples)
    if local.paced is None:
        return shuffled_batches(samples, width, local.epochs, local.steps, rng)
    return plan(local.paced, samples, width, *_budget(local, samples), rng)


def local_samples(local: Local, samples: int) -> int:
    """Return how many samples the batches of :func:`local_batches` hold in all.

    >>> local_samples(Local(epochs=10, batch_size=10, curriculum=Curriculum()), 125)
    1247
    """
    width = batch_width(local, samples)
    if local.paced is None:
        return samples_used(samples, width, local.epochs, local.steps)
    return plan_counts(local.paced, samples, width, *_budget(local, samples))[1]


def steps_taken(local: Local, samples: int) -> int:
    """Return how many steps :func:`local_batches` makes of a client's samples.

    >>> steps_taken(Local(epochs=2, batch_size=4), 9)
    6
    """
    width = batch_width(local, samples)
    if local.paced is not None:
        return plan_counts(local.paced, samples, width, *_budget(local, samples))[0]
    if local.steps is not None:
        return local.steps
    return -(-samples // width) * (local.epochs or 1)


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


def pace_of(local: Local, samples: int) -> list[tuple[int, int]]:
    """Return the clock and the number of samples at each change of the pace.

    Args:
        local: local training.
        samples: how many the client has.

    Returns:
        The steps taken in the visit and the size of the pass that follows; or, where the clock runs over rounds, the
        round and the size of its passes. Nothing without a curriculum.

    >>> pace_of(Local(epochs=10, batch_size=10, curriculum=Curriculum()), 500)[:3]
    [(0, 100), (10, 109), (21, 120)]
    """
    paced, width = local.paced, batch_width(local, samples)
    if paced is None:
        return []
    if paced.rounds is not None:
        rounds = range(1, paced.rounds + 1)
        return [(round, pass_sizes(paced.in_round(round), samples, width, 1)[0]) for round in rounds]
    sizes = pass_sizes(paced, samples, width, _budget(local, samples)[0])
    clock = np.cumsum([0, *(-(-size // width) for size in sizes[:-1])])
    return list(zip(clock.tolist(), sizes, strict=True))


def _budget(local: Local, samples: int) -> tuple[int, bool]:
    """Return the steps of a paced visit, and whether they are kept exactly: steps that are given are."""
    if local.steps is not None:
        return local.steps, True
    steps = budget(samples, local.batch_size or samples, local.epochs or 1)
    return steps, local.paced is not None and local.paced.rounds is not None


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
