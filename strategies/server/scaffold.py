"""SCAFFOLD: stochastic controlled averaging, which corrects the drift of the clients.

S. P. Karimireddy, S. Kale, M. Mohri, S. Reddi, S. Stich, A. T. Suresh: SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning. ICML 2020, PMLR 119:5132-5143, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from fedsim.errors import BadValue
from fedsim.flower.select import Selector
from fedsim.flower.strategy import Ask, Reply, Rounds, ask_all, uniform_mean
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import (
    LocalUpdate,
    MeanGradient,
    State,
    batch_width,
    chunks,
    local_batches,
    local_samples,
    rate,
    steps_taken,
)
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local

WARM = "train.control"
CONTROL, OWN = "control", "scaffold.control"


class SCAFFOLD(Rounds):
    """Clients correct their steps by how their gradient differs from everybody's (Karimireddy et al., ICML 2020).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training, without momentum.
        option: how a client renews its control: 1 by its whole gradient at the weights received, which takes one more
            pass over its data; 2 by the mean of the gradients of its steps.
        server_lr: server learning rate.
        warm_start: whether every client's control is its whole gradient before the first round, instead of zero.
        select: chooses the participants.
        timeout_s: how long the warm start may take, in seconds; None waits for all.
        seed: of the cohorts.
    """

    weighted = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        option: Literal[1, 2] = 2,
        server_lr: Positive = 1.0,
        warm_start: bool = False,
        select: Selector | None = None,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        updates = {"train": Controlled(local, option), WARM: WarmControl()}
        super().__init__(updates, participants, select, seed, timeout_s)
        self.server_lr, self.warm_start = server_lr, warm_start
        self._control: Deferred | None = None

    def begin(self, model: Deferred) -> None:
        """Ask every client for its control, if the start is to be warm."""
        if self.warm_start:
            replies = self.exchange(ask_all(self.online(), WARM, arrays=model))
            self._renew(replies, "arrays")

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Send the model and the mean of the controls."""
        control = 0.0 * model if self._control is None else self._control
        return ask_all(cohort, "train", arrays=model, control=control)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← x + η mean Δy, c ← c + |S|/N mean Δc."""
        self._renew(replies, CONTROL)
        return model + self.server_lr * uniform_mean(replies)

    def _renew(self, replies: Sequence[Reply], name: str) -> None:
        if replies:
            change = (len(replies) / self.clients) * uniform_mean(replies, name)
            self._control = change if self._control is None else self._control + change


class WarmControl(MeanGradient):
    """The whole gradient at the weights received; the client keeps it as its control."""

    keeps = (OWN,)

    def final(self, state: State) -> State:
        """Send the gradient, and keep it."""
        result = super().final(state)
        return {**result, OWN: result["arrays"]}


class Controlled(LocalUpdate):
    """Local SGD along g_i(y) - c_i + c, where the client keeps c_i.

    Args:
        local: local training, without momentum.
        option: how c_i is renewed, 1 or 2.
    """

    takes = ("arrays", CONTROL)
    sends = ("arrays", CONTROL)
    models = ()
    keeps = (OWN,)

    def __init__(self, local: Local, option: int) -> None:
        if local.momentum:
            raise BadValue("local.momentum", local.momentum, "SCAFFOLD has no local momentum")
        self.local, self.option, self.curriculum = local, option, local.curriculum

    def work(self, samples: int) -> int:
        """Count one gradient for each sample of each batch, and of the whole gradient."""
        whole = samples if self.option == 1 else 0
        return whole + local_samples(self.local, samples)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches, behind all samples in their order for the whole gradient."""
        width = self.width(samples)
        rows = local_batches(self.local, samples, rng)
        return rows if self.option == 2 else np.concatenate([chunks(np.arange(samples), width), rows])

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the number of steps, and how many batches make the whole gradient."""
        whole = -(-samples // self.width(samples)) if self.option == 1 else 0
        return {"lr": rate(self.local, client), "steps": steps_taken(self.local, samples), "whole": whole}

    def init(self, given: State) -> State:
        """Start at the weights received."""
        start, zero = given["arrays"], torch.zeros_like(given["lr"])
        return {
            "start": start,
            "weights": start,
            "own": given[OWN],
            "control": given[CONTROL],
            "sum": torch.zeros_like(start),
            "samples": zero,
            "loss": zero,
            "count": zero,
            "lr": given["lr"],
            "steps": given["steps"],
            "whole": given["whole"],
        }

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add to the whole gradient while that lasts, then y ← y - lr (g_i(y) - c_i + c)."""
        weights = state["weights"]
        slope, loss = gradient(weights, batch)
        walks = (state["count"] >= state["whole"]).to(weights.dtype)
        seen = (1 - walks) * batch.weight.sum()
        direction = slope + self.local.weight_decay * weights - state["own"] + state["control"]
        return {
            **state,
            "weights": weights - walks * state["lr"] * direction,
            "sum": state["sum"] + seen * slope,
            "samples": state["samples"] + seen,
            "loss": state["loss"] + walks * loss,
            "count": state["count"] + 1,
        }

    def final(self, state: State) -> State:
        """Send y - x and how c_i changes; keep the new c_i."""
        progress = state["weights"] - state["start"]
        if self.option == 1:
            own = state["sum"] / state["samples"]
        else:
            own = state["own"] - state["control"] - progress / (state["steps"] * state["lr"])
        return {
            "arrays": progress,
            CONTROL: own - state["own"],
            OWN: own,
            "train_loss": state["loss"] / state["steps"],
        }
