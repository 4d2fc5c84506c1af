"""MimeLite: clients take the steps of a centralised optimiser, whose state the server keeps and sends.

S. P. Karimireddy, M. Jaggi, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: Mime: Mimicking Centralized
Stochastic Algorithms in Federated Learning. arXiv:2008.03606, 2020, algorithm 1. The optimiser here is SGD with
momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from fedsim.errors import BadValue
from fedsim.flower.select import Selector
from fedsim.flower.strategy import Ask, Reply, Rounds, ask_all, uniform_mean
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import (
    LocalUpdate,
    State,
    batch_width,
    chunks,
    local_batches,
    local_samples,
    rate,
    steps_taken,
)
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import Count
from fedsim.spec.experiment import Local

MOMENTUM, GRADIENT = "momentum", "gradient"


class MimeLite(Rounds):
    """Local steps along the server's momentum, which stands still meanwhile (Karimireddy et al., 2020).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training; the momentum is the server's, so it has none of its own.
        momentum: share of the old momentum in the new one, and in every step (β).
        select: chooses the participants.
        seed: of the cohorts.
    """

    weighted = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": Mimic(local, momentum)}, participants, select, seed)
        self.momentum = momentum
        self._state: Deferred | None = None

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Send the model and the momentum."""
        state = 0.0 * model if self._state is None else self._state
        return ask_all(cohort, "train", arrays=model, momentum=state)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """m ← (1 - β) mean ∇f_i(x) + β m, x ← mean of the clients' weights."""
        gradient = uniform_mean(replies, GRADIENT)
        old = 0.0 * model if self._state is None else self._state
        self._state = combine([gradient, old], [1.0 - self.momentum, self.momentum])
        return uniform_mean(replies)


class Mimic(LocalUpdate):
    """The whole gradient at the weights received, then local steps y ← y - lr ((1 - β) g_i(y) + β m).

    Args:
        local: local training, without momentum.
        momentum: share of the server's momentum in a step.
    """

    takes = ("arrays", MOMENTUM)
    sends = ("arrays", GRADIENT)

    def __init__(self, local: Local, momentum: float) -> None:
        if local.momentum:
            rule = "MimeLite has no local momentum; the server's is strategy.momentum"
            raise BadValue("local.momentum", local.momentum, rule)
        self.local, self.momentum, self.curriculum = local, momentum, local.curriculum

    def work(self, samples: int) -> int:
        """Count one gradient for each sample, and for each sample of each batch."""
        return samples + local_samples(self.local, samples)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches, behind all samples in their order for the whole gradient."""
        whole = chunks(np.arange(samples), self.width(samples))
        return np.concatenate([whole, local_batches(self.local, samples, rng)])

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the numbers of steps and samples, and how many batches hold all of them."""
        whole = -(-samples // self.width(samples))
        steps = steps_taken(self.local, samples)
        return {"lr": rate(self.local, client), "steps": steps, "samples": samples, "whole": whole}

    def init(self, given: State) -> State:
        """Start at the weights received."""
        start, zero = given["arrays"], torch.zeros_like(given["lr"])
        fixed = {name: given[name] for name in ("lr", "steps", "samples", "whole", MOMENTUM)}
        return {**fixed, "weights": start, "sum": torch.zeros_like(start), "loss": zero, "count": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add to the whole gradient while that lasts, then take steps."""
        weights = state["weights"]
        slope, loss = gradient(weights, batch)
        walks = (state["count"] >= state["whole"]).to(weights.dtype)
        slope = slope + self.local.weight_decay * weights
        direction = (1.0 - self.momentum) * slope + self.momentum * state[MOMENTUM]
        return {
            **state,
            "weights": weights - walks * state["lr"] * direction,
            "sum": state["sum"] + (1.0 - walks) * batch.weight.sum() * slope,
            "loss": state["loss"] + walks * loss,
            "count": state["count"] + 1,
        }

    def final(self, state: State) -> State:
        """Send the weights, and the whole gradient at those received."""
        return {
            "arrays": state["weights"],
            GRADIENT: state["sum"] / state["samples"],
            "train_loss": state["loss"] / state["steps"],
        }
