"""BVR-L-SGD: local SGD with its bias and its variance reduced.

T. Murata, T. Suzuki: Bias-Variance Reduced Local SGD for Less Heterogeneous Federated Learning. ICML 2021,
PMLR 139:7872-7881.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedsim import rng
from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, MeanGradient, State, steps_of
from fedsim.learn.sampling import LargeBatch
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Ask, Reply, ask_all, uniform_mean
from fedsim.parts import Count
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import Miner

FULL, CHANGE, WALK = "train.full", "train.change", "train.walk"


@dataclass(kw_only=True, eq=False)
class BVRLSGD(FlowerFace, Rounds):
    """Renew the direction, let everybody walk along it, and go on from where one of them ends (Murata, Suzuki 2021).

    In every round the clients are asked twice. First for the direction v at the model x: in the first round of a stage
    their large-batch gradients, otherwise how their gradients, on K b samples, have changed since the last model. Then
    for K steps along v, each corrected by the change of a mini-batch gradient. One client, drawn at random, is
    followed.

    Args:
        inner: rounds in a stage (T); the paper takes about 1 + large batch / (K b).
        large_batch: batch size of the first round of a stage; None for all samples.
    """

    weighted: ClassVar[bool] = False
    inner: Count = 1
    large_batch: Count | None = None
    _direction: Deferred | None = field(init=False, default=None)
    _point: Deferred | None = field(init=False, default=None)

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {FULL: MeanGradient(self.large_batch), CHANGE: Change(self.local), WALK: Miner(self.local)}

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Renew v, then send it."""
        self._renew(round, model, cohort)
        if self._direction is None:
            return []
        return ask_all(cohort, WALK, arrays=model, anchor_mean=self._direction)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← the weights at which one client has ended."""
        drawn = int(rng.stream(self.seed, "follow", round=round).integers(len(replies)))
        return model - replies[drawn].vectors["arrays"]

    def _renew(self, round: int, model: Deferred, cohort: Sequence[int]) -> None:
        """v ← mean ∇f_i(x) or v + mean (∇f_i(x) - ∇f_i(x_before)); without an answer it stays as it was."""
        if self._direction is None or self._point is None or (round - 1) % self.inner == 0:
            replies = self.exchange(ask_all(cohort, FULL, arrays=model))
            new = uniform_mean(replies) if replies else None
        else:
            replies = self.exchange(ask_all(cohort, CHANGE, arrays=model, before=self._point))
            new = self._direction + uniform_mean(replies) if replies else None
        if new is not None:
            self._direction, self._point = new, model


class Change(LocalUpdate):
    """How a client's gradient differs at two models: ∇f_i(x; B) - ∇f_i(x_before; B) on K b samples.

    Args:
        local: steps K and mini-batch size b.
    """

    takes = ("arrays", "before")
    models = ()
    gradients = 2

    def __init__(self, local: Local) -> None:
        steps, width = steps_of(local, "BVR-L-SGD"), local.batch_size
        self.sampling = LargeBatch(None if width is None else steps * width, width)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return how many samples are drawn."""
        return {"size": self.sampling.size(samples)}

    def init(self, given: State) -> State:
        """Start a sum."""
        start = given["arrays"]
        points = {"weights": start, "before": given["before"], "size": given["size"]}
        return {**points, "change": torch.zeros_like(start), "loss": torch.zeros_like(given["size"])}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add the change on one batch."""
        new, loss = gradient(state["weights"], batch)
        old, _ = gradient(state["before"], batch)
        share = batch.weight.sum() / state["size"]
        return {
            **state,
            "change": state["change"] + share * (new - old),
            "loss": state["loss"] + share * loss,
        }

    def final(self, state: State) -> State:
        """Send the mean change, and the loss at the new model."""
        return {"arrays": state["change"], "train_loss": state["loss"]}
