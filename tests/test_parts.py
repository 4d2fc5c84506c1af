"""Parts: found by name or path, called with checked parameters."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field

from fedsim import parts
from fedsim.errors import BadValue


def wheel(n: int, *, spokes: int = 3, seed: int = 0) -> tuple[int, int, int]:
    """Return what it was given."""
    return n, spokes, seed


def bounded(*, share: Annotated[float, Field(ge=0, le=1)], names: list[str] | None = None) -> Any:
    return share, names


def _even(value: int) -> int:
    if value % 2:
        raise BadValue("0", value, "must be even", "take 4")
    return value


def mixed(
    *,
    widths: list[int] | int = 64,
    factor: int | float | bool = 1,
    mode: Literal["all", "none"] | dict[str, float] = "all",
    even: Annotated[int, AfterValidator(_even)] = 2,
) -> Any:
    return widths, factor, mode, even


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
        (wheel, {"spokes": "2"}, "spokes: '2': must be a whole number; write it without quotes"),
        (wheel, {"spokes": "two"}, "spokes: two: must be a whole number"),
        (wheel, {"spokes": "2.5"}, "spokes: '2.5': must be a whole number"),
        (wheel, {"spokes": 2.5}, "spokes: 2.5: must be a whole number"),
        (wheel, {"spokes": True}, "spokes: true: must be a whole number"),
        (wheel, {"spokes": None}, "spokes: null: must be a whole number"),
        (bounded, {}, "share: is required"),
        (bounded, {"share": 1.5}, "share: 1.5: must be at most 1"),
        (bounded, {"share": "0.7"}, "share: '0.7': must be a number; write it without quotes"),
        (bounded, {"share": "true"}, "share: 'true': must be a number"),
        (bounded, {"share": 1, "names": ["a", 3]}, "names.1: 3: must be text"),
        (bounded, {"share": 1, "names": "a"}, "names: a: must be a list"),
        (mixed, {"widths": "wide"}, "widths: wide: must be a whole number or a list"),
        (mixed, {"widths": "8"}, "widths: '8': must be a whole number or a list; write it without quotes"),
        (mixed, {"widths": [1, "b"]}, "widths.1: b: must be a whole number"),
        (mixed, {"factor": "x"}, "factor: x: must be a number or true or false"),
        (mixed, {"mode": 3}, "mode: 3: must be all or none or a block of keys"),
        (mixed, {"mode": {"a": "x"}}, "mode.a: x: must be a number"),
        (mixed, {"even": 3}, "even.0: 3: must be even; take 4"),
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


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"spokes": "a", "sede": 1, "n": "b"}, "spokes"),
        ({"n": "b", "spokes": "a", "sede": 1}, "n"),
        ({"sede": 1, "n": "b", "spokes": "a"}, "sede"),
    ],
)
def test_the_first_mistake_is_the_first_that_the_user_wrote(given: dict[str, Any], key: str) -> None:
    with pytest.raises(BadValue) as caught:
        parts.check(wheel, given)
    assert caught.value.key == key


def test_parameters_may_have_names_that_pydantic_uses() -> None:
    def odd(*, copy: int, model_config: int, _low: int, json: str = "") -> Any:
        return copy, model_config, _low, json

    assert parts.call(odd, {"copy": 1, "model_config": 2, "_low": 3, "json": "x"}) == (1, 2, 3, "x")
    with pytest.raises(BadValue, match="_low: x: must be a whole number"):
        parts.check(odd, {"copy": 1, "model_config": 2, "_low": "x"})


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (dict, "name: builtins:dict: has no signature that could be checked"),
        (len, "name: builtins:len: has a parameter that cannot be given by name (obj)"),
    ],
)
@pytest.mark.parametrize("given", [{}, {"obj": [1]}])
def test_what_cannot_be_checked_is_refused(part: Any, text: str, given: dict[str, Any]) -> None:
    with pytest.raises(BadValue) as caught:
        parts.call(part, {}, given)
    assert str(caught.value) == text


def test_an_annotation_that_does_not_exist_is_refused() -> None:
    def lost(size: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        return None

    with pytest.raises(BadValue, match=r"has an unknown annotation \(name 'Nowhere' is not defined\)"):
        parts.call(lost, {"size": 3})


def test_what_is_called_like_a_function_is_checked_like_one() -> None:
    class Maker:
        def __call__(self, size: int) -> int:
            return size

    assert parts.call(Maker(), {"size": 3}) == 3
    assert parts.call(functools.partial(wheel, spokes=9), {"n": 4}) == (4, 9, 0)
    with pytest.raises(BadValue, match="size: x: must be a whole number"):
        parts.call(Maker(), {"size": "x"})


# **kwargs


class Base:
    def __init__(self, *, share: Annotated[float, Field(le=1)], seed: int, rounds: int = 2) -> None:
        self.share, self.seed, self.rounds = share, seed, rounds


class Middle(Base):
    pass


class Half(Middle):
    def __init__(self, colour: str = "red", **rest: Any) -> None:
        super().__init__(**{"share": 0.5, **rest})
        self.colour = colour


class Quarter(Half):
    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)


def test_the_names_that_kwargs_pass_on_are_known() -> None:
    assert list(parts.parameters(Quarter)) == ["colour", "share", "seed", "rounds"]
    assert list(parts.parameters(Thing)) == ["size", "more"]
    thing = parts.call(Quarter, {"rounds": 3}, {"seed": 7, "clients": 9})
    assert (thing.share, thing.seed, thing.rounds, thing.colour) == (0.5, 7, 3, "red")


@pytest.mark.parametrize("part", [Half, Quarter])
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"shar": 0.2}, "shar: unknown key; did you mean share?"),
        ({"color": "blue"}, "color: unknown key; did you mean colour?"),
        ({"share": 1.5}, "share: 1.5: must be at most 1"),
        ({"zzz": 1}, "zzz: unknown key; known: colour, rounds, share"),
    ],
)
def test_a_key_that_kwargs_cannot_pass_on_is_refused(part: Any, given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadValue) as caught:
        parts.call(part, given, {"seed": 7})
    assert str(caught.value) == text


def test_a_required_parameter_that_kwargs_should_have_passed_on_is_required() -> None:
    class Plain(Base):
        def __init__(self, **rest: Any) -> None:
            super().__init__(**rest)

    with pytest.raises(BadValue) as caught:
        parts.call(Plain, {"rounds": 3}, {"seed": 7})
    assert str(caught.value) == "share: is required"
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'seed'"):
        parts.call(lambda: Base(share=0.5), {}, {"seed": 7})  # type: ignore[call-arg]


def passing(n: int, **rest: Any) -> Any:
    return wheel(n, **rest)


def broken(n: int) -> Any:
    return wheel(n, spoke=3)  # type: ignore[call-arg]


def test_a_key_that_only_the_call_refuses_is_an_unknown_key() -> None:
    assert parts.call(passing, {"spokes": 5}, {"n": 4}) == (4, 5, 0)
    with pytest.raises(BadValue) as caught:
        parts.call(passing, {"spoke": 5, "m": 3}, {"n": 4})
    assert str(caught.value) == "spoke: unknown key"
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_mistake_inside_of_a_part_stays_what_it_is() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'spoke'"):
        parts.call(broken, {}, {"n": 4})


def test_flowers_own_strategies_are_followed() -> None:
    from flwr.serverapp.strategy import FedAvg

    class Own(FedAvg):
        def __init__(self, **rest: Any) -> None:
            super().__init__(**rest)

    with pytest.raises(BadValue, match="fraction_trian: unknown key; did you mean fraction_train"):
        parts.call(Own, {"fraction_trian": 0.5})
    assert parts.call(Own, {"fraction_train": 0.5}).fraction_train == 0.5


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("strategies.fedprox:FedProx", "strategies.server.fedprox:FedProx"),
        ("strategies.dpsgd.DPSGD", "strategies.peer.dpsgd:DPSGD"),
        ("strategies.fedamd:FedAMD", "strategies.fedamd.fedamd:FedAMD"),
        ("strategies.modest_flower:MoDeSTRelay", "strategies.modest.relay:MoDeSTRelay"),
    ],
)
def test_former_paths_of_strategies_work_and_are_warned_of(former, present, caplog):
    found = parts.find("strategies", former)
    assert found is parts.find("strategies", present)
    assert len(caplog.messages) == 1  # the present path is not warned of
    assert "the former name goes with the next version" in caplog.messages[0]


def test_every_former_path_leads_somewhere():
    import importlib

    import strategies

    for module in strategies.MOVED.values():
        importlib.import_module(module)


def test_what_is_to_be_installed_is_named_as_the_extras_name_it():
    from configparser import ConfigParser
    from pathlib import Path

    root, file = Path(__file__).parents[1], ConfigParser()
    file.read(root / "setup.cfg")
    extras = file["options.extras_require"]
    wanted = {line for name in extras if name not in ("dev", "docs") for line in extras[name].split()}
    assert set(parts.NEEDS.values()) == {line.replace("15.0", "15") for line in wanted}
    texts = [
        path for top in ("fedsim", "strategies", "topologies", "docs") for path in (root / top).rglob("*")
    ]
    named = [path for path in texts if path.suffix in (".py", ".md") and "fedsim[" in path.read_text("utf-8")]
    assert named == [root / "fedsim" / "flower" / "__init__.py"]  # which says why not


def test_a_metric_of_a_library_that_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(BadValue, match=r"pip install 'torchmetrics>=1\.4'"):
        parts.find("metrics", "torchmetrics.functional.classification:multiclass_accuracy")
