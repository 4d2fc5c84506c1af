"""Two things differ exactly where their identities do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.learn.identity import identity
from fedsim.learn.local import LocalSGD
from fedsim.learn.unlike import unlike
from fedsim.spec.experiment import Local

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
THINGS = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(THINGS, THINGS)
def test_what_is_the_same_has_no_lines_and_all_else_has(one: Any, two: Any) -> None:
    assert not list(unlike(one, one))
    assert bool(list(unlike(one, two))) == (identity(one) != identity(two))


@pytest.mark.parametrize(
    ("one", "two", "lines"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b: 1 | 2"]),
        ({"a": 1}, {"b": 1}, ["not the same"]),
        ([1, [2]], [1, [3]], ["1.0: 2 | 3"]),
        (1, "1", ["1 | '1'"]),
        (torch.zeros(2), torch.zeros(3), ["numbers of shape [2] | numbers of shape [3]"]),
        (np.zeros(2), np.ones(2), ["not the same"]),
        (torch.nn.Linear, torch.nn.ReLU, ["Linear | ReLU"]),
        (torch.nn.Linear(1, 2), torch.nn.Linear(1, 3), ["not the same"]),
    ],
)
def test_lines_say_what_and_where(one: Any, two: Any, lines: list[str]) -> None:
    assert list(unlike(one, two)) == lines


def test_objects_are_looked_into() -> None:
    one, two = (LocalSGD(Local(lr=lr, momentum=momentum)) for lr, momentum in ((0.1, 0.0), (0.2, 0.9)))
    found = list(unlike(one, two, "update"))
    assert "update.local.lr: 0.1 | 0.2" in found
    assert "update.local.momentum: 0.0 | 0.9" in found
    assert list(unlike(one, two, "update", depth=0)) == ["update: not the same"]


def test_what_has_no_name_is_compared_by_its_text() -> None:
    one, two = (eval("lambda: 0") for _ in range(2))
    assert not list(unlike(one, one))
    assert list(unlike(one, two)) == ["not the same"]
