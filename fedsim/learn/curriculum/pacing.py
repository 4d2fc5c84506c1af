"""Ordered learning: which samples, or which clients, take part at a time, and how fast their number grows.

S. Vahidian, S. Kadaveru, W. Baek, W. Wang, V. Kungurtsev, C. Chen, M. Shah, B. Lin: When Do Curricula Work in Federated
Learning? ICCV 2023. The families of pacing functions are those of X. Wu, E. Dyer, B. Neyshabur: When Do Curricula Work?
ICLR 2021.

Nothing here looks at a value: who is easy is decided elsewhere, and positions in a plan are ranks.
"""

from __future__ import annotations

import math

import numpy as np

from fedsim.spec.local import Curriculum, Family

STEEP = 10.0
"""The constant of the families ``exp`` and ``log``."""

SLACK = 1e-9
"""Rounding must not take a whole sample away."""


def share(curriculum: Curriculum, done: float) -> float:
    """Return the share of the samples that takes part, before it is rounded, after a share of the steps."""
    return growth(curriculum.pacing, done, curriculum.a, curriculum.b)


def in_round(curriculum: Curriculum, round: int) -> Curriculum:
    """Return the curriculum of one round where the clock runs over rounds; else the same.

    >>> share(in_round(Curriculum(rounds=10, a=1.0, b=0.25), 6), 0.3)
    0.625
    """
    if curriculum.rounds is None:
        return curriculum
    now = min(share(curriculum, max(round - 1, 0) / curriculum.rounds), 1.0)
    return curriculum.model_copy(update={"pacing": "step", "a": math.inf, "b": now})


def growth(family: Family, done: float, a: float, b: float) -> float:
    """Return the value of a pacing function, as a share of the whole; more than 1 means all.

    Args:
        family: its shape.
        done: the share of all steps that has been taken.
        a: the share of all steps after which the whole is reached; more than 1 never reaches it.
        b: the share of the whole at the start.

    >>> [round(growth(family, 0.4, 0.8, 0.2), 3) for family in ("linear", "quad", "root", "step")]
    [0.6, 0.4, 0.766, 0.2]
    """
    u = math.inf if a == 0 else done / a
    if u >= 1 - SLACK:
        return 1.0
    if family == "step":
        return b
    if family == "log":
        return b + (1 - b) * (1 + math.log(u + math.exp(-STEEP)) / STEEP)
    shape = {
        "linear": u,
        "quad": u * u,
        "root": math.sqrt(u),
        "sqrt": math.sqrt(u),  # what the paper calls it
        "exp": math.expm1(STEEP * u) / math.expm1(STEEP),
    }
    return b + (1 - b) * shape[family]


def whole(share: float, total: int) -> int:
    """Return a share of a whole number, rounded down, at least 1 and at most all."""
    return min(max(math.floor(share * total + SLACK), 1), total)


def pace(t: int, steps: int, total: int, family: Family = "linear", a: float = 0.8, b: float = 0.2) -> int:
    """Return how many samples (or clients) take part at a step.

    Args:
        t: steps taken.
        steps: all steps (T).
        total: all samples (N).
        family: the shape of the pacing function.
        a: the share of the steps after which all take part.
        b: the share that takes part at the start.

    Returns:
        A number from 1 to ``total``.

    >>> [pace(t, 510, 500) for t in (0, 51, 102, 204, 407, 408)]
    [100, 150, 200, 300, 499, 500]
    """
    return whole(growth(family, t / steps, a, b), total)


def budget(samples: int, batch: int, epochs: int) -> int:
    """Return the steps that a visit may take (T): the paper's program counts one too many where batches fit exactly.

    >>> budget(505, 10, 10), budget(500, 10, 10)
    (510, 510)
    """
    return (samples // batch + 1) * epochs


def pass_sizes(curriculum: Curriculum, samples: int, batch: int, steps: int) -> list[int]:
    """Return how many samples each pass of a visit goes through; the clock is read between passes alone.

    Args:
        curriculum: the pace.
        samples: how many the client has.
        batch: the batch size.
        steps: the visit's budget; the last pass may go beyond it.

    >>> pass_sizes(Curriculum(), 250, 10, 130)
    [50, 59, 71, 86, 103, 125, 150, 178, 213, 250]
    """
    sizes: list[int] = []
    taken = 0
    while taken < steps:
        size = whole(share(curriculum, taken / steps), samples)
        sizes.append(min(max(size, curriculum.floor), samples))
        taken += -(-sizes[-1] // batch)
    return sizes


def plan(
    curriculum: Curriculum,
    samples: int,
    batch: int,
    steps: int,
    exact: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Cut shuffled passes over a growing prefix of the ranked samples into batches.

    Args:
        curriculum: order and pace.
        samples: how many the client has.
        batch: the batch size, at most ``samples``.
        steps: the visit's budget.
        exact: whether the budget is kept exactly, or the last pass is finished.
        rng: shuffles each pass afresh, and draws a random order.

    Returns:
        Ranks, 0 for the sample that comes first [steps, batch], -1 as padding.

    >>> from fedsim.rng import stream
    >>> rows = plan(Curriculum(floor=1, b=0.5), 4, 2, 3, True, stream(0, "doc"))
    >>> rows[0].tolist(), rows.shape
    ([0, 1], (3, 2))
    """
    order = rng.permutation(samples) if curriculum.order == "random" else np.arange(samples)
    rows = []
    for size in pass_sizes(curriculum, samples, batch, steps):
        row = np.full(-(-size // batch) * batch, -1, dtype=np.int64)
        row[:size] = order[rng.permutation(size)]
        rows.append(row.reshape(-1, batch))
    taken = np.concatenate(rows)
    return taken[:steps] if exact else taken


def plan_counts(curriculum: Curriculum, samples: int, batch: int, steps: int, exact: bool) -> tuple[int, int]:
    """Return how many steps the batches of :func:`plan` are, and how many samples they hold in all.

    >>> plan_counts(Curriculum(), 500, 10, 510, False)
    (510, 5032)
    """
    sizes = pass_sizes(curriculum, samples, batch, steps)
    taken = sum(-(-size // batch) for size in sizes)
    if not exact or taken == steps:
        return taken, sum(sizes)
    kept = -(-sizes[-1] // batch) - (taken - steps)
    return steps, sum(sizes[:-1]) + kept * batch
