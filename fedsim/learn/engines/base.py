"""What an engine is, and what it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.learn.local import LocalUpdate, State
from fedsim.learn.masks import Draws, Masked
from fedsim.learn.several import X
from fedsim.learn.task import Batch, Task

BUFFERS = "model.buffers"
"""The name of the buffers [P - W] in what comes of a job, where a model has some that training changes."""


class Unfit(FedsimError):
    """An engine cannot train a model; the text says why."""


@dataclass(frozen=True)
class Shard:
    """Data on the device, and which samples belong to whom.

    Args:
        x: inputs [N, …]; several where a model takes several.
        y: labels or targets [N].
        owned: for each client its samples' positions [n_i].
        difficulty: returns how hard an expert finds each sample [N]; called where that is asked for.
        test: held-out inputs [M, …] and their labels or targets [M], if there are any.
    """

    x: X
    y: Tensor
    owned: list[Tensor]
    difficulty: Callable[[], Tensor] | None = None
    test: tuple[X, Tensor] | None = None

    def expert_losses(self) -> Tensor:
        """Return how hard the expert finds each sample [N].

        Raises:
            FedsimError: if there is no expert.
        """
        if self.difficulty is None:
            raise FedsimError("these data have no expert to score them")
        return self.difficulty()

    def is_test(self, x: X) -> bool:
        """Tell whether inputs are the held-out ones."""
        return self.test is not None and x is self.test[0]

    @cached_property
    def everybody(self) -> Tensor:
        """All clients' samples, one client after the other [n_0 + n_1 + …]."""
        return torch.cat(self.owned)

    @cached_property
    def starts(self) -> list[int]:
        """Where each client's samples begin among those of everybody."""
        return [0, *accumulate(self.sizes)][:-1]

    @cached_property
    def sizes(self) -> list[int]:
        """The number of samples of each client."""
        return [int(own.numel()) for own in self.owned]


@dataclass(frozen=True)
class Known:
    """What an expert has said of each sample, in a form that can be sent to another process.

    Args:
        losses: how hard it finds each sample [N].
    """

    losses: Tensor

    def __call__(self) -> Tensor:
        """Return it."""
        return self.losses


@dataclass(frozen=True)
class TrainJob:
    """One local update of one client, complete in itself.

    Args:
        update: what the client does.
        client: whose data it uses.
        rows: the samples of each step, as positions into the client's samples [steps, batch], -1 as padding.
        given: the vectors that the update takes, those that it keeps and those that it draws, by name, and numbers
            in place of the update's own.
        seed: of what the model draws in training.
        buffers: what the model begins with beside its weights [P - W]; None takes those of the beginning.
    """

    update: LocalUpdate
    client: int
    rows: np.ndarray
    given: State
    seed: int = 0
    buffers: Tensor | None = None


class Engine(ABC):
    """Does local updates and evaluations, from its making to :meth:`close`.

    A job's result depends on the job alone, never on what it was computed with.

    Args:
        task: model and loss.
        data: the clients' training data.

    Raises:
        Unfit: with the reason, if the model is not one that this engine can train.

    Attributes:
        stacks: whether several clients are stepped together, by vmap, in stacks of as many as a third argument, slots,
            says; a model that draws random numbers itself cannot be.
        grain: so many jobs are best done together.
        count: so many processes share the work at most.
    """

    stacks: ClassVar[bool] = False
    grain: int = 1
    count: int = 1

    def __init__(self, task: Task, data: Shard) -> None:
        self.task, self.data = task, data

    @property
    def name(self) -> str:
        """What it is called in files and records."""
        return type(self).__name__.lower()

    @property
    def members(self) -> Sequence[Engine]:
        """The engines that it is made of: itself, for most."""
        return [self]

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the same engine again, beside model and data."""
        return {}

    @property
    def used(self) -> str:
        """Where the jobs are done."""
        return f"up to {self.count} processes" if self.count > 1 else "one process"

    @property
    def kind(self) -> type[Engine]:
        """Whose arithmetic it is."""
        return type(self)

    @property
    def arithmetic(self) -> object:
        """What the last bits of a result depend on besides the job and the model: settings of its own, and sizes."""
        settings = {
            name: one for name, one in vars(self).items() if isinstance(one, str | int | float | bool)
        }
        return settings, self.data.sizes

    @abstractmethod
    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs, and return what each client sends back and keeps, and its buffers under the name ``BUFFERS``."""

    @abstractmethod
    def evaluate(self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Return loss (and accuracy, for a classifier) of several weight vectors on data [N, …], [N]."""

    def close(self) -> None:  # noqa: B027  # most have nothing to do, and need not say so
        """Give back what the engine holds beside memory; most hold nothing."""

    def scalars(self, job: TrainJob) -> State:
        """Return the client's own numbers as tensors [], but for those that the job gives."""
        numbers = job.update.scalars(job.client, self.data.sizes[job.client])
        return {
            name: torch.tensor(v, dtype=self.task.dtype, device=self.task.device)
            for name, v in numbers.items()
            if name not in job.given
        }

    def buffers(self, job: TrainJob) -> Tensor:
        """Return the buffers [P - W] that a job begins with."""
        return self.task.start if job.buffers is None else job.buffers


class Around(Engine):
    """An engine that has another one do the jobs, somewhere else or together with others': the bits are that one's.

    Args:
        inner: the engine that does them.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.task, inner.data)
        self.inner, self.grain = inner, inner.grain

    @property
    def name(self) -> str:
        """The name of the engine that does the jobs."""
        return self.inner.name

    @property
    def kind(self) -> type[Engine]:
        """Whose arithmetic it is."""
        return self.inner.kind

    @property
    def arithmetic(self) -> object:
        """What the bits depend on: where and with whom the jobs are done is not among that."""
        return self.inner.arithmetic


class Walk:
    """The gradient of one job, step by step; it carries the buffers from call to call, and knows what to draw.

    Args:
        task: model and loss.
        carried: from weights, batch and buffers to gradient, loss and buffers.
        buffers: at the beginning [P - W].
        key: of what the job draws, int64 [].
    """

    def __init__(
        self,
        task: Task,
        carried: Callable[[Tensor, Batch, Tensor], tuple[Tensor, Tensor, Tensor]],
        buffers: Tensor,
        key: Tensor,
    ) -> None:
        self.task, self.buffers = task, buffers
        self._carried, self._key = carried, key
        self._draws = Draws(key)

    def at(self, step: int) -> Walk:
        """Go on with a step."""
        self._draws = Draws(self._key, step)
        return self

    def __call__(self, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the mean gradient [W] and the mean loss [] of a batch."""
        if self.task.augment is not None:
            batch = batch._replace(x=self.task.augment(batch.x, self._draws))
        with Masked(self._draws) if self.task.drops else nullcontext():
            gradient, loss, self.buffers = self._carried(weights, batch, self.buffers)
        return gradient, loss


def metrics(task: Task, losses: float, hits: float, targets: float) -> dict[str, float]:
    """Return mean loss and accuracy from sums over targets; of none at all, both are 0."""
    targets = targets or 1.0
    accuracy = {"accuracy": hits / targets} if task.classifies else {}
    return {"loss": losses / targets, **accuracy}
