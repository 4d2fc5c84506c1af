"""Which engine a run uses."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from fedsim.config import Local
from fedsim.learn.engines.base import Engine, Shard, TrainJob
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.engines.stacked import Stacked
from fedsim.learn.local import LocalSGD
from fedsim.learn.task import Task
from fedsim.rng import stream

CPU_SLOTS, ACCELERATOR_SLOTS = 10, 64
TOLERANCE = 1e-10


def choose(task: Task, data: Shard, wanted: str, slots: int | None) -> tuple[Engine, str]:
    """Return an engine and why it was chosen.

    Args:
        task: model and loss.
        data: the clients' training data.
        wanted: ``"auto"``, ``"sequential"`` or ``"stacked"``.
        slots: clients in a stack, or None for a default that suits the device.

    Returns:
        The engine, and a reason in plain words. ``auto`` never measures speed: the choice, and with it every bit
        of the result, depends on model and device alone.
    """
    on_cpu = task.device.type == "cpu"
    stacked = Stacked(task, data, slots or (CPU_SLOTS if on_cpu else ACCELERATOR_SLOTS))
    if wanted == "sequential":
        return Sequential(task, data), "asked for"
    if wanted == "stacked":
        return stacked, "asked for"
    if on_cpu and any(isinstance(part, nn.modules.conv._ConvNd) for part in task.module.modules()):
        return Sequential(task, data), "convolutions are slower in a stack on a CPU"
    fault = probe(task, data)
    if fault:
        return Sequential(task, data), f"the stacked engine does not fit this model: {fault}"
    return stacked, "the stacked engine agrees with the sequential one"


def probe(task: Task, data: Shard) -> str:
    """Train two clients with both engines in float64, and say what is wrong, or return an empty string."""
    double = Task(copy.deepcopy(task.module), dtype=torch.float64, device=task.device)
    double.classifies = task.classifies
    some = [own[:3] for own in data.owned[:2]]
    used = torch.cat(some)
    places = torch.split(torch.arange(len(used), device=used.device), [len(own) for own in some])
    shard = Shard(_double(data.x[used]), _double(data.y[used]), list(places))
    update = LocalSGD(Local(steps=2, batch_size=2, lr=0.1))
    rows = [update.batches(len(own), stream(0, "probe", i)) for i, own in enumerate(some)]
    jobs = [TrainJob(update, i, rows[i], {"arrays": double.initial}) for i in range(len(some))]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*performance drop.*")
            found = Stacked(double, shard, len(jobs)).train(jobs)
    except (
        Exception
    ) as error:  # a model may fail under vmap in any way; whatever it is, the reference can do it
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    wanted = Sequential(double, shard).train(jobs)
    gap = max(float((a["arrays"] - b["arrays"]).abs().max()) for a, b in zip(found, wanted, strict=True))
    return f"it differs by {gap:.1e}" if gap > TOLERANCE else ""


def _double(values: torch.Tensor) -> torch.Tensor:
    return values.double() if values.is_floating_point() else values
