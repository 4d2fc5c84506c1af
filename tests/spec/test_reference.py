"""The committed reference is the one that the code writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim import parts
from fedsim.spec.experiment import Experiment
from fedsim.spec.reference import keys, markdown, own_parameters

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


def test_the_committed_reference_is_current() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == markdown(), "run make docs"


def test_every_key_is_described() -> None:
    rows = list(keys(Experiment))
    assert len(rows) > 30
    assert all(what for _, _, what in rows)


def test_the_other_keys_of_assume_are_told() -> None:
    assert "score" in dict((key, what) for key, _, what in keys(Experiment))["assume.loss"]


def test_every_part_is_listed() -> None:
    text = markdown()
    for kind in parts.KINDS:
        assert all(f"| `{name}` |" in text for name in parts.names(kind))


@pytest.mark.parametrize(
    ("kind", "name", "own"),
    [
        (
            "churn",
            "weibull",
            ["online_s", "offline_s", "shape", "start_online"],
        ),  # a model's shape is the data's
        ("models", "lstm", ["words", "embedding", "hidden", "layers"]),
        ("models", "resnet18", ["norm", "groups"]),  # of channels; a partition's are the data's
        ("partitions", "natural", ["fewer"]),
        ("datasets", "synthetic", ["alpha", "beta", "dimension", "classes", "max_samples"]),
        ("faults", "partition", ["at_s", "every_s", "times", "for_s", "groups", "cut", "fraction"]),
    ],
)
def test_what_is_filled_in_for_one_kind_of_part_is_the_users_for_another(
    kind: str, name: str, own: list[str]
) -> None:
    assert [one.name for one in own_parameters(kind, name)] == own
