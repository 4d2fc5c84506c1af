"""Flower Datasets' partitioners, as they really behave."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim import parts
from fedsim.errors import BadValue
from fedsim.learn.data.partition import Some
from fedsim.rng import stream

pytest.importorskip("flwr_datasets")

LABELS = np.repeat(np.arange(4), 25)
GROUPS = np.arange(100) // 10


def deal(partitioner, clients=5, labels=LABELS, **options):
    supplied = {"labels": labels, "clients": clients, "groups": GROUPS, "rng": stream(0, "partition")}
    given = {"partitioner": partitioner, "options": options}
    return parts.call(parts.find("partitions", "flower"), given, supplied)


def held(dealt):
    together = np.concatenate(dealt)
    assert len(np.unique(together)) == len(together)
    return len(together)


@pytest.mark.parametrize(
    ("name", "options", "dealt"),
    [
        ("Iid", {}, 100),
        ("LinearPartitioner", {}, 100),
        ("square", {}, 100),
        ("Exponential", {}, 100),
        ("Dirichlet", {"alpha": 1.0, "min_partition_size": 1}, 100),
        ("inner_dirichlet", {"partition_sizes": [20] * 5, "alpha": 1.0}, 100),
        ("Size", {"partition_sizes": [10, 10, 10, 10, 5]}, 45),
        ("Shard", {"num_shards_per_partition": 2, "shard_size": 7}, 70),
        ("Pathological", {"num_classes_per_partition": 1, "class_assignment_mode": "deterministic"}, 100),
        ("Continuous", {"strictness": 0.5}, 100),
    ],
)
def test_samples_are_dealt_to_one_client_or_nobody(name, options, dealt):
    found = deal(name, **options)
    assert isinstance(found, Some)
    assert len(found) == 5
    assert held(found) == dealt
    assert all((np.diff(own) > 0).all() for own in found)


def test_classes_that_nobody_drew_belong_to_nobody():
    found = deal("Pathological", 2, num_classes_per_partition=1, class_assignment_mode="deterministic")
    assert [sorted(set(LABELS[own].tolist())) for own in found] == [[0], [1]]
    assert held(found) == 50


def test_natural_groups_of_flower():
    assert [set(GROUPS[own].tolist()) for own in deal("NaturalId", 10)] == [{group} for group in range(10)]
    with pytest.raises(
        BadValue, match=r"clients: 5: NaturalIdPartitioner makes 10 parts; set data.clients to 10"
    ):
        deal("NaturalId", 5)


def test_the_seed_is_the_experiments():
    one, two = (deal("Dirichlet", alpha=0.5, min_partition_size=1) for _ in range(2))
    other = deal("Dirichlet", alpha=0.5, min_partition_size=1, seed=7)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("Dirichlets", {}, "did you mean dirichlet?"),
        ("VerticalEven", {}, "there is no such partitioner of samples"),
        ("Dirichlet", {"alfa": 1}, "options.alfa: unknown key; did you mean alpha?"),
        ("Dirichlet", {"alpha": -1.0}, "DirichletPartitioner refuses its arguments (ValueError"),
        ("Dirichlet", {}, "DirichletPartitioner refuses its arguments (TypeError"),
        (
            "Dirichlet",
            {"alpha": 1.0, "partition_by": "x"},
            "options.partition_by: x: must be label, or group",
        ),
    ],
)
def test_what_a_partitioner_refuses_is_one_line(name, options, words):
    with pytest.raises(BadValue) as caught:
        deal(name, **options)
    assert words in str(caught.value)
