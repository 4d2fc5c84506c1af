"""What can be seen of a module, and of what its forward changes."""

from __future__ import annotations

import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.learn.contents import changes, contents, equal


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.hidden = [nn.BatchNorm1d(2)]  # a list hides it from torch
        self.held = {"a": deque([1, 2]), "b": {"x"}, "c": SimpleNamespace(n=3, above=self)}
        self.array, self.generator, self.random = np.zeros(3), torch.Generator(), random.Random(0)
        self.rng = np.random.default_rng(0)


def step(module, what):
    with torch.no_grad():
        {
            "layer.weight": lambda: module.layer.weight.add_(1),
            "unsaved": lambda: module.unsaved.fill_(float("nan")),
            "hidden[0]._buffers['running_mean']": lambda: module.hidden[0](torch.ones(3, 2)),
            "held['a'][2]": lambda: module.held["a"].append(5),
            "held['b']{'y'}": lambda: module.held["b"].add("y"),
            "held['c'].n": lambda: setattr(module.held["c"], "n", 4),
            "array": lambda: module.array.__setitem__(0, 1),
            "generator": lambda: torch.rand(1, generator=module.generator),
            "random": module.random.random,
            "rng": lambda: module.rng.random(),
            "layer.training": lambda: module.layer.eval(),
            "new": lambda: setattr(module, "new", None),
        }[what]()


KINDS = {"layer.weight": "weights", "unsaved": "buffer", "array": "tensor"}


@pytest.mark.parametrize(
    "what",
    [
        *("layer.weight", "unsaved", "hidden[0]._buffers['running_mean']", "held['a'][2]", "held['b']{'y'}"),
        *("held['c'].n", "array", "generator", "random", "rng", "layer.training", "new"),
    ],
)
def test_a_change_is_seen_and_named(what):
    module = Holder()
    before = contents(module)
    assert changes(before, contents(module)) == []
    step(module, what)
    found = changes(before, contents(module))
    assert what in [path for _, path in found]
    if what in KINDS:
        assert found == [(KINDS[what], what)]


def test_what_is_worse_comes_first():
    module = Holder()
    before = contents(module)
    for what in ("array", "new", "unsaved", "layer.weight"):
        step(module, what)
    found = changes(before, contents(module))
    assert [kind for kind, _ in found] == ["weights", "buffer", "number", "tensor"]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), True),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 1.0]), False),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64), False),
        (torch.zeros(2), torch.zeros(1, 2), False),
        (float("nan"), float("nan"), True),
        (1, 1.0, False),
        (None, None, True),
        (np.zeros(2), np.array([0.0, -0.0]), False),
    ],
)
def test_equal(a, b, same):
    assert equal(a, b) is same
