"""The committed reference is the one that the code writes."""

from __future__ import annotations

from pathlib import Path

from fedsim import parts
from fedsim.spec.experiment import Experiment
from fedsim.spec.reference import keys, markdown

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
