"""The sequential engine without parameters handed in and out of the model: the same operations, the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.learn.engines.base import Shard, TrainJob
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.local import State
from fedsim.learn.several import called
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
        self._flat = task.initial[: task.trained].clone()
        self._own = [p for p in task.module.parameters() if p.requires_grad]
        for parameter, piece in zip(self._own, task.split(self._flat), strict=True):
            parameter.data = piece

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do one job after another, and leave the model as it was."""
        try:
            return super().train(jobs)
        finally:
            self._flat.copy_(self.task.initial[: self.task.trained])
            self._lay(self.task.start)

    def carried(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient [W] and the mean loss [] of a batch, and the buffers [P - W] afterwards."""
        self._flat.copy_(weights)
        self._lay(buffers)
        with self.task.mode(training=True):
            loss = self.task.mean(called(self.task.module, batch.x), batch)
            pieces = torch.autograd.grad(loss, self._own, materialize_grads=True)
        gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        return gradient, loss.detach(), self._found(buffers)

    def _lay(self, buffers: Tensor) -> None:
        for name, values in self.task.split_buffers(buffers).items():
            self.task.module.get_buffer(name).copy_(self.task.typed(name, values))

    def _found(self, buffers: Tensor) -> Tensor:
        """Return what the forward has left in the module; without buffers that is nothing."""
        if not self.task.buffers:
            return buffers
        found = [self.task.module.get_buffer(name).detach().reshape(-1) for name in self.task.buffers]
        return torch.cat([one.to(buffers.dtype) for one in found])
