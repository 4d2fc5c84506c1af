"""FedDyn: dynamic regularisation, which makes the clients' optima agree with the optimum of all.

D. A. E. Acar, Y. Zhao, R. Matas, M. Mattina, P. N. Whatmough, V. Saligrama: Federated Learning Based on Dynamic
Regularization. ICLR 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fedsim.errors import BadValue
from fedsim.flower.select import Selector
from fedsim.flower.strategy import Reply, Rounds, uniform_mean
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, State, batch_width, local_batches, local_samples, rate
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local

GRADIENT = "feddyn.gradient"


class FedDyn(Rounds):
    """Average the models, less what the server remembers of all moves so far (Acar et al., ICLR 2021).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training.
        alpha: weight of the regulariser (α).
        select: chooses the participants.
        seed: of the cohorts.
    """

    weighted = False

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        alpha: Positive = 0.1,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__({"train": Dynamic(local, alpha)}, participants, select, seed)
        self.alpha = alpha
        self._memory: Deferred | None = None

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
        if local.momentum:
            raise BadValue("local.momentum", local.momentum, "FedDyn has no local momentum")
        self.local, self.alpha, self.curriculum = local, alpha, local.curriculum

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
        """Start at the weights received."""
        zero = torch.zeros_like(given["lr"])
        return {
            "start": given["arrays"],
            "weights": given["arrays"],
            "kept": given[GRADIENT],
            "lr": given["lr"],
            "loss": zero,
            "steps": zero,
        }

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
