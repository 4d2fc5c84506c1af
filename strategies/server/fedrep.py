"""FedRep: all clients learn one representation, and each of them a head of its own upon it.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai: Exploiting Shared Representations for Personalized Federated
Learning. ICML 2021, PMLR 139:2089-2099, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedsim.learn.local import MINE, LocalUpdate, State, rate
from fedsim.learn.sampling import LocalBatches
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import Count
from fedsim.spec.experiment import Local
from strategies.server.fedper import FedPer


@dataclass(kw_only=True, eq=False)
class FedRep(FedPer):
    """Average representations, for which every client first fits its own head (Collins et al., ICML 2021).

    ``local`` says how the representation is trained.

    Args:
        head_steps: local steps in which a client trains its head alone, before those for the representation (τ).
    """

    head_steps: Count = 10

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": HeadThenBody(self.local, self.head_steps)}


class HeadThenBody(LocalUpdate):
    """Local SGD on the head h_i with the body φ held, and then on φ with h_i held.

    Args:
        local: local training of the body.
        head_steps: steps for the head, with batches of the same size.
    """

    splits = True

    def __init__(self, local: Local, head_steps: int) -> None:
        self.local, self.head_steps = local, head_steps
        head = local.model_copy(update={"epochs": None, "steps": head_steps})
        self.sampling = LocalBatches(head) + LocalBatches(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the client's learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Start at the body received and the head kept."""
        weights, zero = given["arrays"], torch.zeros_like(given["lr"])
        fixed = {"lr": given["lr"], MINE: given[MINE]}
        return {
            **fixed,
            "weights": weights,
            "velocity": torch.zeros_like(weights),
            "loss": zero,
            "steps": zero,
        }

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """h_i ← h_i - lr ∇_h f_i(φ, h_i) while that lasts, then φ ← φ - lr ∇_φ f_i(φ, h_i)."""
        weights, is_head = state["weights"], state["steps"] < self.head_steps
        slope, loss = gradient(weights, batch)
        moving = torch.where(is_head, state[MINE], 1 - state[MINE])
        direction = moving * (slope + self.local.weight_decay * weights)
        velocity = self.local.momentum * state["velocity"] + direction
        return {
            **state,
            "weights": weights - state["lr"] * moving * velocity,
            "velocity": velocity,
            "loss": state["loss"] + loss,
            "steps": state["steps"] + 1,
        }

    def final(self, state: State) -> State:
        """Send φ; h_i stays, and so do the numbers in its places."""
        return {"arrays": state["weights"], "train_loss": state["loss"] / state["steps"]}
