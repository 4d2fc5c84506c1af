"""From an experiment to a learner: dataset, partition, model, engine."""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import parts
from fedsim.errors import MISSING, BadValue, FedsimError
from fedsim.learn import warm
from fedsim.learn.augment import augmentation
from fedsim.learn.curriculum.expert import Judge
from fedsim.learn.data import holdout
from fedsim.learn.data.dataset import check_finite, check_shares
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.data.faults import DataFault
from fedsim.learn.data.kept import made_once
from fedsim.learn.data.partition import Some
from fedsim.learn.draws import seeded
from fedsim.learn.engines import Engine, Shard
from fedsim.learn.engines.choose import choose, cluster_of
from fedsim.learn.engines.device import find_device
from fedsim.learn.engines.together import seated
from fedsim.learn.learner import Learner
from fedsim.learn.losses import Loss, bce, cross_entropy, loss_of
from fedsim.learn.measured import metrics_of
from fedsim.learn.models import builtin as models
from fedsim.learn.overflow import default_budget
from fedsim.learn.raised import passes, told
from fedsim.learn.sampling import batch_width
from fedsim.learn.schedules import schedule
from fedsim.learn.several import X, cast, leaves
from fedsim.learn.staying import staying
from fedsim.learn.task import Task
from fedsim.learn.trial import tried
from fedsim.rng import stream
from fedsim.spec.experiment import Experiment

TRIED = 500
"""So many test samples show whether a metric fits."""

log = logging.getLogger("fedsim")


