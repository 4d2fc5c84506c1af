"""The reference of the experiment file and of all installed parts, written from the code itself."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fedsim import parts
from fedsim.spec.app import App
from fedsim.spec.experiment import Experiment

HEAD = """# Reference

Written by `make docs` from the code. A *part* is written as its name or as a block with its name and parameters.
A *draw* is a number, or a distribution to draw one from: `{distribution: uniform, low, high}`,
`{distribution: lognormal, median, sigma}` or `{distribution: exponential, mean}`.

Every number has a range. Counts are at most 2147483647; durations (keys that end in `_s`) are at most 1e11 s, and at
least 1e-06 s unless they may be 0; all other numbers are at most 1e12. What needs more memory than the machine has is
refused with an estimate.
"""

APP = """## What a simulation is told of a Flower app

The block `app` of a world for `fedsim flower run`, or the table `[tool.fedsim]` of the app's pyproject.toml.
"""

SUPPLIED = {
    "strategies": {"local", "seed", "timeout_s", "select"},
    "selectors": {"seed", "timeout_s"},
    "transforms": {"seed"},
    "topologies": {"n", "seed", "has_server", "servers"},
    "datasets": {"clients", "seed", "root", "beside"},
    "models": {"shape", "classes", "target", "counts"},
    "partitions": {"labels", "clients", "rng", "groups", "difficulty", "known"},
    "churn": {"node", "rng", "n"},
    "faults": {"world", "rng"},
    "engines": {"task", "data", "slots"},
    "augmentations": {"x", "draws"},
    "schedules": {"round"},
}
"""Parameters of each kind of part that the engine fills in, or that have a key of their own in the experiment file."""
FIRST = {"losses": 2, "metrics": 2}
"""How many parameters of a kind of part are given by their place, whatever they are called."""


def markdown() -> str:
    """Return the reference as Markdown."""
    lines = [HEAD, "## The experiment file", "", "| key | default | what |", "| --- | --- | --- |"]
    lines += [f"| `{key}` | {default} | {what} |" for key, default, what in keys(Experiment)]
    lines += ["", APP, "| key | default | what |", "| --- | --- | --- |"]
    lines += [f"| `app.{key}` | {default} | {what} |" for key, default, what in keys(App)]
    for kind in parts.KINDS:
        lines += ["", f"## {kind.capitalize()}", "", "| name | parameters | what |", "| --- | --- | --- |"]
        lines += [_row(kind, name) for name in parts.names(kind)]
    return "\n".join(lines) + "\n"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, default and description of every key of a block and of the blocks in it."""
    for name, field in model.model_fields.items():
        inner = _block(field.annotation)
        if inner is None:
            yield prefix + name, _default(field), field.description or ""
        elif field.default is None:
            yield (
                f"{prefix}{name}",
                "`null`",
                f"{field.description}: a block with {', '.join(inner.model_fields)}",
            )
        else:
            yield from keys(inner, f"{prefix}{name}.")


def _block(annotation: Any) -> type[BaseModel] | None:
    """Return the block that a key holds, unless it is a part or a draw, which have a short form."""
    options = [one for one in typing.get_args(annotation) if one is not type(None)] or [annotation]
    plain = len(options) == 1 and inspect.isclass(options[0]) and issubclass(options[0], BaseModel)
    return options[0] if plain and options[0].__name__ not in ("Part", "Constant", "Tracker") else None


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, BaseModel):
        default = default.model_dump()
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _row(kind: str, name: str) -> str:
    own = own_parameters(kind, name)
    shown = [f"`{p.name}`" if p.default is p.empty else f"`{p.name}={plain(p.default)}`" for p in own]
    return f"| `{name}` | {', '.join(shown)} | {parts.summary(kind, name)} |"


def made(kind: str, name: str) -> parts.Part:
    """Return a part as an experiment file can hold it, which says what its parameters are."""
    part = parts.find(kind, name)
    return parts.adapted(part) if kind == "strategies" else part


def own_parameters(kind: str, name: str) -> list[inspect.Parameter]:
    """Return the parameters of a part that an experiment file can give.

    >>> [one.name for one in own_parameters("metrics", "top_k")]
    ['k', 'ignore_index']
    """
    known = [one for one in parts.parameters(made(kind, name)).values() if one.kind not in parts.NAMELESS]
    return [one for one in known[FIRST.get(kind, 0) :] if one.name not in SUPPLIED.get(kind, ())]


def plain(value: Any) -> str:
    """Return a default as it would be written in a file."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(markdown(), end="")  # noqa: T201
