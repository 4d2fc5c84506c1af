"""Which engine a run uses."""

from __future__ import annotations

import copy
import re
import warnings

import torch
from torch import nn

from fedsim.errors import BadValue
from fedsim.learn.engines.base import Engine, Shard, TrainJob
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.engines.stacked import SLOW, Stacked
from fedsim.learn.local import LocalSGD
from fedsim.learn.raised import passes, told
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local

CPU_SLOTS, ACCELERATOR_SLOTS = 10, 64
TOLERANCE = 1e-10
DRAWS = "the model draws random numbers in training, which clients in a stack would share"


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

    Raises:
        BadValue: with the key ``engine``, if ``"stacked"`` is wanted and would give other weights, or none.
    """
    on_cpu = task.device.type == "cpu"
    stacked = Stacked(task, data, slots or (CPU_SLOTS if on_cpu else ACCELERATOR_SLOTS))
    if wanted == "sequential":
        return Sequential(task, data), "asked for"
    reason = DRAWS if task.draws else _slow_kind(task.module) if on_cpu else ""
    if wanted == "auto" and reason:
        return Sequential(task, data), reason
    wrong, slow = (DRAWS, "") if task.draws else _faults(task, data)
    if wanted == "stacked":
        if wrong:
            raise BadValue("engine", wanted, f"does not fit this model: {wrong}", "use auto or sequential")
        return stacked, f"asked for, but {slow}" if slow else "asked for"
    if wrong or slow:
        return Sequential(task, data), f"the stacked engine does not fit this model: {wrong or slow}"
    return stacked, "the stacked engine agrees with the sequential one"


def _slow_kind(module: nn.Module) -> str:
    """Say what is slower in a stack on a CPU by experience, whether or not torch warns of it."""
    parts = list(module.modules())
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in parts):
        return "convolutions are slower in a stack on a CPU"
    if any(isinstance(part, nn.LSTM) for part in parts):
        return "an LSTM is slower in a stack on a CPU"
    return ""


def _faults(task: Task, data: Shard) -> tuple[str, str]:
    """Say what is wrong with the stacked engine, and what is only slow."""
    try:
        return probe(task, data), slowness(task, data)
    except BaseException as error:  # a model may fail under vmap in any way: the reference can do it
        if passes(error):
            raise
        return told(error), ""


def probe(task: Task, data: Shard) -> str:
    """Train and judge with both engines in float64, and say how far apart they are, or return an empty string."""
    double = Task(_copy(task.module), dtype=torch.float64, device=task.device)
    double.classifies = task.classifies
    shard, jobs = _some(double, data)
    engines = (Sequential(double, shard), Stacked(double, shard, len(jobs)))
    trained = [torch.stack([one["arrays"] for one in engine.train(jobs)]) for engine in engines]
    judged = [engine.evaluate([double.initial], shard.x, shard.y, 2)[0]["loss"] for engine in engines]
    a, b = (torch.cat([one.flatten(), one.new_tensor([loss])]) for one, loss in zip(trained, judged))
    gap = float((a - b).nan_to_num().abs().max()) if torch.equal(a.isfinite(), b.isfinite()) else torch.inf
    return "" if gap <= TOLERANCE else f"it differs by {gap:.1e}"


def slowness(task: Task, data: Shard) -> str:
    """Train two clients in a stack, and say what torch does for one after the other, or return an empty string.

    That depends on the type of the weights: so nothing else than the task itself can tell.
    """
    shard, jobs = _some(task, data)
    with warnings.catch_warnings(record=True) as heard:
        warnings.filterwarnings("always", message=SLOW)
        Stacked(task, shard, len(jobs)).stack(jobs)
    for text in (str(one.message) for one in heard):
        if re.match(SLOW, text):
            name = re.search(r"batching rule for ([\w:]+)", text)
            return f"torch does {name[1] if name else 'one of its operations'} for one client at a time"
    return ""


def _copy(module: nn.Module) -> nn.Module:
    """Copy a module; what its last forward has left in it is no longer tied to that."""
    left = [v for part in module.modules() for v in vars(part).values() if isinstance(v, torch.Tensor)]
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in left if not v.is_leaf})


def _some(task: Task, data: Shard) -> tuple[Shard, list[TrainJob]]:
    """Return two clients' first samples, and two steps for each of them."""
    some = [own[:3] for own in data.owned[:2]]
    used = torch.cat(some)
    places = torch.split(torch.arange(len(used), device=used.device), [len(own) for own in some])
    x, y = (v.to(task.dtype) if v.is_floating_point() else v for v in (data.x[used], data.y[used]))
    update = LocalSGD(Local(steps=2, batch_size=2, lr=0.1))
    rows = [update.batches(len(own), stream(0, "probe", i)) for i, own in enumerate(some)]
    jobs = [TrainJob(update, i, rows[i], {"arrays": task.initial}) for i in range(len(some))]
    return Shard(x, y, list(places)), jobs
