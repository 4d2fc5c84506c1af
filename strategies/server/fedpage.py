"""FedPAGE: now and then everybody's gradient, otherwise a few clients carry the last one on.

H. Zhao, Z. Li, P. Richtárik: FedPAGE: A Fast Local Stochastic Gradient Method for Communication-Efficient Federated
Learning. arXiv:2108.04755, 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim import rng
from fedsim.errors import MISSING, BadValue
from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate, MeanGradient, State, rate, steps_of
from fedsim.learn.sampling import FreshBatches, LargeBatch
from fedsim.learn.schedules import Schedule, schedule
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Ask, Reply, ask_all, uniform_mean
from fedsim.parts import Count, Positive, Share
from fedsim.spec.experiment import Local

FULL, PARTIAL = "train.full", "train.partial"


@dataclass(kw_only=True, eq=False)
class FedPAGE(FlowerFace, Rounds):
    """Follow a gradient that all renew with probability p, and a few carry on otherwise (Zhao et al., 2021).

    Args:
        p: probability that all clients that are online send a gradient; in the first round they always do.
        large_batch: batch size of those gradients, and of the one that carries the last direction on; None for all
            samples.
        server_lr: length of a server's step along the direction; None for K times the local learning rate of the
            round, with which the model moves to the mean of the clients' own.
    """

    weighted: ClassVar[bool] = False
    p: Share = 0.1
    large_batch: Count | None = None
    server_lr: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._paced: Schedule | None = None
        if self.server_lr is None:
            if isinstance(self.local.lr, list):
                rule = "must be given where every client has its own local.lr"
                raise BadValue("server_lr", MISSING, rule)
            self._paced = schedule(self.local)
            self.server_lr = steps_of(self.local, "FedPAGE") * rate(self.local, 0)
        self._direction: Deferred | None = None
        self._before: Deferred | None = None

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do."""
        return {FULL: MeanGradient(self.large_batch), PARTIAL: CarryOn(self.local, self.large_batch)}

    def is_full(self, round: int) -> bool:
        """Return whether a round is for all clients."""
        return self._direction is None or bool(rng.stream(self.seed, "page", round=round).random() < self.p)

    def size(self, round: int) -> int | None:
        """Ask all that are online in a full round."""
        return None if self.is_full(round) else self.participants

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Ask for a gradient, or send the direction and the two last models."""
        if self._direction is None or self._before is None or self.is_full(round):
            return ask_all(cohort, FULL, arrays=model)
        return ask_all(cohort, PARTIAL, arrays=model, before=self._before, direction=self._direction)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """g ← mean of what came, x ← x - η g."""
        self._direction, self._before = uniform_mean(replies), model
        assert self.server_lr is not None  # it has been worked out from the local rate
        factor = 1.0 if self._paced is None else self._paced(round)
        return model - self.server_lr * factor * self._direction

    def metrics(self, round: int) -> Iterable[Metric]:
        """Say whether the round was for all."""
        yield from super().metrics(round)
        yield Metric("full", sum(reply.action == FULL for reply in self.came))


class CarryOn(LocalUpdate):
    """K steps along the last direction, corrected by the client's own data (a SARAH recursion).

    The first step follows g + ∇f_i(x; B) - ∇f_i(x_before; B) on a large batch; step k adds the change of the gradient,
    on one fresh mini-batch, from the iterate before last to the last one.

    Args:
        local: steps K, mini-batch size and learning rate.
        large_batch: batch size of the first step; None for all samples.
    """

    takes = ("arrays", "before", "direction")
    models = ()
    gradients = 2

    def __init__(self, local: Local, large_batch: int | None) -> None:
        self.local, self.steps = local, steps_of(local, "FedPAGE")
        self.large = LargeBatch(large_batch, local.batch_size)
        self.sampling = self.large + FreshBatches(local, self.steps - 1)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the size of the large batch, and in how many pieces it comes."""
        large, pieces = self.large.size(samples), self.large.steps(samples)
        return {"lr": rate(self.local, client), "large": large, "pieces": pieces}

    def init(self, given: State) -> State:
        """Start at the weights received, with the last direction."""
        start, zero = given["arrays"], torch.zeros_like(given["lr"])
        fixed = {name: given[name] for name in ("lr", "large", "pieces", "before", "direction")}
        return {**fixed, "start": start, "weights": start, "loss": zero, "count": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """g ← g + ∇f_i(y; B) - ∇f_i(y_before; B); y ← y - lr g as soon as the large batch is through."""
        weights, before = state["weights"], state["before"]
        new, loss = gradient(weights, batch)
        old, _ = gradient(before, batch)
        count = state["count"] + 1
        first, moves = count <= state["pieces"], count >= state["pieces"]
        share = torch.where(first, batch.weight.sum() / state["large"], torch.ones_like(count))
        direction = state["direction"] + share * (new - old)
        return {
            **state,
            "before": torch.where(moves, weights, before),
            "weights": torch.where(moves, weights - state["lr"] * direction, weights),
            "direction": direction,
            "loss": state["loss"] + torch.where(first, share * loss, torch.zeros_like(loss)),
            "count": count,
        }

    def final(self, state: State) -> State:
        """Send the mean direction of the K steps, and the loss at the weights received."""
        mean = (state["start"] - state["weights"]) / (self.steps * state["lr"])
        return {"arrays": mean, "train_loss": state["loss"]}
