"""MimeLite: clients take the steps of a centralised optimiser, whose state the server keeps and sends.

S. P. Karimireddy, M. Jaggi, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh: Mime: Mimicking Centralized
Stochastic Algorithms in Federated Learning. arXiv:2008.03606, 2020, algorithm 1. The optimiser here is SGD with
momentum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import LocalUpdate, State, rate, without_momentum
from fedsim.learn.sampling import Everything, LocalBatches
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Ask, Reply, ask_all, uniform_mean
from fedsim.spec.experiment import Local

MOMENTUM, GRADIENT = "momentum", "gradient"


@dataclass(kw_only=True, eq=False)
class MimeLite(FlowerFace, Rounds):
    """Local steps along the server's momentum, which stands still meanwhile (Karimireddy et al., 2020).

    Args:
        momentum: share of the old momentum in the new one, and in every step (β).
    """

    weighted: ClassVar[bool] = False
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    _state: Deferred | None = field(init=False, default=None)

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": Mimic(self.local, self.momentum)}

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
        self.local = without_momentum(local, "MimeLite", "the server's is strategy.momentum")
        self.momentum, self.whole = momentum, Everything(local)
        self.sampling = self.whole + LocalBatches(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the numbers of steps and samples, and how many batches hold all of them."""
        whole = self.whole.steps(samples)
        steps = self.sampling.steps(samples) - whole
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
