"""Names that follow from content: equal for what is equal, in every process, and different for all else."""

from __future__ import annotations

import copy
import functools
import os
import random
import subprocess
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.beside import place
from fedsim.learn.codec import Quantised, Sparse
from fedsim.learn.identity import Unnamed, identity
from fedsim.learn.local import LocalSGD, MeanGradient
from fedsim.learn.sampling import LargeBatch, LocalBatches
from fedsim.spec.experiment import Local

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Point:
    x: float
    y: float


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


class Chosen:
    """Is named by less than all that it holds."""

    def __init__(self, counts: int) -> None:
        self.counts, self.cache = counts, random.random()

    def named_by(self) -> object:
        return self.counts


def first(x: float) -> float:
    return x


def second(x: float) -> float:
    return x


def closing(over: Any) -> Any:
    def inner(x: float) -> Any:
        return over

    return inner


@settings(deadline=None)
@given(PLAIN, PLAIN)
def test_two_things_have_one_name_where_python_shows_them_alike(one: Any, two: Any) -> None:
    assert (identity(one) == identity(two)) == (_shown(one) == _shown(two))


def _shown(value: Any) -> Any:
    """Show a value with its types, whatever the order of a dictionary; lists and tuples are one kind."""
    if isinstance(value, dict):
        return "{}", sorted((key, _shown(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return "[]", [_shown(one) for one in value]
    return type(value).__name__, repr(value)


DIFFERENT: list[Any] = [
    *(0, 0.0, False, "", b"", None, (), {}, "0", b"0", -0.0, 1, True, 1.0, 1j, float("inf"), ...),
    *((1, 2), ((1,), 2), (1, (2,)), (12,), ("1", "2"), ("12",), ("1,2",), {1: 2}, {2: 1}, {1, 2}),
    *(np.float64(1), np.float32(1), np.int64(1), np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32)),
    *(torch.zeros(2), torch.zeros(1, 2), torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, -0.0])),
    *(nn.Parameter(torch.zeros(2)), torch.float32, torch.device("cpu"), Path("a"), Colour.RED, Colour.BLUE),
    *(Point(1.0, 2.0), Point(2.0, 1.0), Slotted(1), Slotted(2), Slotted, Point, Chosen(1), Chosen(2)),
    *(first, second, functools.partial(first, 1), functools.partial(first, 2), functools.partial(second, 1)),
    *(closing(1), closing(2), torch.relu, torch.sigmoid, Chosen(1).named_by, len, np.array(["a", None])),
    *(LocalSGD(Local()), LocalSGD(Local(), 0.1), LocalSGD(Local(lr=0.5)), LocalSGD(Local(steps=3))),
    *(MeanGradient(), MeanGradient(3), LargeBatch(3, 2), LargeBatch(2, 3), LocalBatches(Local())),
    *(Sparse(0.1), Sparse(0.2), Quantised(8), Quantised(16), np, torch, np.dtype("int8")),
]


def test_different_things_have_different_names() -> None:
    assert len({identity(one) for one in DIFFERENT}) == len(DIFFERENT)


def test_things_that_are_made_alike_have_one_name() -> None:
    makers = [
        lambda: LocalSGD(Local(lr=0.25, steps=2)),
        lambda: torch.arange(6.0).reshape(2, 3),
        lambda: nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 3), b=nn.BatchNorm2d(2))).apply(_filled),
        lambda: Chosen(4),
        lambda: closing((1, "a")),
        lambda: Slotted({"b": 1, "a": [torch.ones(1)]}),
    ]
    for make in makers:
        assert identity(make()) == identity(make())


def _filled(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.5)


def test_the_order_of_a_dictionary_and_the_memory_of_a_tensor_do_not_matter() -> None:
    assert identity({"a": 1, "b": 2}) == identity({"b": 2, "a": 1})
    square = torch.arange(4.0).reshape(2, 2)
    assert identity(square.T) == identity(square.T.contiguous())
    assert identity(square[:, 0]) == identity(torch.tensor([0.0, 2.0]))


def test_a_model_is_all_that_it_holds_but_for_its_mode() -> None:
    def make(**more: Any) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).apply(_filled)
        for name, value in more.items():
            setattr(module, name, value)
        return module

    plain = identity(make())
    assert identity(make().eval()) == plain
    assert identity(make(act=torch.relu)) != identity(make(act=torch.tanh))
    changed = make()
    changed[1].running_mean += 1
    assert identity(changed) != plain
    frozen = make()
    frozen[0].weight.requires_grad_(False)
    assert identity(frozen) != plain
    hooked = make()
    hooked.register_forward_hook(first)
    assert identity(hooked) != plain


def test_what_holds_itself_has_a_name() -> None:
    ring, other = Slotted(1), Slotted(2)
    ring.held, other.held = [ring, 5], [other, 6]
    assert identity(ring) != identity(other)


class Text(str):
    pass


class Whole(int):
    pass


class Real(float):
    pass


class Row(list[int]):
    def __init__(self, numbers: Any, step: int = 0) -> None:
        super().__init__(numbers)
        self.step = step


class Table(dict[str, int]):
    def __init__(self, entries: Any, step: int = 0) -> None:
        super().__init__(entries)
        self.step = step


class OneSlot:
    __slots__ = "held"

    def __init__(self, held: Any) -> None:
        self.held = held


class PrivateSlot:
    __slots__ = ("__held",)

    def __init__(self, held: Any) -> None:
        self.__held = held


class Line(deque[int]):
    pass


