"""All clients of a batch in one stack of tensors, stepped together (vmap)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from fedsim.errors import BadValue
from fedsim.learn.curriculum.order import Order
from fedsim.learn.engines.base import BUFFERS, Engine, Shard, TrainJob, Walk, metrics
from fedsim.learn.engines.device import steady
from fedsim.learn.engines.sequential import score
from fedsim.learn.local import CHUNK, LocalUpdate, State
from fedsim.learn.several import X
from fedsim.learn.task import Batch, Task
from fedsim.pulse import beat

Precision = Literal["full", "tf32", "bf16"]

LESS = "leave it out"

CPU_SLOTS, ACCELERATOR_SLOTS = 10, 64

SLOW = ".*performance drop.*"
"""What torch warns of where it does an operation for one client after another."""


class Stacked(Engine):
    """Many clients in one stack of tensors, stepped together: for accelerators.

    Spare slots idle, and clients that are done are frozen by a mask.

    Every stack has the same number of slots and every batch of an update the same width, whoever is in it, so that
    a client's result does not depend on its neighbours in the stack.

    Args:
        task: model and loss.
        data: the clients' training data.
        slots: the number of clients in a stack; None for one that suits the device.
        precision: of the products in training: full is that of the weights; tf32 (on NVIDIA cards) and bf16 are faster
            and have other results. Evaluations are always in full.

    Raises:
        BadValue: with the key ``precision``, if that is none of this device or of this type of weights.
    """

    stacks: ClassVar[bool] = True

    def __init__(
        self, task: Task, data: Shard, slots: int | None = None, precision: Precision = "full"
    ) -> None:
        super().__init__(task, data)
        _check(precision, task)
        # Nothing where it is full: other values of this engine keep their names.
        self._precision = None if precision == "full" else precision
        on_cpu = task.device.type == "cpu"
        self.slots = self.grain = slots or (CPU_SLOTS if on_cpu else ACCELERATOR_SLOTS)

    @property
    def settings(self) -> dict[str, Any]:
        """Return the number of slots, and the precision."""
        return {"slots": self.slots, "precision": self._precision or "full"}

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs in stacks of one update, the longest first."""
        results: list[State] = [{}] * len(jobs)
        alike: dict[LocalUpdate, list[int]] = {}
        for place in sorted(range(len(jobs)), key=lambda i: -len(jobs[i].rows)):
            alike.setdefault(jobs[place].update, []).append(place)
        stacks = [
            some[i : i + self.slots] for some in alike.values() for i in range(0, len(some), self.slots)
        ]
        with _quiet(), self.task.mode(training=True), self._steady():
            for places in stacks:
                for place, result in zip(places, self.stack([jobs[i] for i in places]), strict=True):
                    results[place] = result
        return results

    def stack(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs of one update, no more than there are slots; torch warns of what it cannot do for all at once."""
        update, stack = jobs[0].update, self._given(jobs)
        ranked: list[Tensor] | None = None
        if update.order is not None:
            scores = self.scores(update.order, jobs, stack)
            owned = [self.data.owned[job.client] for job in jobs]
            ranked = [own[update.order.arrange(found)] for own, found in zip(owned, scores, strict=True)]
            means = [found.mean() for found in scores]
            stack["score"] = torch.stack(means + means[:1] * (self.slots - len(jobs)))
        state, buffers, keys = vmap(update.init)(stack), self._buffers(jobs), self._keys(jobs)
        index, weight, counts = self._plan(update, jobs, ranked)
        for step in range(index.shape[1]):
            for width, active in self._widths(weight.shape[-1], counts[:, step]):
                picked = index[:, step, :width]
                batch = Batch(self.data.x[picked], self.data.y[picked], weight[:, step, :width])
                new, after = self._step(update, step)(state, batch, buffers, keys)
                state = _where(active, new, state)
                buffers = torch.where(active[:, None], after, buffers)
            beat()
        final = dict(vmap(update.final)(state))
        if self.task.buffers:
            final[BUFFERS] = buffers
        return [{name: rows[i].clone() for name, rows in final.items()} for i in range(len(jobs))]

    def _given(self, jobs: Sequence[TrainJob]) -> State:
        """Return what the slots are given, by name; numbers go to the device together."""
        own = [job.update.scalars(job.client, self.data.sizes[job.client]) for job in jobs]
        dtype, device = self.task.dtype, self.task.device
        found = {}
        for name in {**jobs[0].given, **own[0]}:
            values = [job.given.get(name, numbers.get(name)) for job, numbers in zip(jobs, own, strict=True)]
            values += values[:1] * (self.slots - len(jobs))
            if any(isinstance(one, Tensor) for one in values):
                found[name] = torch.stack(
                    [torch.as_tensor(one, dtype=dtype, device=device) for one in values]
                )
            else:
                found[name] = torch.tensor(values, dtype=dtype, device=device)
        return found

    def _step(
        self, update: LocalUpdate, step: int
    ) -> Callable[[State, Batch, Tensor, Tensor], tuple[State, Tensor]]:
        """Return one step of all slots: from state, batch, buffers and keys to state and buffers."""

        def one(state: State, batch: Batch, buffers: Tensor, key: Tensor) -> tuple[State, Tensor]:
            walk = Walk(self.task, self._carried, buffers, key).at(step)
            return update.step(walk, state, batch), walk.buffers

        return vmap(one)

    def _steady(self) -> AbstractContextManager[None]:
        return steady(self.task.device, tf32=self._precision == "tf32")

    def _carried(self, weights: Tensor, batch: Batch, buffers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean gradient [W] and the mean loss [] of a batch, and the buffers [P - W] afterwards."""
        if self._precision != "bf16":
            return self.task.pure(weights, batch, buffers)
        with torch.autocast(self.task.device.type, torch.bfloat16, cache_enabled=False):
            gradient, loss, after = self.task.pure(weights, batch, buffers)
        return gradient.to(weights.dtype), loss.to(weights.dtype), after

    def _widths(self, widest: int, counts: np.ndarray) -> list[tuple[int, Tensor]]:
        """Return how many samples of their rows the slots are to be given, and which slots.

        A model that looks at its batch as a whole must not see padding: then rows of each length go by themselves,
        through as many slots as ever, so that nobody's numbers depend on the others.

        Args:
            widest: the length of a row.
            counts: the samples of each slot in this step [slots], -1 where there is no step. They are known on the
                host, so that nothing waits for the device.
        """
        if not self.task.mixes:
            return [(widest, self._told(counts >= 0))]
        return [(int(n), self._told(counts == n)) for n in np.unique(counts[counts >= 0])]

    def _told(self, chosen: np.ndarray) -> Tensor:
        return torch.from_numpy(chosen).to(self.task.device)

    def _buffers(self, jobs: Sequence[TrainJob]) -> Tensor:
        """Return the buffers that the slots begin with [slots, P - W]."""
        own = [self.buffers(job) for job in jobs]
        return torch.stack(own + own[:1] * (self.slots - len(jobs)))

    def _keys(self, jobs: Sequence[TrainJob]) -> Tensor:
        """Return the keys of what is drawn in the slots [slots]."""
        seeds = [job.seed for job in jobs]
        return torch.tensor(seeds + seeds[:1] * (self.slots - len(jobs)), device=self.task.device)

    @torch.no_grad()
    def scores(self, order: Order, jobs: Sequence[TrainJob], stack: State) -> list[Tensor]:
        """Return how hard each sample of the jobs' clients is [n_i], from what the slots are given [slots, P].

        The samples are scored in pieces of one width, so that a client's scores do not depend on its neighbours.
        """
        if order.score == "expert":
            return [self.data.expert_losses()[self.data.owned[job.client]] for job in jobs]
        sizes = [self.data.sizes[job.client] for job in jobs]
        width = min(CHUNK, max(self.data.sizes))
        index = torch.zeros(
            self.slots, -(-max(sizes) // width) * width, dtype=torch.long, device=self.task.device
        )
        for slot, job in enumerate(jobs):
            index[slot, : sizes[slot]] = self.data.owned[job.client]
        models = {name: stack[name] for name in ("arrays", *order.keeps)}

        buffers = self._buffers(jobs)

        def score(given: State, buffers: Tensor, x: X, y: Tensor) -> Tensor:
            def judge(weights: Tensor) -> Tensor:
                return self.task.scores(torch.cat([weights, buffers]), x, y, order.measure)

            return order.scores(judge, given)

        pieces = [
            vmap(score)(models, buffers, self.data.x[i], self.data.y[i])
            for i in torch.split(index, width, dim=1)
        ]
        found = torch.cat(pieces, dim=1)
        return [found[slot, :size] for slot, size in enumerate(sizes)]

    def _plan(
        self, update: LocalUpdate, jobs: Sequence[TrainJob], ranked: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """Return samples [slots, steps, width], their weights, and how many there are [slots, steps], -1 for no step.

        Args:
            update: has the width.
            jobs: have the positions.
            ranked: the clients' samples in their order, where that is another than the data's own.
        """
        width = update.width(max(self.data.sizes))
        longest = max(len(job.rows) for job in jobs)
        rows = np.full((self.slots, longest, width), -1, dtype=np.int64)
        counts = np.full((self.slots, longest), -1)
        for slot, job in enumerate(jobs):
            rows[slot, : job.rows.shape[0], : job.rows.shape[1]] = job.rows
            counts[slot, : job.rows.shape[0]] = (job.rows >= 0).sum(-1)
        weight = self._told(rows >= 0).to(self.task.dtype)
        places, starts = rows.clip(min=0), self.data.starts
        if ranked is None:
            places += np.array([starts[job.client] for job in jobs] + [0] * (self.slots - len(jobs)))[
                :, None, None
            ]
            return self.data.everybody[self._told(places)], weight, counts
        index = torch.zeros(rows.shape, dtype=torch.long, device=self.task.device)
        for slot, own in enumerate(ranked):
            index[slot] = own[self._told(places[slot])]
        return index, weight, counts

    @torch.no_grad()
    def evaluate(self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Score weight vectors, in stacks where that is faster: not on a CPU."""
        if self.task.device.type in ("cpu", "mps") or (self.task.metrics and self.data.is_test(x)):
            measured = self.data.is_test(x)
            with steady(self.task.device):
                return [score(self.task, vector, x, y, chunk, measured) for vector in weights]
        return self.evaluate_stacked(weights, x, y, chunk)

    @torch.no_grad()
    def evaluate_stacked(
        self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int
    ) -> list[dict[str, float]]:
        """Score weight vectors in stacks."""
        scores = []
        with _quiet(), steady(self.task.device):
            for first in range(0, len(weights), self.slots):
                some = list(weights[first : first + self.slots])
                stack = torch.stack(some + some[:1] * (self.slots - len(some)))
                scores += self._scores(stack, x, y, chunk)[: len(some)]
        return scores

    def _scores(self, stack: Tensor, x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Score a stack of weight vectors; the device is asked for its numbers once, at the end."""
        losses = torch.zeros(len(stack), dtype=torch.float64, device=stack.device)
        hits, targets = torch.zeros_like(losses), torch.zeros_like(losses[0])
        for inputs, labels in zip(x.split(chunk), torch.split(y, chunk), strict=True):
            outputs = vmap(self.task.predict, in_dims=(0, None))(stack, inputs)
            beat()
            sums = vmap(lambda out, right: self.task.totals(out, right)[0], in_dims=(0, None))
            losses += sums(outputs, labels).sum(-1, dtype=torch.float64)
            targets += self.task.criterion.counts(labels, torch.float64).sum()
            if self.task.classifies:
                hits += vmap(self.task.criterion.hits, in_dims=(0, None))(outputs, labels).sum(-1)
        *found, total = torch.stack([losses, hits, targets.expand_as(losses)]).cpu().tolist()
        return [metrics(self.task, a, b, total[0]) for a, b in zip(*found, strict=True)]


def _check(precision: Precision, task: Task) -> None:
    """Refuse a precision that means nothing here."""
    device = task.device.type
    if precision == "full":
        return
    if task.dtype != torch.float32:
        name = str(task.dtype).removeprefix("torch.")
        raise BadValue(
            "precision", precision, f"is less than what {name} was asked for", "take dtype: float32"
        )
    if precision == "tf32" and device != "cuda":
        raise BadValue(
            "precision", precision, f"is arithmetic of NVIDIA cards, and the device is {device}", LESS
        )
    if device not in ("cpu", "cuda"):
        raise BadValue("precision", precision, f"cannot be had on the device {device}", LESS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings of slow operations back: the choice of the engine has told of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=SLOW)
        yield


def _where(active: Tensor, new: State, old: State) -> State:
    """Take the new state of the slots that are still active and the old one of the others."""
    return {
        name: torch.where(active.view(-1, *[1] * (value.dim() - 1)), value, old[name])
        for name, value in new.items()
    }
