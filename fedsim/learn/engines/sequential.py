"""The reference: one client after another, one step after another, no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from fedsim.learn.curriculum.order import Order
from fedsim.learn.draws import seeded
from fedsim.learn.engines.base import BUFFERS, Engine, TrainJob, Walk, metrics
from fedsim.learn.engines.device import steady
from fedsim.learn.local import CHUNK, State
from fedsim.learn.several import X
from fedsim.learn.task import Batch, Task
from fedsim.pulse import beat


class Sequential(Engine):
    """One client after another, slow and obvious: the other engines are tested against it."""

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do one job after another; what the model draws in a job depends on that job's seed alone."""
        results = []
        with self.task.mode(training=True), steady(self.task.device):
            for job in jobs:
                with seeded(job.seed, self.task.device) if self.draws(job) else nullcontext():
                    results.append(self._one(job))
        return results

    def draws(self, job: TrainJob) -> bool:
        """Tell whether anything may draw from torch's generators in a job: a model, or an update's own steps."""
        del job
        return True

    def carried(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient [W] and the mean loss [] of a batch, and the buffers [P - W] afterwards."""
        return self.task.carried(weights, batch, buffers)

    def _one(self, job: TrainJob) -> State:
        own, given = self.data.owned[job.client], {**job.given, **self.scalars(job)}
        if job.update.order is not None:
            scores = self.scores(job.update.order, job)
            own, given["score"] = own[job.update.order.arrange(scores)], scores.mean()
        return self._walked(job, own, given)

    def _walked(self, job: TrainJob, own: Tensor, given: State) -> State:
        """Return a job's result: step by step, in the order of its client's samples."""
        x, y = self.data.x, self.data.y
        key = torch.tensor(job.seed, device=self.task.device)
        walk = Walk(self.task, self.carried, self.buffers(job), key)
        state = job.update.init(given)
        ones = torch.ones(job.rows.shape[-1], dtype=self.task.dtype, device=self.task.device)
        for step, index in enumerate(self.rows(job, own)):
            batch = Batch(x.index_select(0, index), y.index_select(0, index), ones[: len(index)])
            state = job.update.step(walk.at(step), state, batch)
            beat()
        result = job.update.final(state)
        return {**result, BUFFERS: walk.buffers} if self.task.buffers else result

    def rows(self, job: TrainJob, own: Tensor) -> Iterator[Tensor]:
        """Yield which of all samples each step uses, of those [n_i] that are the client's own."""
        if (job.rows >= 0).all():  # all batches are full
            yield from own[torch.from_numpy(job.rows).to(own.device)]
        else:  # who is there is looked up on the host: a card would have to be waited for
            yield from (own[torch.from_numpy(row[row >= 0]).to(own.device)] for row in job.rows)

    def scores(self, order: Order, job: TrainJob) -> Tensor:
        """Return how hard each sample of a job's client is [n_i]."""
        if order.score == "expert":
            return self.data.expert_losses()[self.data.owned[job.client]]
        data, task = self.data, self.task
        pieces = torch.split(data.owned[job.client], CHUNK)

        def judge(weights: Tensor) -> Tensor:
            vector = torch.cat([weights, self.buffers(job)])
            return torch.cat([task.scores(vector, data.x[i], data.y[i], order.measure) for i in pieces])

        return order.scores(judge, job.given)

    def evaluate(self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Score one weight vector after another."""
        measured = self.data.is_test(x)
        with steady(self.task.device):
            return [score(self.task, vector, x, y, chunk, measured) for vector in weights]


def _total(values: Tensor) -> float:
    """Return a sum in float64, which Apple's cards do not have."""
    there = values.cpu() if values.device.type == "mps" else values
    return float(there.sum(dtype=torch.float64))


@torch.no_grad()
def score(
    task: Task, weights: Tensor, x: X, y: Tensor, chunk: int, measured: bool = False
) -> dict[str, float]:
    """Return loss (and accuracy, for a classifier) of one weight vector [P] on data [N, …], [N, …].

    Args:
        task: model, loss and metrics.
        weights: the vector [P].
        x: inputs.
        y: targets.
        chunk: how many samples go through the model at a time.
        measured: whether the task's metrics are wanted, too, which need the outputs for all samples.
    """
    losses = hits = targets = 0.0
    kept: list[Tensor] = []
    for inputs, labels in zip(x.split(chunk), torch.split(y, chunk), strict=True):
        outputs = task.predict(weights, inputs)
        beat()
        sums, counts = task.totals(outputs, labels)
        losses += _total(sums)
        targets += len(labels) if counts is None else float(counts.sum())
        if task.classifies:
            hits += float(task.criterion.hits(outputs, labels).sum())
        if measured and task.metrics:
            kept.append(outputs)
    found = {name: metric(torch.cat(kept), y) for name, metric in task.metrics.items()} if kept else {}
    return {**metrics(task, losses, hits, targets), **found}
