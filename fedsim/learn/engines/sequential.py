"""The reference: one client after another, one step after another, no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.learn.engines.base import Engine, TrainJob
from fedsim.learn.local import State
from fedsim.learn.task import Batch


class Sequential(Engine):
    """Slow and obvious; the other engines are tested against it."""

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do one job after another."""
        return [self._one(job) for job in jobs]

    def _one(self, job: TrainJob) -> State:
        x, y, own = self.data.x, self.data.y, self.data.owned[job.client]
        state = job.update.init({**job.given, **self.scalars(job)})
        for row in job.rows:
            index = own[torch.from_numpy(row[row >= 0]).to(own.device)]
            batch = Batch(x[index], y[index], torch.ones(len(index), dtype=self.task.dtype, device=x.device))
            state = job.update.step(self.task.gradient, state, batch)
        return job.update.final(state)

    def evaluate(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Score one weight vector after another."""
        return [self._score(vector, x, y, chunk) for vector in weights]

    @torch.no_grad()
    def _score(self, weights: Tensor, x: Tensor, y: Tensor, chunk: int) -> dict[str, float]:
        losses = hits = 0.0
        for inputs, labels in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
            outputs = self.task.predict(weights, inputs)
            losses += float(self.task.losses(outputs, labels).sum(dtype=torch.float64))
            if self.task.classifies:
                hits += float((outputs.argmax(-1) == labels).sum())
        return self.score(losses, hits, len(y))
