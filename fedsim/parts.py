"""Parts are found by name: strategies, topologies, datasets, models, partitions, churn and faults.

A part is a callable. Its name is an entry point (``fedsim.topologies`` and so on, which any installed package can
add to) or a dotted path such as ``my_lab.graphs:wheel``. Its parameters are its signature: the user's values are
checked against the annotations, and what only the engine knows (the number of nodes, the seed …) is supplied.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from fedsim.errors import MISSING, BadValue, did_you_mean

Part = Callable[..., Any]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

KINDS = ("strategies", "topologies", "datasets", "models", "partitions", "churn", "faults")


@functools.cache
def _entries(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"fedsim.{kind}")}


def names(kind: str) -> list[str]:
    """Return the names of all installed parts of a kind, sorted.

    >>> "ring" in names("topologies")
    True
    """
    return sorted(_entries(kind))


def find(kind: str, name: str) -> Part:
    """Return the part with this name, or the one at this dotted path.

    Args:
        kind: one of :data:`KINDS`.
        name: an entry point's name, ``module:attribute`` or ``package.module.attribute``.

    Raises:
        BadValue: if there is no such part; the key is ``name``.

    >>> find("topologies", "rign")
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: rign: no such topology; did you mean ring?
    """
    entry = _entries(kind).get(name)
    if entry is not None:
        return typing.cast(Part, entry.load())
    if ":" in name or "." in name:
        return _dotted(name)
    raise BadValue("name", name, f"no such {_one(kind)}", did_you_mean(name, names(kind)))


def _one(kind: str) -> str:
    return {"strategies": "strategy", "topologies": "topology"}.get(kind, kind.removesuffix("s"))


def _dotted(path: str) -> Part:
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        part = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise BadValue(
            "name", path, f"cannot be imported ({error})", "write package.module:attribute"
        ) from error
    if not callable(part):
        raise BadValue("name", path, "is not callable")
    return typing.cast(Part, part)


def summary(kind: str, name: str) -> str:
    """Return the first line of a part's documentation."""
    return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]


def parameters(part: Part) -> dict[str, inspect.Parameter]:
    """Return the parameters of a part by name (for a class, those of its constructor)."""
    return dict(inspect.signature(part).parameters)


def call(part: Part, given: Mapping[str, Any], supplied: Mapping[str, Any] | None = None) -> Any:
    """Call a part with the user's parameters and with what the engine supplies.

    Args:
        part: the callable.
        given: the user's values by name; every one must be a parameter of the part, of the annotated type.
        supplied: values the engine knows; those that the part does not name are left out.

    Returns:
        Whatever the part returns.

    Raises:
        BadValue: for an unknown, missing, ill-typed or refused parameter.

    >>> def wheel(n: int, *, spokes: int = 3) -> tuple[int, int]:
    ...     return n, spokes
    >>> call(wheel, {"spokes": 5}, {"n": 8, "seed": 0})
    (8, 5)
    >>> call(wheel, {"spoke": 5}, {"n": 8})
    Traceback (most recent call last):
    fedsim.errors.BadValue: spoke: unknown key; did you mean spokes?
    """
    supplied = supplied or {}
    arguments = check(part, given, supplied)
    known = parameters(part)
    extra = {key: value for key, value in supplied.items() if key in known and key not in given}
    return part(**extra, **arguments)


def check(part: Part, given: Mapping[str, Any], supplied: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check the user's parameters against a part's signature and return them, converted.

    Raises:
        BadValue: for the first parameter that is unknown, missing or of the wrong type.
    """
    supplied = supplied or {}
    known = parameters(part)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
    own = {k: p for k, p in known.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    choices = [k for k in own if k not in supplied]
    for key in given:
        if key not in own and not open_ended:
            raise BadValue(key, MISSING, "unknown key", did_you_mean(key, choices))
    for key, parameter in own.items():
        if parameter.default is parameter.empty and key not in given and key not in supplied:
            raise BadValue(key, MISSING, "is required")
    checked = _validate(part, {k: v for k, v in given.items() if k in own})
    return {**{k: v for k, v in given.items() if k not in own}, **checked}


def _validate(part: Part, given: Mapping[str, Any]) -> dict[str, Any]:
    target = part.__init__ if inspect.isclass(part) else part
    hints = typing.get_type_hints(target, include_extras=True)
    fields: dict[str, Any] = {key: (hints.get(key, Any), ...) for key in given}
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    model = create_model("Parameters", __config__=config, **fields)
    try:
        checked = model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"] if step in given or isinstance(step, int))
        raise BadValue(key, first["input"], rule(first)) from None
    return {key: getattr(checked, key) for key in given}


def rule(error: Mapping[str, Any]) -> str:
    """Turn one of pydantic's errors into a short rule without a capital or a full stop."""
    message = str(error["msg"]).removeprefix("Input ").removeprefix("Value error, ")
    return message[0].lower() + message[1:]