class Dice(random.Random):
    pass


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (Text("a"), Text("b")),
        (Text("a"), "a"),
        (Whole(1), Whole(2)),
        (Real(1.0), Real(2.0)),
        (Row([1]), Row([2])),
        (Row([1], 2), Row([1], 3)),
        (Row([1]), [1]),
        (Table({"a": 1}), Table({"a": 2})),
        (Table({"a": 1}, 2), Table({"a": 1}, 3)),
        (OneSlot(1), OneSlot(2)),
        (PrivateSlot(1), PrivateSlot(2)),
        ("a".upper, "b".upper),
        ([1].index, [2].index),
    ],
)
def test_objects_of_ones_own_kinds_are_what_is_in_them(one: Any, two: Any) -> None:
    assert identity(one) != identity(two)
    assert identity(copy.copy(one)) == identity(one)


@pytest.mark.parametrize(
    "value", [random.Random(1), Dice(1), random.Random(1).gauss, Line([1]), ValueError(1), date(2020, 1, 1)]
)
def test_what_python_does_not_show_has_no_name(value: Any) -> None:
    """Two such objects look alike, whatever is in them."""
    with pytest.raises(Unnamed, match="cannot be looked into"):
        identity(value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda x: x, "has no name"),
        (closing([1]), "closes over over, which can change"),
        (closing({}), "can change"),
        (np.random.default_rng(1), "changes with every draw"),
        (torch.Generator(), "changes with every draw"),
        (iter([1]), "cannot be looked into"),
        ({"deep": [lambda: 1]}, "has no name"),
    ],
)
def test_what_would_be_another_thing_tomorrow_has_no_name(value: Any, why: str) -> None:
    with pytest.raises(Unnamed, match=why):
        identity(value)


def test_a_part_of_the_users_is_its_source_and_that_of_its_helpers(tmp_path: Path) -> None:
    """What a module imports from beside it counts, too; what nobody uses does not."""

    def named(
        case: str, own: str = "x = 1", helper: str = "def half(x): return x / 2", spare: str = ""
    ) -> bytes:
        folder = tmp_path / case
        folder.mkdir()
        (folder / "lab_own.py").write_text(f"import lab_help\n{own}\nclass Mine:\n    pass\n")
        (folder / "lab_help.py").write_text(helper + "\n")
        (folder / "lab_spare.py").write_text(spare)
        return identity(place(folder).load("lab_own").Mine())

    plain = named("plain")
    assert named("elsewhere") == plain
    assert named("spare", spare="y = 2") == plain
    assert named("own", own="x = 2") != plain
    assert named("helper", helper="def half(x): return x / 3") != plain


def tell(folder: Path, files: dict[str, str], name: str = "lab_own") -> bytes:
    """Return what an object of the class ``Mine`` is in a module of a folder with these files."""
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text + "\n")
    return identity(place(folder).load(name).Mine())


USES = {
    "a number": "from lab_help import FACTOR",
    "a number of a module that is named otherwise": "import lab_help as other",
    "all of it": "from lab_help import *",
    "only when it is called": "def late():\n    from lab_help import FACTOR\n    return FACTOR",
    "only when it is called, as a module": "def late():\n    import lab_help\n    return lab_help.FACTOR",
    "by way of another": "import lab_middle",
    "out of a folder without __init__": "import lab_folder.deep",
    "out of a package": "from lab_package import inner",
    "out of a package, by a name from within": "from lab_package.upper import FACTOR",
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_whatever_a_part_of_the_users_imports_is_a_part_of_it(use: str, tmp_path: Path) -> None:
    """Be it but a number: a value with no home of its own, which another one in its file would change."""

    def named(case: str, factor: float) -> bytes:
        helper = f"FACTOR = {factor}"
        files = {
            "lab_own.py": f"{use}\nclass Mine:\n    pass",
            "lab_help.py": helper,
            "lab_middle.py": "from lab_help import FACTOR",
            "lab_folder/deep.py": helper,
            "lab_package/__init__.py": "",
            "lab_package/inner.py": helper,
            "lab_package/upper.py": "from .inner import FACTOR",
        }
        return tell(tmp_path / case, files)

    assert named("one", 0.5) == named("same", 0.5)
    assert named("other", 0.25) != named("one again", 0.5)


def test_a_module_is_what_it_was_when_it_was_imported(tmp_path: Path) -> None:
    """Whoever edits a file while a notebook is open goes on with what was loaded."""
    text = "class Mine:\n    lr = {}"
    loaded = place(tmp_path).load
    (tmp_path / "lab_edited.py").write_text(text.format(1) + "\n")
    mine = loaded("lab_edited").Mine()
    (tmp_path / "lab_edited.py").write_text(text.format(22) + "\n")
    before, after = (
        tell(tmp_path / f"{lr}", {"lab_edited.py": text.format(lr)}, "lab_edited") for lr in (1, 22)
    )
    assert identity(mine) == before != after


@pytest.mark.parametrize("hashseed", ["77"])
def test_names_are_the_same_in_every_process(hashseed: str) -> None:
    code = (
        "import torch, numpy as np\n"
        "from fedsim.learn.identity import identity\n"
        "from fedsim.learn.local import LocalSGD\n"
        "from fedsim.spec.experiment import Local\n"
        "print(identity({'b', 'a', 'c'}, LocalSGD(Local(lr=0.5)), torch.ones(3), np.arange(3)).hex())"
    )
    env = {**os.environ, "PYTHONHASHSEED": hashseed}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    here = identity({"b", "a", "c"}, LocalSGD(Local(lr=0.5)), torch.ones(3), np.arange(3)).hex()
    assert told.stdout.strip() == here
