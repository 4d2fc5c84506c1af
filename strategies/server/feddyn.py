"""FedDyn: dynamic regularisation, which makes the clients' optima agree with the optimum of all.

D. A. E. Acar, Y. Zhao, R. Matas, M. Mattina, P. N. Whatmough, V. Saligrama: Federated Learning Based on Dynamic
Regularization. ICLR 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, State, rate, without_momentum
from fedsim.learn.sampling import LocalBatches
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, uniform_mean
from fedsim.parts import Positive
from fedsim.spec.experiment import Local

GRADIENT = "feddyn.gradient"


@dataclass(kw_only=True, eq=False)
class FedDyn(FlowerFace, Rounds):
    """Average the models, less what the server remembers of all moves so far (Acar et al., ICLR 2021).

    Args:
        alpha: weight of the regulariser (α).
    """

    weighted: ClassVar[bool] = False
    alpha: Positive = 0.1
    _memory: Deferred | None = field(init=False, default=None)

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": Dynamic(self.local, self.alpha)}

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """h ← h - α/m Σ (y_i - x), x ← mean of y_i - h/α."""
        middle = uniform_mean(replies)
        move = (self.alpha * len(replies) / self.clients) * (model - middle)
        self._memory = move if self._memory is None else self._memory + move
        return middle - self._memory / self.alpha


class Dynamic(LocalUpdate):
    """Local SGD on f_i(w) - <g_i, w> + α/2 |w - x|², where the client keeps g_i.

    Args:
        local: local training, without momentum.
        alpha: weight of the regulariser.
    """

    keeps = (GRADIENT,)

    def __init__(self, local: Local, alpha: float) -> None:
        self.local, self.alpha = without_momentum(local, "FedDyn"), alpha
        self.sampling = LocalBatches(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the client's learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Start at the weights received."""
        start, zero = given["arrays"], torch.zeros_like(given["lr"])
        fixed = {"start": start, "kept": given[GRADIENT], "lr": given["lr"]}
        return {**fixed, "weights": start, "loss": zero, "steps": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """w ← w - lr (∇f_i(w) - g_i + α (w - x))."""
        weights = state["weights"]
        slope, loss = gradient(weights, batch)
        slope = slope + self.local.weight_decay * weights
        slope = slope - state["kept"] + self.alpha * (weights - state["start"])
        return {
            **state,
            "weights": weights - state["lr"] * slope,
            "loss": state["loss"] + loss,
            "steps": state["steps"] + 1,
        }

    def final(self, state: State) -> State:
        """Send the weights; g_i ← g_i - α (w - x)."""
        return {
            "arrays": state["weights"],
            "train_loss": state["loss"] / state["steps"],
            GRADIENT: state["kept"] - self.alpha * (state["weights"] - state["start"]),
        }
