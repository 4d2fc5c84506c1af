"""From an experiment to a learner: dataset, partition, model, engine."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import parts
from fedsim.errors import BadValue, FedsimError
from fedsim.learn.curriculum.expert import Judge
from fedsim.learn.data import holdout
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.data.partition import Some
from fedsim.learn.engines import Shard
from fedsim.learn.engines.choose import choose
from fedsim.learn.learner import Learner
from fedsim.learn.models import builtin as models
from fedsim.learn.task import Task
from fedsim.learn.trial import tried
from fedsim.rng import stream
from fedsim.spec.experiment import Experiment

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
    whole = dataset = load(experiment)
    share = experiment.data.val_share
    if share:
        with experiment.blame("data"):
            whole, dataset = holdout.validation(dataset, share, experiment.seed)
    task = make_task(experiment, dataset)
    device, settings = task.device, experiment.compute
    judge = functools.cache(lambda: _judge(experiment, dataset))

    def losses() -> np.ndarray:
        with experiment.blame():
            return judge().losses

    owned = deal(experiment, dataset, losses)
    dataset = _with_note(dataset, owned, experiment.data.partition.name)
    held: list[np.ndarray] = []
    if experiment.data.client_test_share:
        with experiment.blame("data"):
            owned, held = holdout.client_tests(owned, experiment.data.client_test_share, experiment.seed)
    cast = [_cast(values, task) for values in (dataset.x, dataset.y, dataset.x_test, dataset.y_test)]
    _check_measure(experiment, task)
    difficulty = functools.cache(lambda: _cast(torch.from_numpy(losses()), task))
    shard = Shard(cast[0], cast[1], [torch.from_numpy(own).to(device) for own in owned], difficulty)
    with experiment.blame("compute"):
        engine, reason = choose(task, shard, settings.engine, settings.slots)
    log.info("engine: %s (%s)", type(engine).__name__.lower(), reason)
    seed, chunk = experiment.seed, experiment.evaluate.batch_size
    final = (_cast(whole.x_test, task), _cast(whole.y_test, task)) if share else None
    tests = [torch.from_numpy(own).to(device) for own in held]
    best = _optimum(dataset, task)
    learner = Learner(engine, cast[2], cast[3], seed, chunk, dry, optimum=best, tests=tests, final=final)
    return learner, dataset, owned


def _with_note(dataset: Dataset, owned: list[np.ndarray], partition: str) -> Dataset:
    """Say how many samples belong to nobody."""
    samples = len(dataset.y)
    nobody = samples - sum(map(len, owned))
    if not nobody:
        return dataset
    said = f"{nobody:,} of the {samples:,} training samples belong to nobody, as the partition {partition} has it"
    log.warning(said)
    return replace(dataset, note="; ".join(filter(None, (dataset.note, said))))


def _optimum(dataset: Dataset, task: Task) -> Tensor | None:
    """Return the best weights in the model's own form, if the data have them and the model is theirs."""
    if dataset.optimum is None or len(dataset.optimum) != task.size:
        return None
    return _cast(dataset.optimum, task)


def load(experiment: Experiment) -> Dataset:
    """Load the dataset."""
    data = experiment.data
    folder = data.root or os.environ.get("FEDSIM_DATA")
    with experiment.blame("data"):
        source = experiment.find("datasets", data.name)
        supplied: dict[str, Any] = {
            "clients": data.clients,
            "seed": experiment.seed,
            "root": Path(folder) if folder else None,
            "beside": experiment.folder,
        }
        dataset = parts.call(source, data.params, supplied)
        if not isinstance(dataset, Dataset):
            raise BadValue("name", data.name, f"must return a Dataset, not {type(dataset).__name__}")
    if dataset.note:
        log.warning(dataset.note)
    return dataset


def deal(experiment: Experiment, dataset: Dataset, difficulty: Callable[[], np.ndarray]) -> list[np.ndarray]:
    """Deal the training samples out to the clients; ``difficulty`` returns how hard an expert finds each [N]."""
    data = experiment.data
    supplied: dict[str, Any] = {
        "labels": np.asarray(dataset.y),
        "clients": data.clients,
        "rng": stream(experiment.seed, "partition"),
        "groups": dataset.groups,
        "difficulty": difficulty,
        "known": dataset.difficulty,
    }
    try:
        partition = experiment.find("partitions", data.partition.name)
        dealt = parts.call(partition, data.partition.params, supplied)
        owned = _check_deal(data.partition.name, dealt, data.clients, len(dataset.y))
    except BadValue as error:
        # The number of clients stands one level above the partition that refuses it.
        block = ("data",) if error.key == "clients" else ("data", "partition")
        raise experiment.problem(block, error) from error
    except (FedsimError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise experiment.broken(("data", "partition"), error) or error from error
    return owned


def make_task(experiment: Experiment, dataset: Dataset) -> Task:
    """Make the model, and refuse one that many clients cannot train, or that cannot be trained the same twice."""
    with experiment.blame("compute"):
        device = find_device(experiment.compute.device)
    dtype = torch.float64 if experiment.compute.dtype == "float64" else torch.float32
    modules = [_model(experiment, dataset) for _ in range(2)]
    with experiment.blame("model"):
        return tried(modules, dataset, experiment.model.name, device, dtype)


def _model(experiment: Experiment, dataset: Dataset) -> nn.Module:
    with experiment.blame("model"):
        part = experiment.find("models", experiment.model.name)
        shape, rng = tuple(dataset.x.shape[1:]), stream(experiment.seed, "model")
        return models.build(part, experiment.model.params, shape, dataset.classes, rng)


def _judge(experiment: Experiment, dataset: Dataset) -> Judge:
    """Return the expert: the same model, on the same samples."""
    device = find_device(experiment.compute.device)
    x, y = dataset.x.to(device), dataset.y.to(device)
    module = _model(experiment, dataset).to(device, x.dtype)
    return Judge(module, x, y, experiment.expert, experiment.seed, dataset.loss)


def _check_measure(experiment: Experiment, task: Task) -> None:
    paced = experiment.strategy.local.curriculum
    if paced is not None and paced.measure == "error" and not task.classifies:
        with experiment.blame("strategy"):
            rule = "needs classes, and these data have numbers to predict"
            raise BadValue("local.curriculum.measure", paced.measure, rule, "take loss")


def _check_deal(name: str, dealt: Any, clients: int, samples: int) -> list[np.ndarray]:
    owned = [np.asarray(own) for own in dealt] if isinstance(dealt, list | tuple | np.ndarray) else []
    if len(owned) != clients or any(own.size == 0 for own in owned):
        raise BadValue("name", name, f"must give each of the {clients} clients at least one sample")
    together = np.concatenate([own.reshape(-1) for own in owned])
    kind = together.dtype.kind in "iu" and 0 <= together.min() <= together.max() < samples
    whole = len(together) == samples or isinstance(dealt, Some)
    if not (kind and whole and len(np.unique(together)) == len(together)):
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
