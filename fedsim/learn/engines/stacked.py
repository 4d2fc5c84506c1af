"""All clients of a batch in one stack of tensors, stepped together (vmap)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fedsim.learn.engines.base import Engine, Shard, TrainJob, metrics
from fedsim.learn.engines.sequential import score
from fedsim.learn.local import LocalUpdate, State
from fedsim.learn.task import Batch, Task


class Stacked(Engine):
    """Steps a fixed number of slots together; spare slots idle, and clients that are done are frozen by a mask.

    Every stack has the same number of slots and every batch of an update the same width, whoever is in it, so that
    a client's result does not depend on its neighbours in the stack.

    Args:
        task: model and loss.
        data: the clients' training data.
        slots: the number of clients in a stack.
    """

    def __init__(self, task: Task, data: Shard, slots: int) -> None:
        super().__init__(task, data)
        self.slots = slots

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs in stacks, the longest first."""
        results: list[State] = [{}] * len(jobs)
        order = sorted(range(len(jobs)), key=lambda i: -len(jobs[i].rows))
        for first in range(0, len(jobs), self.slots):
            chunk = order[first : first + self.slots]
            for place, result in zip(chunk, self._stack([jobs[i] for i in chunk]), strict=True):
                results[place] = result
        return results

    def _stack(self, jobs: Sequence[TrainJob]) -> list[State]:
        update = jobs[0].update
        given = [{**job.given, **self.scalars(job)} for job in jobs]
        given += given[:1] * (self.slots - len(jobs))
        state = vmap(update.init)({name: torch.stack([one[name] for one in given]) for name in given[0]})
        index, weight, steps = self._plan(update, jobs)
        for step in range(index.shape[1]):
            picked = index[:, step]
            batch = Batch(self.data.x[picked], self.data.y[picked], weight[:, step])
            new = vmap(lambda s, b: update.step(self.task.pure_gradient, s, b))(state, batch)
            state = _where(steps > step, new, state)
        final = vmap(update.final)(state)
        return [{name: rows[i].clone() for name, rows in final.items()} for i in range(len(jobs))]

    def _plan(self, update: LocalUpdate, jobs: Sequence[TrainJob]) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples [slots, steps, width], their weights, and the number of steps of each slot [slots]."""
        width = update.width(max(self.data.sizes))
        longest = max(len(job.rows) for job in jobs)
        rows = np.full((self.slots, longest, width), -1, dtype=np.int64)
        for slot, job in enumerate(jobs):
            rows[slot, : job.rows.shape[0], : job.rows.shape[1]] = job.rows
        positions = torch.from_numpy(rows).to(self.task.device)
        index = torch.zeros_like(positions)
        for slot, job in enumerate(jobs):
            index[slot] = self.data.owned[job.client][positions[slot].clamp(min=0)]
        steps = torch.tensor([len(job.rows) for job in jobs] + [0] * (self.slots - len(jobs)))
        return index, (positions >= 0).to(self.task.dtype), steps.to(self.task.device)

    @torch.no_grad()
    def evaluate(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Score weight vectors, in stacks where that is faster: not on a CPU."""
        if self.task.device.type == "cpu":
            return [score(self.task, vector, x, y, chunk) for vector in weights]
        return self.evaluate_stacked(weights, x, y, chunk)

    @torch.no_grad()
    def evaluate_stacked(
        self, weights: Sequence[Tensor], x: Tensor, y: Tensor, chunk: int
    ) -> list[dict[str, float]]:
        """Score weight vectors in stacks."""
        scores = []
        for first in range(0, len(weights), self.slots):
            some = list(weights[first : first + self.slots])
            stack = torch.stack(some + some[:1] * (self.slots - len(some)))
            scores += self._scores(stack, x, y, chunk)[: len(some)]
        return scores

    def _scores(self, stack: Tensor, x: Tensor, y: Tensor, chunk: int) -> list[dict[str, float]]:
        losses = torch.zeros(len(stack), dtype=torch.float64, device=stack.device)
        hits = torch.zeros_like(losses)
        for inputs, labels in zip(torch.split(x, chunk), torch.split(y, chunk), strict=True):
            outputs = vmap(self.task.predict, in_dims=(0, None))(stack, inputs)
            losses += vmap(self.task.losses, in_dims=(0, None))(outputs, labels).sum(-1, dtype=torch.float64)
            if self.task.classifies:
                hits += (outputs.argmax(-1) == labels).sum(-1)
        return [metrics(self.task, float(a), float(b), len(y)) for a, b in zip(losses, hits, strict=True)]


def _where(active: Tensor, new: State, old: State) -> State:
    """Take the new state of the slots that are still active and the old one of the others."""
    return {
        name: torch.where(active.view(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }
