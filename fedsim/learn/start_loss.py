"""Local SGD for servers that weigh a client by its loss at the model that it was sent."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedsim.learn.local import LocalSGD, State
from fedsim.learn.sampling import Everything
from fedsim.learn.task import Batch, Gradient
from fedsim.spec.experiment import Local

START_LOSS = "start_loss"
"""The metric: the mean loss over all of a client's samples at the weights received."""


class StartLoss(LocalSGD):
    """Local SGD behind a pass over all samples that measures the loss at the weights received.

    Args:
        local: local training.

    >>> update = StartLoss(Local(epochs=1, batch_size=4))
    >>> update.work(9), update.metrics  # 9 gradients, and a forward pass of a third of that
    (12, ('train_loss', 'start_loss'))
    """

    metrics = ("train_loss", START_LOSS)

    def __init__(self, local: Local) -> None:
        super().__init__(local)
        self.whole, self.training = Everything(local), self.sampling
        self.sampling = self.whole + self.training

    def work(self, samples: int) -> int:
        """Count the gradients, and a third of one for each sample of the pass."""
        return self.training.size(samples) - (-samples // 3)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the learning rate, the number of samples, and in how many batches the pass comes."""
        pieces = self.whole.steps(samples)
        return {**super().scalars(client, samples), "samples": samples, "pieces": pieces}

    def init(self, given: State) -> State:
        """Start at the weights received, with nothing measured."""
        zero = torch.zeros_like(given["lr"])
        own = {"samples": given["samples"], "pieces": given["pieces"], "seen": zero, START_LOSS: zero}
        return {**super().init(given), **own}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Measure while the pass lasts, then train."""
        new = super().step(gradient, state, batch)
        measures, loss = state["seen"] < state["pieces"], new["loss"] - state["loss"]
        share = measures * batch.weight.sum() / state["samples"]
        kept = {name: torch.where(measures, state[name], value) for name, value in new.items()}
        return {**kept, "seen": state["seen"] + 1, START_LOSS: state[START_LOSS] + share * loss}

    def final(self, state: State) -> State:
        """Send the weights, the mean loss over the steps, and the loss at the weights received."""
        return {**super().final(state), START_LOSS: state[START_LOSS]}
