"""Which samples a visit uses and in what batches, known without looking at any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from fedsim.learn.curriculum.pacing import budget, in_round, pass_sizes, plan, plan_counts
from fedsim.spec.experiment import Local
from fedsim.spec.local import Curriculum


class Sampling(ABC):
    """A way to draw the batches of a visit; ``first + second`` draws those of one and then those of the other.

    Attributes:
        curriculum: how the batches grow, or None.
    """

    curriculum: Curriculum | None = None

    @abstractmethod
    def size(self, samples: int) -> int:
        """Return how many samples the batches of a client with that many samples hold in all."""

    @abstractmethod
    def width(self, samples: int) -> int:
        """Return the largest batch of a client with at most that many samples."""

    @abstractmethod
    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return positions into a client's samples [steps, width], -1 where a batch is short."""

    def steps(self, samples: int) -> int:
        """Return how many batches there are."""
        return -(-self.size(samples) // self.width(samples))

    def paced(self, curriculum: Curriculum) -> Sampling:
        """Return the same with another curriculum; most have none."""
        del curriculum
        return self

    def __add__(self, other: Sampling) -> Sampling:
        return Both(self, other)


@dataclass(frozen=True)
class LocalBatches(Sampling):
    """The batches of local training: shuffled passes, over all samples or those of the curriculum.

    Args:
        local: epochs or steps, batch size, curriculum.

    >>> sampling = LocalBatches(Local(epochs=2, batch_size=4))
    >>> sampling.size(9), sampling.steps(9)
    (18, 6)
    """

    local: Local

    @property
    def curriculum(self) -> Curriculum | None:  # type: ignore[override]  # read-only on purpose
        """Local training's own."""
        return self.local.curriculum

    def size(self, samples: int) -> int:
        """Count the samples of all passes."""
        return local_samples(self.local, samples)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches; they are ranks if the update has an order."""
        return local_batches(self.local, samples, rng)

    def steps(self, samples: int) -> int:
        """Count the batches of all passes."""
        return steps_taken(self.local, samples)

    def paced(self, curriculum: Curriculum) -> LocalBatches:
        """Train by another curriculum."""
        return LocalBatches(self.local.model_copy(update={"curriculum": curriculum}))


@dataclass(frozen=True)
class FreshBatches(Sampling):
    """So many mini-batches, cut from shuffled passes.

    Args:
        local: its batch size counts.
        count: how many.

    >>> FreshBatches(Local(steps=1, batch_size=2), 4).size(5)
    7
    """

    local: Local
    count: int

    def size(self, samples: int) -> int:
        """Count the samples; the last batch of a pass may be short."""
        return samples_used(samples, self.width(samples), None, self.count)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches."""
        return shuffled_batches(samples, self.width(samples), None, self.count, rng)

    def steps(self, samples: int) -> int:
        """Return how many there are."""
        return self.count


@dataclass(frozen=True)
class LargeBatch(Sampling):
    """One large batch drawn without replacement, in rows that fit into memory.

    Args:
        most: how many samples; None for all.
        row: the samples in a row; None for all in one.

    >>> LargeBatch(6, 4).size(5), LargeBatch(6, 4).steps(5)
    (5, 2)
    """

    most: int | None
    row: int | None

    def size(self, samples: int) -> int:
        """Return the size of the batch."""
        return min(self.most or samples, samples)

    def width(self, samples: int) -> int:
        """Return the length of a row."""
        return min(self.row or samples, self.size(samples))

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the batch."""
        return chunks(rng.permutation(samples)[: self.size(samples)], self.width(samples))


@dataclass(frozen=True)
class Everything(Sampling):
    """All samples in their order, once.

    Args:
        local: its batch size counts.
    """

    local: Local

    def size(self, samples: int) -> int:
        """Return all."""
        return samples

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut the samples into batches."""
        return chunks(np.arange(samples), self.width(samples))


@dataclass(frozen=True)
class Nothing(Sampling):
    """No batch at all."""

    def size(self, samples: int) -> int:
        """Return 0."""
        return 0

    def width(self, samples: int) -> int:
        """Return 1: nothing has no width."""
        return 1

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Return no row."""
        return np.zeros((0, 1), dtype=np.int64)


@dataclass(frozen=True)
class Both(Sampling):
    """The batches of one sampling behind those of another.

    >>> from fedsim.rng import stream
    >>> both = LargeBatch(1, None) + Everything(Local(batch_size=2))
    >>> both.batches(3, stream(0, "doc")).tolist()
    [[1, -1], [0, 1], [2, -1]]
    """

    first: Sampling
    second: Sampling

    @property
    def curriculum(self) -> Curriculum | None:  # type: ignore[override]  # read-only on purpose
        """The one that either has."""
        return self.first.curriculum or self.second.curriculum

    def size(self, samples: int) -> int:
        """Add both."""
        return self.first.size(samples) + self.second.size(samples)

    def width(self, samples: int) -> int:
        """Return the larger one."""
        return max(self.first.width(samples), self.second.width(samples))

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the first ones first."""
        width = self.width(samples)
        drawn = self.first.batches(samples, rng), self.second.batches(samples, rng)
        padded = [np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=-1) for rows in drawn]
        return np.concatenate(padded)

    def steps(self, samples: int) -> int:
        """Add both."""
        return self.first.steps(samples) + self.second.steps(samples)

    def paced(self, curriculum: Curriculum) -> Sampling:
        """Train by another curriculum."""
        return Both(self.first.paced(curriculum), self.second.paced(curriculum))


