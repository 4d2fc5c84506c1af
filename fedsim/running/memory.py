"""The memory that a client needs for its local training, and whether it has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.learn.engines import Engine, TrainJob
from fedsim.learn.local import MINE, LocalUpdate
from fedsim.rng import stream
from fedsim.world.devices import Kit

MEGABYTE = 1_000_000


def need_mb(engine: Engine, updates: Iterable[LocalUpdate]) -> list[float]:
    """Return the memory that each client needs: the vectors that an update holds, a gradient, and one batch.

    What a model has beside the weights that are trained counts once.

    What a model keeps between its forward and its backward pass is not counted, nor is the rest of a client's data,
    which need not be in memory.

    Args:
        engine: knows the model and the clients' data.
        updates: what clients do; the one that needs the most counts.

    Returns:
        Megabytes of 10^6 bytes for each client.
    """
    sizes, sample = engine.data.sizes, engine.data.x[:1].nbytes + engine.data.y[:1].nbytes
    needs = [0] * len(sizes)
    for update in updates:
        vectors = held_bytes(engine, update) + engine.task.initial.nbytes + engine.task.fixed_bytes
        needs = [max(need, vectors + update.width(n) * sample) for need, n in zip(needs, sizes, strict=True)]
    return [need / MEGABYTE for need in needs]


def held_bytes(engine: Engine, update: LocalUpdate) -> int:
    """Return the size of an update's state, counted on the state that it begins with."""
    task = engine.task
    names = (*update.takes, *update.keeps, *update.draws(task.trained, stream(0, "memory")))
    names += (MINE,) if update.splits else ()
    job = TrainJob(
        update, 0, np.zeros((0, 0), dtype=np.int64), dict.fromkeys(names, task.initial[: task.trained])
    )
    state = update.init({**job.given, **engine.scalars(job)})
    return sum(tensor.nbytes for tensor in state.values())


def check_memory(kits: Sequence[Kit], needs: Sequence[float]) -> None:
    """Refuse clients that are too small for their local training.

    Args:
        kits: what each client has.
        needs: the megabytes that each of them needs.

    Raises:
        BadValue: with the key ``memory_mb``: how many clients are too small, and which one lacks the most.

    >>> kits = [Kit(1, memory_mb=8.0), Kit(1), Kit(1, memory_mb=2.0)]
    >>> check_memory(kits, [5.0, 5.0, 5.0])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fedsim.errors.BadValue: memory_mb: 1 of 3 clients are too small: client 2 has 2 MB, and local training needs 5 ...
    """
    lacks = [
        (need - kit.memory_mb, -id)
        for id, (kit, need) in enumerate(zip(kits, needs, strict=True))
        if kit.memory_mb is not None and kit.memory_mb < need
    ]
    if lacks:
        id = -max(lacks)[1]
        rule = (
            f"{len(lacks)} of {len(kits)} clients are too small: client {id} has {kits[id].memory_mb:.6g} MB, "
            f"and local training needs {needs[id]:.6g} MB"
        )
        hint = "give them more memory, or take a smaller model or strategy.local.batch_size"
        raise BadValue("memory_mb", MISSING, rule, hint)
