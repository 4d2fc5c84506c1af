"""The partitioners of Flower Datasets, on any dataset here."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import MISSING, BadValue, clip, did_you_mean
from fedsim.learn.data.partition import Indices, Labels, Some
from fedsim.learn.data.samples import library

INDEX, LABEL, GROUP = "index", "label", "group"
"""The columns of the table that a partitioner sees: samples by number, and what may divide them."""

BY_GROUP = ("naturalid", "groupednaturalid")
"""These divide groups where nothing else is said; all others divide labels."""

NOT_SAMPLES = ("verticaleven", "verticalsize", "idtosizefnc", "")
"""These divide columns, take a function, or are no partitioner but the class of all."""


def flower(
    labels: Labels,
    clients: int,
    *,
    partitioner: str,
    options: dict[str, Any] | None = None,
    groups: NDArray[Any] | None = None,
    rng: np.random.Generator,
) -> list[Indices]:
    """Divide the samples as a partitioner of Flower Datasets does; needs flwr-datasets.

    Some leave samples to nobody: Pathological those of classes that no client drew, Shard those beyond the last whole
    shard, Distribution and Size all that they were not told to deal out. How many those are is reported.

    Args:
        labels: [N] the training labels or targets.
        clients: how many clients there are.
        partitioner: the name of its class, with or without Partitioner at its end: Dirichlet, Pathological, Shard.
        options: its arguments, such as ``{alpha: 0.3}``; ``num_partitions`` is the number of clients, ``partition_by``
            is label or group, and ``seed`` is drawn from the experiment's, if they are not given.
        groups: [N] whose each sample is, or None.
        rng: where the seed comes from.

    Returns:
        One sorted int64 array of sample indices for each client, disjoint.

    Raises:
        BadValue: if there is no such partitioner, or it refuses its arguments or makes another number of parts.

    References:
        Flower Datasets, https://flower.ai/docs/datasets.
    """
    known = library("flwr_datasets.partitioner")
    names = {_short(name): name for name in known.__all__ if _short(name) not in NOT_SAMPLES}
    if _short(partitioner) not in names:
        hint = did_you_mean(_short(partitioner), names)
        raise BadValue(
            "partitioner", partitioner, "there is no such partitioner of samples in Flower Datasets", hint
        )
    maker = getattr(known, names[_short(partitioner)])
    columns = {INDEX: np.arange(len(labels)), LABEL: labels, **({} if groups is None else {GROUP: groups})}
    given = _arguments(maker, clients, dict(options or {}), rng)
    by = given.get("partition_by")
    if by is not None and by not in columns:
        raise BadValue("options.partition_by", by, "must be label, or group where the dataset has groups")
    table = library("datasets").Dataset.from_dict(columns)
    try:
        with warnings.catch_warnings():  # it warns of samples that are left out; those are counted here
            warnings.simplefilter("ignore")
            made = maker(**given)
            made.dataset = table
            count = made.num_partitions
            dealt = [made.load_partition(part)[INDEX][:] for part in range(min(count, clients))]
    except Exception as error:  # whatever it refuses, in whatever way
        said = next(iter(str(error).splitlines()), "")
        rule = f"{maker.__name__} refuses its arguments ({type(error).__name__}: {clip(said, 200)})"
        raise BadValue("options", MISSING, rule) from error
    if count != clients:
        raise BadValue(
            "clients", clients, f"{maker.__name__} makes {count} parts", f"set data.clients to {count}"
        )
    return Some(np.sort(np.asarray(part, dtype=np.int64)) for part in dealt)


def _short(name: str) -> str:
    """Return a partitioner's name as it may be written in a file."""
    return name.lower().removesuffix("partitioner").replace("_", "").replace("-", "")


def _arguments(maker: Any, clients: int, given: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    takes = list(inspect.signature(maker).parameters)
    for key in given:
        if key not in takes:
            raise BadValue(f"options.{key}", MISSING, "unknown key", did_you_mean(key, takes))
    own = {
        "num_partitions": clients,
        "partition_by": GROUP if _short(maker.__name__) in BY_GROUP else LABEL,
        "seed": int(rng.integers(2**31)),
    }
    given = {**{key: value for key, value in own.items() if key in takes}, **given}
    return {key: np.array(value) if key.endswith("_array") else value for key, value in given.items()}
