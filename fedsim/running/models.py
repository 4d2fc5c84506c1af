"""The models of a run as files: that of its end, and those of rounds that somebody wants to keep."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.task import Task
from fedsim.methods.metrics import SYSTEM
from fedsim.record import weights
from fedsim.record.files import own_folder

log = logging.getLogger("fedsim")


def write_models(path: Path, task: Task, models: Mapping[int, Any], peers: bool) -> None:
    """Write the average of models under the names of the model's own entries.

    Args:
        path: the file.
        task: has the model.
        models: vectors [P] by node.
        peers: whether all of them are written as well, as ``peers/weights`` [n, P] and ``peers/ids`` [n].

    Raises:
        OSError: if the file cannot be written.
    """
    stack = np.stack(list(models.values()))
    average = stack[0] if len(stack) == 1 else stack.mean(0, dtype=np.float64).astype(stack.dtype)
    tensors, start = {}, 0
    for name, shape in task.layout:
        size = int(np.prod(shape, dtype=np.int64))
        tensors[name] = np.asarray(average[start : start + size].reshape(shape), order="C")
        start += size
    whole = task.state(tensors)
    more = {"peers/weights": stack, "peers/ids": np.array(list(models), dtype=np.int64)} if peers else {}
    weights.save_arrays(path, {**whole, **more}, list(whole))


def keep(folder: Path, round: int, task: Task, models: Mapping[int, Deferred]) -> None:
    """Write the models of a round into a run's folder, unless a run that is repeated has done so before.

    Should the disk refuse them, the run goes on without.

    Args:
        folder: the run's.
        round: the round that has ended.
        task: has the model.
        models: by node.
    """
    compute(models.values())
    if any(model.is_gone for model in models.values()):
        return
    vectors = {node: model.value().detach().cpu().numpy() for node, model in sorted(models.items())}
    try:
        own_folder(folder / weights.ROUNDS)
        write_models(weights.of_round(folder, round), task, vectors, SYSTEM not in vectors)
    except OSError as error:
        log.warning("the model of round %d is not kept: %s", round, error.strerror or error)