def build(
    experiment: Experiment,
    dry: bool = False,
    pooled: bool = False,
    kept: Sequence[str | int] | None = (),
) -> tuple[Learner, Dataset, list[np.ndarray]]:
    """Make the learner that an experiment describes.

    Args:
        experiment: the experiment.
        dry: keep time only.
        pooled: let one more have all that the clients have: the server, whose id is theirs plus one.
        kept: the parts of the model that stay with each client, by name; None is its last layer.

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
    notes: list[str] = []
    task = make_task(experiment, dataset, notes)
    with experiment.blame("strategy"):
        task.kept = staying(task, kept)
    device, settings = task.device, experiment.compute
    losses = _judging(experiment, dataset)
    owned = deal(experiment, dataset, losses)
    dataset = _with_notes(dataset, [*notes, *_left(dataset, owned, experiment.data.partition.name)])
    held: list[np.ndarray] = []
    if experiment.data.client_test_share:
        with experiment.blame("data"):
            owned, held = holdout.client_tests(owned, experiment.data.client_test_share, experiment.seed)
    elif experiment.evaluate.personal is not None:
        held = holdout.own_tests(dataset, owned)
    if experiment.data.faults:
        dataset = _faulty(experiment, dataset, owned)
        losses = _judging(experiment, dataset)
    x, x_test = (_inputs(experiment, dataset, key, task) for key in ("x", "x_test"))
    y, y_test = (_cast(values, task) for values in (dataset.y, dataset.y_test))
    _check_measure(experiment, task)
    difficulty = functools.cache(lambda: _cast(torch.from_numpy(losses()), task))
    shares = [torch.from_numpy(own).to(device) for own in owned]
    if pooled:
        shares.append(torch.cat(shares))
    shard = Shard(x, y, shares, difficulty, (x_test, y_test))
    _check_last_batches(experiment, task, shard)
    engine, reason = _engine(experiment, task, shard)
    with experiment.blame("strategy"):
        rates = schedule(experiment.strategy.local)
    seed, chunk = experiment.seed, experiment.evaluate.batch_size
    final = (_inputs(experiment, whole, "x_test", task), _cast(whole.y_test, task)) if share else None
    tests = [torch.from_numpy(own).to(device) for own in held]
    best = _optimum(dataset, task)
    more: dict[str, Any] = {"optimum": best, "schedule": rates, "why": reason, "tests": tests, "final": final}
    more["own_tests"] = bool(held) and not experiment.data.client_test_share
    more["state_bytes"] = default_budget(device) if settings.state_bytes is None else settings.state_bytes
    learner = Learner(engine, x_test, y_test, seed, chunk, dry, **more)
    return learner, dataset, owned


def _engine(experiment: Experiment, task: Task, shard: Shard) -> tuple[Engine, str]:
    """Return what a run computes with, and why."""
    settings, block, folder = experiment.compute, experiment.compute.engine, experiment.folder
    with experiment.blame("compute"):
        cluster = cluster_of(block, settings.workers, folder)
        wanted, params = (block.name, block.params) if cluster is None else (cluster.inner, {})
        engine, reason = choose(task, shard, wanted, settings.slots, folder, params)
    log.info("engine: %s (%s)", engine.name, reason)
    return seated(engine, settings.workers, cluster), reason


def _judging(experiment: Experiment, dataset: Dataset) -> Callable[[], np.ndarray]:
    """Return what says how hard an expert finds each sample [N]; the expert is made when that is asked for."""
    judge = functools.cache(lambda: _judge(experiment, dataset))

    def losses() -> np.ndarray:
        with experiment.blame():
            return judge().losses

    return losses


def _faulty(experiment: Experiment, dataset: Dataset, owned: Sequence[np.ndarray]) -> Dataset:
    """Return the data with what is wrong in them: who has which samples has been decided before."""
    for index, block in enumerate(experiment.data.faults):
        with experiment.blame("data", "faults", index):
            fault = parts.call(experiment.find("data_faults", block.name), block.params, {})
            if not isinstance(fault, DataFault):
                raise BadValue("name", block.name, "is no DataFault")
            drawn = stream(experiment.seed, "data faults", round=index)
            dataset = fault.apply(dataset, owned, drawn)
    if experiment.data.faults:
        log.warning(dataset.note)
    return dataset


def _check_last_batches(experiment: Experiment, task: Task, shard: Shard) -> None:
    """Refuse clients that end a pass with one sample, where the model cannot train on one alone."""
    local = experiment.strategy.local
    for client, samples in enumerate(shard.sizes if task.mixes else ()):
        width = batch_width(local, samples)
        reached = local.steps is None or local.steps >= -(-samples // width)
        if (samples - 1) % width or not reached:
            continue
        try:
            with seeded(0, task.device), torch.no_grad():
                task.predict(task.initial, shard.x[:1], training=True)
        except Exception as error:
            rule = f"leaves client {client} ({samples} samples) a batch of 1, on which the model fails: {told(error)}"
            with experiment.blame("strategy"):
                raise BadValue("local.batch_size", local.batch_size, rule, "take another one") from error
        return


def _left(dataset: Dataset, owned: list[np.ndarray], partition: str) -> list[str]:
    """Say how many samples belong to nobody, if any do."""
    samples = len(dataset.y)
    nobody = samples - sum(map(len, owned))
    what = f"{nobody:,} of the {samples:,} training samples belong to nobody, as the partition {partition} has it"
    return [what] if nobody else []


def _with_notes(dataset: Dataset, notes: Sequence[str]) -> Dataset:
    """Say something of the data and the model, here and to whoever reads the results."""
    for note in notes:
        log.warning(note)
    return replace(dataset, note="; ".join(filter(None, (dataset.note, *notes))))


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
        dataset = made_once(source, data.params, supplied, lambda: parts.call(source, data.params, supplied))
        if not isinstance(dataset, Dataset):
            raise BadValue("name", data.name, f"must return a Dataset, not {type(dataset).__name__}")
    if dataset.note:
        log.warning(dataset.note)
    return dataset


def deal(experiment: Experiment, dataset: Dataset, difficulty: Callable[[], np.ndarray]) -> list[np.ndarray]:
    """Deal the training samples out to the clients; ``difficulty`` returns how hard an expert finds each [N]."""
    data = experiment.data
    supplied: dict[str, Any] = {
        "labels": np.asarray(dataset.y).copy(),  # a copy, since other runs may have the same data
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


def make_task(experiment: Experiment, dataset: Dataset, notes: list[str] | None = None) -> Task:
    """Make the model, and refuse one that many clients cannot train, or that cannot be trained the same twice.

    Args:
        experiment: the experiment.
        dataset: what it fits.
        notes: gets what whoever reads the results must know of the weights that it starts from.
    """
    dtype = torch.float64 if experiment.compute.dtype == "float64" else torch.float32
    with experiment.blame("compute"):
        device = find_device(experiment.compute.device, dtype)
    modules = [_model(experiment, dataset) for _ in range(2)]
    said = [_start(experiment, module) for module in modules]
    if notes is not None:
        notes += filter(None, said[:1])
    loss = make_loss(experiment, dataset)
    with experiment.blame("model"):
        name, held = experiment.model.name, experiment.strategy.buffers
        task = tried(modules, dataset, name, device, dtype, held, loss)
    with experiment.blame("strategy"):
        task.augment = augmentation(
            experiment.strategy.local.augment, cast(dataset.x[:2], device, task.dtype)
        )
    with experiment.blame("evaluate"):
        task.metrics = metrics_of(experiment.evaluate.metrics, loss)
        _try_metrics(task, dataset)
    return task


def make_loss(experiment: Experiment, dataset: Dataset) -> Loss:
    """Return the loss that the experiment names, or the dataset's own, and refuse one that its targets do not fit."""
    loss = _named_loss(experiment, dataset)
    with experiment.blame("data"):
        for key, y in (("y", dataset.y), ("y_test", dataset.y_test)):
            if loss.function is bce:
                check_shares(key, y)
            if loss.ignored is not None and not bool((y != loss.ignored).any()):
                rule = f"there is nothing but padding, the label {loss.ignored}, and so nothing to learn or to measure"
                raise BadValue(key, MISSING, rule)
    return loss


