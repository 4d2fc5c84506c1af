"""Ditto: every client has a model of its own, which is held near the one that all of them train.

T. Li, S. Hu, A. Beirami, V. Smith: Ditto: Fair and Robust Federated Learning Through Personalization. ICML 2021,
PMLR 139:6357-6368, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD, LocalUpdate, State
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.client import Client, own
from fedsim.parts import NotNegative
from fedsim.spec.experiment import Local
from strategies.server.fedavg import FedAvg

PERSONAL, OWN = "ditto.personal", "own."


@dataclass(kw_only=True, eq=False)
class Ditto(FedAvg):
    """FedAvg, beside which each client trains a model for itself (Li et al., ICML 2021).

    Args:
        lam: weight λ of the term 0.5 λ |v - w|² that holds a client's own model v near the weights w received.
    """

    two_models: ClassVar[bool] = True
    lam: NotNegative = 0.1

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {"train": Both(self.local, self.lam)}

    def personal(self, client: Client) -> Deferred:
        """v_i; until its first visit, the model of all."""
        return own(client.kept[PERSONAL], client.model) if PERSONAL in client.kept else client.model


class Both(LocalSGD):
    """Local SGD on f_i(y), and beside it on f_i(v) + 0.5 λ |v - w|²: each batch gives a step of both.

    A client keeps v, which begins with the first weights that it receives.

    Args:
        local: local training of either model.
        lam: λ.
    """

    keeps = (PERSONAL,)
    gradients = 2

    def __init__(self, local: Local, lam: float) -> None:
        super().__init__(local)
        self.own = LocalSGD(local, proximal=lam)

    def init(self, given: State) -> State:
        """Start at y = w, and at v where that was left."""
        received, kept = given["arrays"], given[PERSONAL]
        start = torch.where((kept != 0).any(), kept, received)
        own = {**self.own.init({**given, "arrays": start}), "start": received}
        return {**super().init(given), **_named(own)}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """y ← y - lr ∇f_i(y), v ← v - lr (∇f_i(v) + λ (v - w))."""
        own = self.own.step(gradient, _found(state), batch)
        return {**super().step(gradient, state, batch), **_named(own)}

    def final(self, state: State) -> State:
        """Send y, and keep v."""
        return {**super().final(state), PERSONAL: self.own.final(_found(state))["arrays"]}


def _named(own: State) -> State:
    return {f"{OWN}{name}": value for name, value in own.items()}


def _found(state: State) -> State:
    return {name.removeprefix(OWN): value for name, value in state.items() if name.startswith(OWN)}
