"""From an experiment to a learner: dataset, partition, model, engine."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim import parts
from fedsim.config import Experiment
from fedsim.errors import BadValue
from fedsim.learn import models
from fedsim.learn.data import Dataset
from fedsim.learn.engines import Shard
from fedsim.learn.engines.choose import choose
from fedsim.learn.learner import Learner
from fedsim.learn.task import Task
from fedsim.rng import stream

log = logging.getLogger("fedsim")


def build(experiment: Experiment, dry: bool = False) -> tuple[Learner, Dataset, list[np.ndarray]]:
    """Make the learner that an experiment describes.

    Args:
        experiment: the experiment.
        dry: keep time only.

    Returns:
        The learner, the dataset, and the training samples of each client.

    Raises:
        ConfigError: if a part refuses its parameters.
    """
    dataset, owned = load(experiment)
    with experiment.blame("model"):
        part = parts.find("models", experiment.model.name)
        shape, rng = tuple(dataset.x.shape[1:]), stream(experiment.seed, "model")
        module = models.build(part, experiment.model.params, shape, dataset.classes, rng)
    settings = experiment.compute
    with experiment.blame("compute"):
        device = find_device(settings.device)
    dtype = torch.float64 if settings.dtype == "float64" else torch.float32
    task = Task(module, dataset.loss, device, dtype)
    with experiment.blame("model"):
        _try(task, dataset, experiment.model.name)
    cast = [_cast(values, task) for values in (dataset.x, dataset.y, dataset.x_test, dataset.y_test)]
    shard = Shard(cast[0], cast[1], [torch.from_numpy(own).to(device) for own in owned])
    engine, reason = choose(task, shard, settings.engine, settings.slots)
    log.info("engine: %s (%s)", type(engine).__name__.lower(), reason)
    return (
        Learner(engine, cast[2], cast[3], experiment.seed, experiment.evaluate.batch_size, dry),
        dataset,
        owned,
    )


def load(experiment: Experiment) -> tuple[Dataset, list[np.ndarray]]:
    """Load the dataset and deal its training samples out to the clients."""
    data, seed = experiment.data, experiment.seed
    folder = data.root or os.environ.get("FEDSIM_DATA")
    with experiment.blame("data"):
        source = parts.find("datasets", data.name)
        supplied: dict[str, Any] = {
            "clients": data.clients,
            "seed": seed,
            "root": Path(folder) if folder else None,
        }
        dataset = parts.call(source, data.params, supplied)
        if not isinstance(dataset, Dataset):
            raise BadValue("name", data.name, f"must return a Dataset, not {type(dataset).__name__}")
    supplied = {
        "labels": np.asarray(dataset.y),
        "clients": data.clients,
        "rng": stream(seed, "partition"),
        "groups": dataset.groups,
    }
    try:
        deal = parts.find("partitions", data.partition.name)
        dealt = parts.call(deal, data.partition.params, supplied)
        owned = _check_deal(data.partition.name, dealt, data.clients, len(dataset.y))
    except BadValue as error:
        # The number of clients stands one level above the partition that refuses it.
        block = ("data",) if error.key == "clients" else ("data", "partition")
        raise experiment.problem(block, error) from error
    return dataset, owned


def _check_deal(name: str, dealt: Any, clients: int, samples: int) -> list[np.ndarray]:
    owned = [np.asarray(own) for own in dealt] if isinstance(dealt, list | tuple | np.ndarray) else []
    if len(owned) != clients or any(own.size == 0 for own in owned):
        raise BadValue("name", name, f"must give each of the {clients} clients at least one sample")
    together = np.concatenate([own.reshape(-1) for own in owned])
    if together.dtype.kind not in "iu" or not np.array_equal(np.sort(together), np.arange(samples)):
        raise BadValue("name", name, f"must give each of the {samples} samples to exactly one client")
    return [own.reshape(-1).astype(np.int64) for own in owned]


def find_device(name: str) -> torch.device:
    """Return the device with this name; ``auto`` is the first accelerator, or else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadValue("device", name, "there is no such device here", "use auto or cpu")
    return device


def _cast(values: torch.Tensor, task: Task) -> torch.Tensor:
    return values.to(task.device, task.dtype if values.is_floating_point() else values.dtype)


def _try(task: Task, dataset: Dataset, name: str) -> None:
    """Predict one sample, so that a model that does not fit the data is refused before the run."""
    with torch.no_grad():
        try:
            outputs = task.predict(task.initial, _cast(dataset.x[:1], task))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            first = str(error).partition("\n")[0]
            reason = f"does not fit {dataset.name} (samples of shape {dataset.shape}): {first}"
            raise BadValue("name", name, reason) from error
    found = tuple(getattr(outputs, "shape", ()))
    wanted = (1, dataset.classes) if task.classifies else (1,)
    if found != wanted:  # half_square would broadcast [B, 1] against [B] without a word
        reason = f"gives outputs of shape {found} for one sample of {dataset.name}, not {wanted}"
        raise BadValue("name", name, reason)