def _named_loss(experiment: Experiment, dataset: Dataset) -> Loss:
    block, labels = experiment.loss, dataset.classes > 0 and not dataset.y.is_floating_point()
    if block is None:
        return loss_of(dataset.loss, labels=labels)
    with experiment.blame("loss"):
        loss = loss_of(block.name, block.params, labels)
        if loss.known and loss.function is cross_entropy and not labels:
            rule = f"needs labels, and {dataset.name} has numbers to predict"
            raise BadValue("name", block.name, rule, "take mse, mae or huber")
        if loss.known and loss.function is not cross_entropy and labels:
            rule = f"needs numbers to predict, and {dataset.name} has labels"
            raise BadValue("name", block.name, rule, "take cross_entropy")
    return loss


def _try_metrics(task: Task, dataset: Dataset) -> None:
    """Refuse a metric that does not fit the outputs, before anything runs."""
    if not task.metrics:
        return
    apart = -(-len(dataset.y_test) // TRIED)  # from all over, as files are often sorted by label
    x, y = cast(dataset.x_test[::apart], task.device, task.dtype), _cast(dataset.y_test[::apart], task)
    with torch.no_grad():
        outputs = task.predict(task.initial, x)
    for index, (name, metric) in enumerate(task.metrics.items()):
        try:
            found = metric(outputs, y)
        except BaseException as error:
            if passes(error):
                raise
            rule = f"does not fit {dataset.name}: {told(error)}"
            raise BadValue(f"metrics.{index}.name", name, rule) from error
        if not math.isfinite(found):
            rule = f"does not fit {dataset.name}: it is {found} for the model before any training"
            raise BadValue(f"metrics.{index}.name", name, rule)


def _model(experiment: Experiment, dataset: Dataset) -> nn.Module:
    with experiment.blame("model"):
        part = experiment.find("models", experiment.model.name)
        shape, rng = dataset.shape, stream(experiment.seed, "model")
        target = tuple(dataset.y.shape[1:])
        return models.build(
            part, experiment.model.params, shape, dataset.classes, rng, target, dataset.counts
        )


def _start(experiment: Experiment, module: nn.Module) -> str:
    """Give a model the weights that it starts from, if the experiment names any; return what is to be said of them."""
    file = experiment.model.file(experiment.home)
    with experiment.blame("model"):
        return "" if file is None else warm.started(module, file, experiment.model.strict)


def _judge(experiment: Experiment, dataset: Dataset) -> Judge:
    """Return the expert: the same model, on the same samples."""
    device = find_device(experiment.compute.device)
    y = dataset.y.to(device)
    if dataset.y.dim() > 1 or dataset.loss not in ("cross_entropy", "half_square"):
        raise BadValue("expert", MISSING, f"has no scores for targets like those of {dataset.name}")
    kinds = [part.dtype for part in leaves(dataset.x) if part.is_floating_point()]
    dtype = kinds[0] if kinds else torch.float32
    x, module = cast(dataset.x, device, dtype), _model(experiment, dataset).to(device, dtype)
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


def _inputs(experiment: Experiment, dataset: Dataset, key: str, task: Task) -> X:
    """Return inputs in the type of ``compute.dtype``, and refuse those that are too large for it."""
    given: X = getattr(dataset, key)
    made = cast(given, task.device, task.dtype)
    for old, new in zip(leaves(given), leaves(made), strict=True):
        if old.is_floating_point() and torch.finfo(old.dtype).max > torch.finfo(new.dtype).max:
            with experiment.blame("data"):
                check_finite(key, new, "inputs, in float32,")
    return made


def _cast(values: torch.Tensor, task: Task) -> torch.Tensor:
    return values.to(task.device, task.dtype if values.is_floating_point() else values.dtype)
