"""What a part takes: its parameters with meaning, unit, range and default, and an example, for the command line."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from fedsim import parts
from fedsim.ranges import MOST_COUNT
from fedsim.spec.reference import made, own_parameters, plain
from fedsim.spec.yamlfile import write

BLOCKS: dict[str, tuple[str | None, ...]] = {
    "strategies": ("strategy",),
    "selectors": ("strategy", "select"),
    "transforms": ("strategy", "around", None),
    "topologies": ("topology",),
    "datasets": ("data",),
    "models": ("model",),
    "partitions": ("data", "partition"),
    "churn": ("churn",),
    "faults": ("faults", None),
    "data_faults": ("data", "faults", None),
    "engines": ("compute", "engine"),
    "losses": ("loss",),
    "metrics": ("evaluate", "metrics", None),
    "augmentations": ("strategy", "local", "augment", None),
    "optimisers": ("strategy", "local", "optimizer"),
    "schedules": ("strategy", "local", "schedule"),
    "trackers": ("record", "trackers", None),
}
"""Where a part of a kind stands in an experiment file; None is an entry of a list."""

REQUIRED = "required"
"""The default of a parameter that has none."""

UNITS = {
    "_s": "seconds",
    "_ms": "milliseconds",
    "mbps": "Mbit/s",
    "_mb": "megabytes",
    "_bytes": "bytes",
    "_us": "µs",
}
"""Units by the end of a parameter's name."""


class Parameter(NamedTuple):
    """One parameter of a part, as it is shown."""

    name: str
    default: str
    what: str
    meaning: str


def parameters(kind: str, name: str) -> list[Parameter]:
    """Return the parameters of a part that an experiment file can give.

    >>> parameters("topologies", "small_world")[1][:3]
    ('rewire', 'required', 'a number')
    """
    known, said = parts.hints(made(kind, name)), meanings(parts.find(kind, name))
    return [
        Parameter(
            one.name,
            REQUIRED if one.default is one.empty else plain(one.default),
            f"{kind_of(known.get(one.name, Any))}{_unit(one.name)}",
            said.get(one.name, ""),
        )
        for one in own_parameters(kind, name)
    ]


def meanings(part: parts.Part) -> dict[str, str]:
    """Return what the documentation of a part says of its parameters, by name.

    >>> meanings(parts.find("partitions", "quantity"))["sigma"]
    "the standard deviation of the sizes' logarithm; 0 means equal sizes"
    """
    found: dict[str, str] = {}
    for cls in reversed(inspect.getmro(part)[:-1] if inspect.isclass(part) else [part]):
        lines = (inspect.getdoc(cls) or "").partition("Args:\n")[2].splitlines()
        for names, text in _entries(lines):
            found |= dict.fromkeys(re.split(r",\s*", names), text.rstrip("."))
    return found


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield names and text of each entry of a docstring's list of arguments."""
    names, text = "", ""
    for line in lines:
        if line and not line.startswith(" "):
            break
        start = re.match(r"    ([a-z_][\w, ]*): (.*)", line)
        if start:
            yield from [(names, text)] if names else []
            names, text = start[1], start[2]
        elif line.strip():
            text += f" {line.strip()}"
    yield from [(names, text)] if names else []


def kind_of(annotation: Any) -> str:
    """Say what a value must be, with its range.

    >>> from fedsim.ranges import Count, Share
    >>> kind_of(Count | None), kind_of(Share), kind_of(typing.Literal["even", "random"])
    ('a whole number of at least 1 or null', 'a number from 0 to 1', 'even or random')
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return f"{kind_of(inner[0])}{_range(inner[1:])}"
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(kind_of, inner)))
    if origin is list:
        return f"a list, each {kind_of(inner[0])}" if inner else "a list"
    if origin is dict:
        return "a block"
    plain_kinds: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        Any: "anything",
    }
    return plain_kinds.get(annotation, "a block")


def _range(metadata: tuple[Any, ...]) -> str:
    """Say what limits there are; the largest number of all is no limit of a parameter."""
    limits = _limits(metadata)
    low, high = limits.get("ge"), limits.get("le")
    if high is not None and high >= MOST_COUNT:  # 1e12 as well
        high = None
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    words = [
        f" of at least {low:g}" if low is not None else "",
        f" above {limits['gt']:g}" if "gt" in limits else "",
    ]
    words += [
        f" of at most {high:g}" if high is not None else "",
        f" below {limits['lt']:g}" if "lt" in limits else "",
    ]
    return " and".join(filter(None, words))


def _limits(metadata: tuple[Any, ...]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for one in metadata:
        for limit in getattr(one, "metadata", [one]):
            limits |= {key: getattr(limit, key) for key in ("ge", "gt", "le", "lt") if hasattr(limit, key)}
    return limits


def _unit(name: str) -> str:
    return next((f", in {unit}" for end, unit in UNITS.items() if name.endswith(end)), "")


def example(kind: str, name: str) -> str:
    """Return a piece of an experiment file with the part and what it requires, as YAML.

    >>> print(example("partitions", "dirichlet"), end="")
    data:
      partition:
        name: dirichlet
        alpha: 0.5
    """
    known = parts.hints(made(kind, name))
    wanted = [one.name for one in parameters(kind, name) if one.default == REQUIRED]
    block: Any = {"name": name, **({"clients": 10} if kind == "datasets" else {})}
    block |= {key: _value(key, known.get(key, Any)) for key in wanted}
    block = name if kind == "engines" and not wanted else block
    for step in reversed(BLOCKS[kind]):
        block = [block] if step is None else {step: block}
    return write(block)


def _value(key: str, annotation: Any) -> Any:
    """Return something that a required parameter can be."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return inner[0]
    if typing.get_origin(annotation) is typing.Annotated:
        value = _value(key, inner[0])
        return max(value, type(value)(_limits(inner[1:]).get("ge", 0))) if inner[0] in (int, float) else value
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _value(key, inner[0])
    if typing.get_origin(annotation) is list:
        return [_value(key, inner[0] if inner else Any)]
    return {int: 2, float: 0.5, bool: True, dict: {}}.get(
        annotation, "FILE" if key == "path" else key.upper()
    )
