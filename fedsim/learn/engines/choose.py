"""Which engine a run uses."""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.engines.base import BUFFERS, Engine, Shard, TrainJob, Unfit
from fedsim.learn.engines.closed import Closed
from fedsim.learn.engines.lean import Lean
from fedsim.learn.engines.sequential import Sequential
from fedsim.learn.engines.stacked import SLOW, Stacked
from fedsim.learn.local import LocalSGD, State
from fedsim.learn.raised import passes, told
from fedsim.learn.several import cast
from fedsim.learn.task import Task
from fedsim.rng import stream
from fedsim.spec.experiment import Local

TOLERANCE = 1e-10
DRAWS = "the model draws random numbers in training, which clients in a stack would share"


def choose(
    task: Task, data: Shard, wanted: str, slots: int | None, beside: str | Path | None = None
) -> tuple[Engine, str]:
    """Return an engine and why it was chosen.

    ``auto`` never measures speed: the choice, and with it every bit of the result, depends on model and device alone.
    On a CPU it is ``closed`` for a chain of plain layers, ``lean`` for everything else, and ``sequential`` for what is
    not the same to the last bit there; on an accelerator ``stacked``, or else ``sequential``.

    Args:
        task: model and loss.
        data: the clients' training data.
        wanted: ``"auto"``, the name of an engine, or a dotted path.
        slots: clients in a stack, or None for a default that suits the device.
        beside: the folder of the experiment file, for a dotted path.

    Returns:
        The engine, and a reason in plain words.

    Raises:
        BadValue: with the key ``engine``, if there is no such engine, or if it gives other weights, or none.
    """
    if wanted == "auto":
        return _on_cpu(task, data) if task.device.type == "cpu" else _on_accelerator(task, data, slots)
    if wanted == "sequential":
        return Sequential(task, data), "asked for"
    try:
        part = parts.find("engines", wanted, beside)
    except BadValue as error:
        raise BadValue("engine", wanted, error.rule, error.hint) from error
    if not (isinstance(part, type) and issubclass(part, Engine)):
        raise BadValue("engine", wanted, "is not an engine", "take a subclass of fedsim.learn.engines.Engine")
    wrong, slow = _faults(part, task, data)
    if wrong:
        raise BadValue("engine", wanted, f"does not fit this model: {wrong}", "use auto or sequential")
    return _made(part, task, data, slots), f"asked for, but {slow}" if slow else "asked for"


def _made(part: type[Engine], task: Task, data: Shard, slots: int | None) -> Engine:
    return Stacked(task, data, slots) if part is Stacked else part(task, data)


def _on_cpu(task: Task, data: Shard) -> tuple[Engine, str]:
    try:
        return Closed(task, data), "the model is a chain of plain layers, whose gradients are written out"
    except Unfit as error:
        wrong = str(error)
    if same_bits(task, data):
        return Lean(task, data), f"the closed engine does not fit this model: {wrong}"
    return Sequential(task, data), "the lean engine does not give the same bits for this model"


def _on_accelerator(task: Task, data: Shard, slots: int | None) -> tuple[Engine, str]:
    if wrong := "".join(_faults(Stacked, task, data)):
        return Sequential(task, data), f"the stacked engine does not fit this model: {wrong}"
    return Stacked(task, data, slots), "the stacked engine agrees with the sequential one"


def _faults(part: type[Engine], task: Task, data: Shard) -> tuple[str, str]:
    """Say what is wrong with an engine, and what is only slow."""
    if part is Stacked and task.draws:
        return DRAWS, ""
    try:
        return probe(part, task, data), slowness(task, data) if part is Stacked else ""
    except BaseException as error:  # a model may fail under vmap in any way: the reference can do it
        if passes(error):
            raise
        return str(error) if isinstance(error, Unfit) else told(error), ""


def probe(part: type[Engine], task: Task, data: Shard) -> str:
    """Train and judge with an engine and with the reference in float64, and say how far apart they are, if they are."""
    double = _again(task, torch.float64)
    shard, jobs = _some(double, data)
    engines = _made(part, double, shard, len(jobs)), Sequential(double, shard)
    trained = [torch.stack([_ends(one) for one in engine.train(jobs)]) for engine in engines]
    judged = [engine.evaluate([double.initial], shard.x, shard.y, 2)[0]["loss"] for engine in engines]
    a, b = (torch.cat([one.flatten(), one.new_tensor([loss])]) for one, loss in zip(trained, judged))
    gap = float((a - b).nan_to_num().abs().max()) if torch.equal(a.isfinite(), b.isfinite()) else torch.inf
    return "" if gap <= TOLERANCE else f"it differs by {gap:.1e}"


def same_bits(task: Task, data: Shard) -> bool:
    """Tell whether the lean engine gives the very bits of the sequential one."""
    shard, jobs = _some(task, data)
    try:
        found = [make(_again(task), shard).train(jobs) for make in (Lean, Sequential)]
    except BaseException as error:  # the reference will say what is wrong with the model
        if passes(error):
            raise
        return False
    ends = ([_ends(one).nan_to_num() for one in results] for results in found)
    return all(map(torch.equal, *ends))


def _ends(result: State) -> Tensor:
    """Return weights and buffers after a job [P]."""
    return torch.cat([result[name] for name in ("arrays", BUFFERS) if name in result])


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


def _again(task: Task, dtype: torch.dtype | None = None) -> Task:
    """Return a task with a model of its own."""
    again = Task(
        _copy(task.module), task.criterion, task.device, dtype or task.dtype, task.buffers, task.held
    )
    again.drops, again.mixes = task.drops, task.mixes
    again.augment, again.kept = task.augment, task.kept
    return again


def _copy(module: nn.Module) -> nn.Module:
    """Copy a module; what its last forward has left in it is no longer tied to that."""
    left = [v for part in module.modules() for v in vars(part).values() if isinstance(v, torch.Tensor)]
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in left if not v.is_leaf})


def _some(task: Task, data: Shard) -> tuple[Shard, list[TrainJob]]:
    """Return two clients' first samples, and two steps for each of them, of which the second has a short batch."""
    few, width = (5, 3) if task.mixes else (3, 2)  # batch statistics need two samples
    some = [own[:few] for own in data.owned[:2]]
    used = torch.cat(some)
    places = torch.split(torch.arange(len(used), device=used.device), [len(own) for own in some])
    x = cast(data.x[used], task.device, task.dtype)
    y = data.y[used].to(task.dtype) if data.y.is_floating_point() else data.y[used]
    update = LocalSGD(Local(steps=2, batch_size=width, lr=0.1))
    rows = [update.batches(len(own), stream(0, "probe", i)) for i, own in enumerate(some)]
    weights = task.initial[: task.trained]
    jobs = [TrainJob(update, i, rows[i], {"arrays": weights}, 17 + i) for i in range(len(some))]
    return Shard(x, y, list(places)), jobs
