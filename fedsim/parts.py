"""Parts are found by name: strategies, selectors, transforms, topologies, datasets, models and so on (:data:`KINDS`).

A part is a callable. Its name is an entry point (``fedsim.topologies`` and so on, which any installed package can
add to) or a dotted path such as ``my_lab.graphs:wheel``. Its parameters are its signature: the user's values are
checked against the annotations, and what only the engine knows (the number of nodes, the seed …) is supplied.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from fedsim.beside import Place, place
from fedsim.errors import MISSING, BadValue, did_you_mean
from fedsim.places import of_error
from fedsim.ranges import Count, NonNegative, Positive, Share, within
from fedsim.rules import REQUIRED, UNKNOWN, either
from fedsim.signatures import (
    NAMELESS,
    Part,
    has_kwargs,
    hints,
    is_open,
    names_of,
    parameters,
    path_of,
    signature,
)

__all__ = [
    "KINDS",
    "Count",
    "NotNegative",
    "Part",
    "Positive",
    "Share",
    "bind",
    "call",
    "check",
    "find",
    "names",
]
__all__ += ["NAMELESS", "hints", "is_open", "parameters", "summary"]

log = logging.getLogger("fedsim")

NotNegative = NonNegative

KINDS = (
    "strategies",
    "selectors",
    "transforms",
    "topologies",
    "datasets",
    "models",
    "partitions",
    "churn",
    "faults",
    "data_faults",
    "engines",
    "losses",
    "metrics",
    "augmentations",
    "optimisers",
    "schedules",
)


NEEDS = {
    "flwr": "flwr>=1.33",
    "ray": "ray>=2.40",
    "torchvision": "torchvision>=0.21",
    "pandas": "pandas>=2.0",
    "pyarrow": "pyarrow>=15",
    "h5py": "h5py>=3.10",
    "datasets": "datasets>=2.19",
    "flwr_datasets": "flwr-datasets>=0.5",
    "topohub": "topohub>=1.5",
    "timm": "timm>=1.0",
    "transformers": "transformers>=4.50",
    "peft": "peft>=0.15",
    "torchmetrics": "torchmetrics>=1.4",
}
"""What to install, by the module that is missing: as the extras say, and by the libraries' own names."""


def needed(module: str, options: str = "") -> str:
    """Return how to install a library that is missing, or nothing if it is none of those known here.

    >>> needed("h5py"), needed("numbers")
    ("pip install 'h5py>=3.10'", '')
    """
    top = module.partition(".")[0]
    return f"pip install {options}'{NEEDS[top]}'" if top in NEEDS else ""


@functools.cache
def _installed() -> Any:
    """Return what all distributions offer; read once, as there may be hundreds of them."""
    return entry_points()


@functools.cache
def _entries(kind: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in _installed().select(group=f"fedsim.{kind}")}


def names(kind: str) -> list[str]:
    """Return the names of all installed parts of a kind, sorted.

    >>> "ring" in names("topologies")
    True
    """
    return sorted(_entries(kind))


def find(kind: str, name: str, beside: str | Path | None = None) -> Part:
    """Return the part with this name, or the one at this dotted path.

    Args:
        kind: one of :data:`KINDS`.
        name: an entry point's name, ``module:attribute`` or ``package.module.attribute``.
        beside: the folder of the experiment file. A dotted path's module is looked up among everything installed, then
            there, and then in the current folder.

    Raises:
        BadValue: if there is no such part; the key is ``name``.

    >>> find("topologies", "rign")
    Traceback (most recent call last):
    fedsim.errors.BadValue: name: rign: no such topology; did you mean ring?
    """
    entry = _entries(kind).get(name)
    if entry is not None:
        return _load(entry, name)
    if ":" in name or "." in name:
        return _dotted(name, place(beside))
    raise BadValue("name", name, f"no such {_one(kind)}", did_you_mean(name, names(kind)))


def _load(entry: EntryPoint, name: str) -> Part:
    try:
        return typing.cast(Part, entry.load())
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise BadValue("name", name, f"needs {missing}, which is not installed", needed(missing)) from error


def _one(kind: str) -> str:
    return {
        "strategies": "strategy",
        "topologies": "topology",
        "losses": "loss",
        "data_faults": "fault of data",
    }.get(kind, kind.removesuffix("s"))


def _dotted(path: str, where: Place) -> Part:
    module, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    top = module.partition(".")[0]
    try:
        module = _moved(module, where.load(top))
        part = functools.reduce(getattr, attribute.split("."), where.load(module))
    except (Exception, SystemExit) as error:  # the module is the user's, and can do anything
        hint = f"it was looked up in {' and '.join(where.folders)}; write package.module:attribute"
        hidden = where.hidden(top)
        hint = f"{top} is installed, which comes before {hidden}; rename that file" if hidden else hint
        gone = isinstance(error, ModuleNotFoundError) and error.name == top
        hint = needed(top) or hint if gone else hint
        raise BadValue("name", path, f"cannot be imported ({where.explain(error)})", hint) from error
    if where.hidden(top):
        log.warning("%s: the installed %s is used, and not %s", path, top, where.hidden(top))
    if not callable(part):
        raise BadValue("name", path, "is not callable")
    return typing.cast(Part, part)


def _moved(module: str, package: Any) -> str:
    """Return the present name of a module whose package says that it has moved."""
    new: str = getattr(package, "MOVED", {}).get(module, module)
    if new != module:
        log.warning("%s is now %s; the former name goes with the next version", module, new)
    return new


