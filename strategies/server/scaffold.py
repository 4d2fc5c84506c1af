"""SCAFFOLD: stochastic controlled averaging, which corrects the drift of the clients.

S. P. Karimireddy, S. Kale, M. Mohri, S. Reddi, S. Stich, A. T. Suresh: SCAFFOLD: Stochastic Controlled Averaging for
Federated Learning. ICML 2020, PMLR 119:5132-5143, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, MeanGradient, State, rate, without_momentum
from fedsim.learn.sampling import Everything, LocalBatches, Nothing
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Ask, Reply, ask_all, uniform_mean
from fedsim.parts import Positive
from fedsim.spec.experiment import Local

WARM = "train.control"
CONTROL, OWN = "control", "scaffold.control"


@dataclass(kw_only=True, eq=False)
class SCAFFOLD(FlowerFace, Rounds):
    """Clients correct their steps by how their gradient differs from everybody's (Karimireddy et al., ICML 2020).

    Args:
        option: how a client renews its control: 1 by its whole gradient at the weights received, which takes one more
            pass over its data; 2 by the mean of the gradients of its steps.
        server_lr: server learning rate.
        warm_start: whether every client's control is its whole gradient before the first round, instead of zero.
    """

    weighted: ClassVar[bool] = False
    option: Literal[1, 2] = 2
    server_lr: Positive = 1.0
    warm_start: bool = False
    _control: Deferred = field(init=False)

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": Controlled(self.local, self.option), WARM: WarmControl()}

    def begin(self, model: Deferred) -> None:
        """Start at zero, or ask every client for its control, if the start is to be warm."""
        self._control = 0.0 * model
        if self.warm_start:
            self._renew(self.exchange(ask_all(self.online(), WARM, arrays=model)), "arrays")

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Send the model and the mean of the controls."""
        return ask_all(cohort, "train", arrays=model, control=self._control)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← x + η mean Δy, c ← c + |S|/N mean Δc."""
        self._renew(replies, CONTROL)
        return model + self.server_lr * uniform_mean(replies)

    def _renew(self, replies: Sequence[Reply], name: str) -> None:
        if replies:
            self._control += (len(replies) / self.clients) * uniform_mean(replies, name)


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
        self.local, self.option = without_momentum(local, "SCAFFOLD"), option
        self.whole = Everything(local) if option == 1 else Nothing()
        self.sampling = self.whole + LocalBatches(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the number of steps, and how many batches make the whole gradient."""
        whole = self.whole.steps(samples)
        steps = self.sampling.steps(samples) - whole
        return {"lr": rate(self.local, client), "steps": steps, "whole": whole}

    def init(self, given: State) -> State:
        """Start at the weights received."""
        start, zero = given["arrays"], torch.zeros_like(given["lr"])
        fixed = {name: given[name] for name in (OWN, CONTROL, "lr", "steps", "whole")}
        sums = {"sum": torch.zeros_like(start), "samples": zero, "loss": zero, "count": zero}
        return {**fixed, **sums, "start": start, "weights": start}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add to the whole gradient while that lasts, then y ← y - lr (g_i(y) - c_i + c)."""
        weights = state["weights"]
        slope, loss = gradient(weights, batch)
        walks = (state["count"] >= state["whole"]).to(weights.dtype)
        seen = (1 - walks) * batch.weight.sum()
        direction = slope + self.local.weight_decay * weights - state[OWN] + state[CONTROL]
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
            own = state[OWN] - state[CONTROL] - progress / (state["steps"] * state["lr"])
        loss = state["loss"] / state["steps"]
        return {"arrays": progress, CONTROL: own - state[OWN], OWN: own, "train_loss": loss}