def batch_width(local: Local, samples: int) -> int:
    """Return the batch size of a client, or all its samples if there are fewer."""
    return min(local.batch_size or samples, samples)


def samples_used(samples: int, width: int, epochs: int | None, steps: int | None) -> int:
    """Return how many samples the batches of :func:`shuffled_batches` hold in all.

    >>> samples_used(5, 2, None, 4)
    7
    """
    if steps is None:
        return samples * (epochs or 1)
    passes, rest = divmod(steps, -(-samples // width))
    return passes * samples + min(rest * width, samples)


def chunks(drawn: np.ndarray, width: int) -> np.ndarray:
    """Cut one large batch into rows; the last may be short.

    Args:
        drawn: positions [B] into the client's samples.
        width: the samples in a row.

    Returns:
        Positions [rows, width], -1 as padding.

    >>> chunks(np.array([4, 0, 2]), 2).tolist()
    [[4, 0], [2, -1]]
    """
    rows = np.full(-(-len(drawn) // width) * width, -1, dtype=np.int64)
    rows[: len(drawn)] = drawn
    return rows.reshape(-1, width)


def local_batches(local: Local, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the batches of a local training: shuffled passes, over all samples or those of the curriculum.

    Args:
        local: epochs or steps, batch size, curriculum.
        samples: how many the client has.
        rng: shuffles each pass afresh.

    Returns:
        Positions, or ranks if the update has an order [steps, width], -1 as padding.
    """
    width = batch_width(local, samples)
    if local.paced is None:
        return shuffled_batches(samples, width, local.epochs, local.steps, rng)
    return plan(local.paced, samples, width, *_budget(local, samples), rng)


def local_samples(local: Local, samples: int) -> int:
    """Return how many samples the batches of :func:`local_batches` hold in all.

    >>> local_samples(Local(epochs=10, batch_size=10, curriculum=Curriculum()), 125)
    1247
    """
    width = batch_width(local, samples)
    if local.paced is None:
        return samples_used(samples, width, local.epochs, local.steps)
    return plan_counts(local.paced, samples, width, *_budget(local, samples))[1]


def steps_taken(local: Local, samples: int) -> int:
    """Return how many steps :func:`local_batches` makes of a client's samples.

    >>> steps_taken(Local(epochs=2, batch_size=4), 9)
    6
    """
    width = batch_width(local, samples)
    if local.paced is not None:
        return plan_counts(local.paced, samples, width, *_budget(local, samples))[0]
    if local.steps is not None:
        return local.steps
    return -(-samples // width) * (local.epochs or 1)


def pace_of(local: Local, samples: int) -> list[tuple[int, int]]:
    """Return the clock and the number of samples at each change of the pace.

    Args:
        local: local training.
        samples: how many the client has.

    Returns:
        The steps taken in the visit and the size of the pass that follows; or, where the clock runs over rounds, the
        round and the size of its passes. Nothing without a curriculum.

    >>> pace_of(Local(epochs=10, batch_size=10, curriculum=Curriculum()), 500)[:3]
    [(0, 100), (10, 109), (21, 120)]
    """
    paced, width = local.paced, batch_width(local, samples)
    if paced is None:
        return []
    if paced.rounds is not None:
        rounds = range(1, paced.rounds + 1)
        return [(round, pass_sizes(in_round(paced, round), samples, width, 1)[0]) for round in rounds]
    sizes = pass_sizes(paced, samples, width, _budget(local, samples)[0])
    clock = np.cumsum([0, *(-(-size // width) for size in sizes[:-1])])
    return list(zip(clock.tolist(), sizes, strict=True))


def _budget(local: Local, samples: int) -> tuple[int, bool]:
    """Return the steps of a paced visit, and whether they are kept exactly: steps that are given are."""
    if local.steps is not None:
        return local.steps, True
    steps = budget(samples, local.batch_size or samples, local.epochs or 1)
    return steps, local.paced is not None and local.paced.rounds is not None


def shuffled_batches(
    samples: int, width: int, epochs: int | None, steps: int | None, rng: np.random.Generator
) -> np.ndarray:
    """Cut shuffled passes over a client's samples into batches; the last batch of a pass may be short.

    Args:
        samples: how many samples there are.
        width: the batch size, at most ``samples``.
        epochs: how many passes; or
        steps: how many batches, over as many passes as it takes.
        rng: shuffles each pass afresh.

    Returns:
        Positions [steps, width], -1 as padding.

    >>> from fedsim.rng import stream
    >>> shuffled_batches(3, 2, 1, None, stream(0, "doc")).tolist()
    [[1, 0], [2, -1]]
    """
    in_pass = -(-samples // width)
    total = steps if steps is not None else in_pass * (epochs or 1)
    passes = -(-total // in_pass)
    rows = np.full((passes, in_pass * width), -1, dtype=np.int64)
    for row in rows:
        row[:samples] = rng.permutation(samples)
    return rows.reshape(passes * in_pass, width)[:total]
