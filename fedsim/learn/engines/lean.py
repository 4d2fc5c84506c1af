"""The sequential engine without parameters handed in and out of the model: the same operations, the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.learn.engines.base import Shard, TrainJob
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.local import State
from fedsim.learn.task import Batch, Task


class Lean(Sequential):
    """One client after another, on one vector of parameters: the same bits, less time.

    The model's own parameters lie in the vector; the weights that a gradient is wanted at are copied into it.

    Args:
        task: model and loss; its parameters are laid anew.
        data: the clients' training data.
    """

    def __init__(self, task: Task, data: Shard) -> None:
        super().__init__(task, data)
        self._flat = task.initial.clone()
        self._own = [p for p in task.module.parameters() if p.requires_grad]
        for parameter, piece in zip(self._own, task.split(self._flat), strict=True):
            parameter.data = piece

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do one job after another, and leave the model as it was."""
        try:
            return super().train(jobs)
        finally:
            self._flat.copy_(self.task.initial)

    def gradient(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean gradient [P] and the mean loss [] of a batch."""
        self._flat.copy_(weights)
        with self.task.mode(training=True):
            loss = self.task.mean(self.task.module(batch.x), batch)
            pieces = torch.autograd.grad(loss, self._own, materialize_grads=True)
        return torch.cat([piece.reshape(-1) for piece in pieces]), loss.detach()
