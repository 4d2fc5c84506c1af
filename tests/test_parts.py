"""Parts: found by name or path, called with checked parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from fedsim import parts
from fedsim.errors import BadValue


def wheel(n: int, *, spokes: int = 3, seed: int = 0) -> tuple[int, int, int]:
    """Return what it was given."""
    return n, spokes, seed


def bounded(*, share: Annotated[float, Field(ge=0, le=1)], names: list[str] | None = None) -> Any:
    return share, names


class Thing:
    def __init__(self, size: int, **more: Any) -> None:
        self.size, self.more = size, more


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "a_users_own_parts"
    (tmp_path / f"{name}.py").write_text("def circle(n):\n    'A circle.'\n    return n\n\nnumber = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", parts.KINDS)
def test_every_installed_part_loads_and_says_what_it_is(kind: str) -> None:
    assert parts.names(kind)
    for name in parts.names(kind):
        assert callable(parts.find(kind, name))
        assert len(parts.summary(kind, name)) > 10


def test_a_dotted_path_is_a_part(own_module: str) -> None:
    assert parts.find("topologies", f"{own_module}:circle")(5) == 5
    assert parts.find("topologies", f"{own_module}.circle")(5) == 5


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("rnig", "rnig: no such topology; did you mean ring?"),
        ("no_such_module:f", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json.decoder.no_such_function", "cannot be imported"),
        ("math:pi", "is not callable"),
        (":", "cannot be imported"),
        ("..", "cannot be imported"),
    ],
)
def test_what_is_not_a_part_is_refused(name: str, rule: str) -> None:
    with pytest.raises(BadValue, match=rule.replace("?", r"\?")):
        parts.find("topologies", name)


def test_a_number_is_not_a_part(own_module: str) -> None:
    with pytest.raises(BadValue, match="is not callable"):
        parts.find("models", f"{own_module}:number")


def test_supplied_values_fill_in() -> None:
    assert parts.call(wheel, {}, {"n": 4, "seed": 7, "clients": 9}) == (4, 3, 7)
    assert parts.call(wheel, {"spokes": 5}, {"n": 4}) == (4, 5, 0)


def test_the_users_value_wins() -> None:
    assert parts.call(wheel, {"seed": 1}, {"n": 4, "seed": 7}) == (4, 3, 1)


@pytest.mark.parametrize(
    ("part", "given", "text"),
    [
        (wheel, {"spoke": 2}, "spoke: unknown key; did you mean spokes?"),
        (wheel, {"spokes": "2"}, "spokes: 2: should be a valid integer"),
        (wheel, {"spokes": 2.5}, "spokes: 2.5: should be a valid integer"),
        (wheel, {"spokes": True}, "spokes: True: should be a valid integer"),
        (bounded, {}, "share: is required"),
        (bounded, {"share": 1.5}, "share: 1.5: should be less than or equal to 1"),
        (bounded, {"share": 1, "names": ["a", 3]}, "names.1: 3: should be a valid string"),
    ],
)
def test_bad_parameters_are_refused(part: Any, given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadValue) as caught:
        parts.call(part, given, {"n": 4})
    assert str(caught.value) == text


def test_whole_numbers_are_numbers() -> None:
    assert parts.call(bounded, {"share": 1}) == (1.0, None)


def test_open_ended_parts_take_anything() -> None:
    thing = parts.call(Thing, {"size": 3, "colour": "red"}, {"seed": 1})
    assert (thing.size, thing.more) == (3, {"colour": "red"})
