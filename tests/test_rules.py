"""Rules in plain words, and what plain text means in YAML."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fedsim.rules import either, hint, rule
from fedsim.scalars import SCALARS, kind
from fedsim.spec.yamlfile import parse, write


def refused(annotation: Any, value: Any) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(value)
    return list(caught.value.errors())


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (int, 1.5, "must be a whole number"),
        (float, "x", "must be a number"),
        (bool, 1, "must be true or false"),
        (None, 1, "must be null"),
        (str, 1, "must be text"),
        (list[int], 1, "must be a list"),
        (dict[str, int], 1, "must be a block of keys"),
        (Annotated[float, Field(gt=0)], 0.0, "must be greater than 0"),
        (Annotated[float, Field(lt=0.125)], 1.0, "must be less than 0.125"),
        (Annotated[int, Field(le=16_777_217)], 2**30, "must be at most 16777217"),
        (Annotated[float, Field(ge=1234567.5)], 1.0, "must be at least 1234567.5"),
        (Annotated[int, Field(multiple_of=3)], 4, "must be a multiple of 3"),
        (Annotated[list[int], Field(min_length=2)], [1], "must have a length of at least 2, not 1"),
        (Annotated[list[int], Field(max_length=1)], [1, 2], "must have a length of at most 1, not 2"),
        (Annotated[str, Field(min_length=2)], "a", "must have at least 2 characters"),
        (Literal["a", "b", "c"], "d", "must be a, b or c"),
    ],
)
def test_rules_in_plain_words(annotation: Any, value: Any, words: str) -> None:
    (error,) = refused(annotation, value)
    assert rule(error) == words


def test_a_rule_that_is_not_in_the_table_begins_like_the_others() -> None:
    error = {"type": "odd", "msg": "Input should be a moon"}
    assert rule(error) == "must be a moon"
    assert rule({"type": "value_error", "msg": "Value error, Give both"}) == "give both"


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (list[int] | int, "x", "must be a whole number or a list"),
        (int | float, "x", "must be a number"),
        (dict[str, int] | bool | str, 1.5, "must be true or false, text or a block of keys"),
        (Literal["all"] | Annotated[int, Field(ge=1)], 0, "must be all or at least 1"),
        (int | None, "x", "must be a whole number"),
    ],
)
def test_a_union_is_one_rule(annotation: Any, value: Any, words: str) -> None:
    assert either(refused(annotation, value)) == (words, "")


@pytest.mark.parametrize(
    ("annotation", "value", "helps"),
    [
        (int, "3", True),
        (int, "3.5", False),
        (float, "3", True),
        (float, "1e-3", True),
        (bool, "false", True),
        (bool, "no", False),
        (int, "", False),
        (int, 3.5, False),
    ],
)
def test_quotes_are_blamed_where_they_are_the_only_mistake(annotation: Any, value: Any, helps: bool) -> None:
    (error,) = refused(annotation, value)
    assert hint(error) == ("write it without quotes" if helps else "")


@settings(max_examples=50, deadline=None)
@given(st.integers() | st.floats() | st.booleans() | st.none())
def test_every_plain_value_is_of_its_own_kind(value: Any) -> None:
    text = write({"key": value}).removeprefix("key:").strip()
    assert kind(text) == {int: "int", float: "float", bool: "bool", type(None): "null"}[type(value)]


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from("0123456789.eE+-xaonrutflsNI~ "), min_size=1, max_size=6))
def test_the_kind_is_what_a_file_would_give(text: str) -> None:
    text = text.strip() or "x"
    if kind(text) != "str":
        pattern, convert = SCALARS[kind(text)]
        assert pattern.match(text)
        assert repr(parse(f"k: {text}", "x.yaml").data["k"]) == repr(convert(text))