def adapters() -> list[Any]:
    """Return what makes strategies of other frameworks runnable here, from the entry points ``fedsim.adapters``."""
    return [entry.load() for entry in _entries("adapters").values()]


def adapted(part: Part) -> Part:
    """Return a strategy as an experiment file can hold it, whatever framework it is written for."""
    for adapter in adapters():
        part = adapter.maker(part)
    return part


def summary(kind: str, name: str) -> str:
    """Return the first line of a part's documentation."""
    return (inspect.getdoc(find(kind, name)) or "").partition("\n")[0]


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
    return bind(part, given, supplied)(**supplied)


def bind(part: Part, given: Mapping[str, Any], supplied: Iterable[str]) -> Callable[..., Any]:
    """Check the user's parameters once, for many calls with different supplied values.

    Args:
        part: the callable.
        given: the user's values by name.
        supplied: the names of what the engine will supply.

    Returns:
        A function of the supplied values by name; those that the part does not name are left out.

    Raises:
        BadValue: as :func:`call`.

    >>> def wheel(n: int, *, spokes: int = 3) -> tuple[int, int]:
    ...     return n, spokes
    >>> make = bind(wheel, {"spokes": 5}, ["n", "seed"])
    >>> make(n=8, seed=0), make(n=9, seed=0)
    ((8, 5), (9, 5))
    """
    names = dict.fromkeys(supplied)
    arguments, known = check(part, given, names), parameters(part)
    wanted = [key for key in names if key in known and key not in given]

    def bound(**values: Any) -> Any:
        try:
            return part(**{key: values[key] for key in wanted}, **arguments)
        except TypeError as error:
            mistake = _refused(str(error), given, known, [key for key in names_of(known) if key not in names])
            if mistake is None:
                raise
            raise mistake from error
        except OSError as error:
            raise BadValue(
                "name", path_of(part), f"cannot read or write a file at {of_error(error)} ({error})"
            ) from error

    return bound


def _refused(
    text: str, given: Mapping[str, Any], known: Mapping[str, inspect.Parameter], choices: list[str]
) -> BadValue | None:
    """Tell a key that ``**kwargs`` could not pass on, or did not, from a mistake of the part itself."""
    unknown = re.search("got an unexpected keyword argument '(.*?)'", text)
    if unknown and unknown[1] in given and unknown[1] not in known:
        return BadValue(unknown[1], MISSING, UNKNOWN, did_you_mean(unknown[1], choices))
    missing = re.search("missing [0-9]+ required .*?: '(.*?)'", text)
    if missing and missing[1] in choices and missing[1] not in given:
        key = missing[1]
        return BadValue(key, MISSING, REQUIRED) if known[key].default is inspect.Parameter.empty else None
    return None


def check(part: Part, given: Mapping[str, Any], supplied: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check the user's parameters against a part's signature and return them, converted.

    Raises:
        BadValue: for the first of the user's parameters that is unknown or of the wrong type, or for one that
            is missing.
    """
    supplied = supplied or {}
    known, own = parameters(part), signature(part)
    names = names_of(known)
    choices = [key for key in names if key not in supplied]
    checked, mistakes = _validate(part, {key: value for key, value in given.items() if key in names})
    for key in given:
        if key not in names and not has_kwargs(known):
            raise BadValue(key, MISSING, UNKNOWN, did_you_mean(key, choices))
        if key in mistakes:
            raise mistakes[key]
        limit = within(given[key], key)
        if limit:
            raise BadValue(key, given[key], limit)
    for key, parameter in own.items():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise BadValue("name", path_of(part), f"has a parameter that cannot be given by name ({key})")
        if key in choices and parameter.default is parameter.empty and key not in given:
            raise BadValue(key, MISSING, REQUIRED)
    return {**given, **checked}


def _validate(part: Part, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, BadValue]]:
    """Return the values that fit their annotations, converted, and what is wrong with the others, by key."""
    known = hints(part)
    # Pydantic's own names (copy, model_config, _x) may be parameters, too: so a field only has an alias.
    fields: dict[str, Any] = {
        f"field{n}": (known.get(key, Any), Field(alias=key)) for n, key in enumerate(given)
    }
    config = ConfigDict(strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    model = create_model("Parameters", __config__=config, **fields)
    try:
        checked = model.model_validate(dict(given))
    except ValidationError as error:
        by_key: dict[str, list[Any]] = {}
        for one in error.errors():
            by_key.setdefault(str(one["loc"][0]), []).append(one)
        return {}, {key: _mistake(given, errors) for key, errors in by_key.items()}
    return {key: getattr(checked, f"field{n}") for n, key in enumerate(given)}, {}


def _mistake(given: Mapping[str, Any], errors: list[Any]) -> BadValue:
    """Turn what was refused inside of one parameter into one mistake, the one that is furthest inside."""
    by_place: dict[str, list[Any]] = {}
    for error in errors:
        by_place.setdefault(_place(given, error["loc"]), []).append(error)
    place = max(by_place, key=lambda place: place.count("."))
    first = by_place[place][0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadValue):
        return BadValue(".".join(filter(None, (place, cause.key))), cause.value, cause.rule, cause.hint)
    return BadValue(place, first["input"], *either(by_place[place]))


def _place(value: Any, loc: Iterable[str | int]) -> str:
    """Join those steps that lead into the value; the others name members of unions."""
    path: list[str] = []
    for step in loc:
        try:
            value = value[step]
        except (LookupError, TypeError):
            continue
        path.append(str(step))
    return ".".join(path)
