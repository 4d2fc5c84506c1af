"""Classes and functions in an experiment that is written in Python: they become the dotted paths of a file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from fedsim.errors import ConfigError, Problem

SCRIPT = "__main__"


def is_object(value: Any) -> bool:
    """Tell whether a value is a class or a function, which a file would name."""
    return isinstance(value, type | FunctionType)


def path_of(value: Any) -> str:
    """Return the dotted path of a class or function.

    Raises:
        ConfigError: for one that nobody could find by its path.

    >>> from collections import OrderedDict
    >>> path_of(OrderedDict)
    'collections:OrderedDict'
    >>> path_of(lambda: 0)
    Traceback (most recent call last):
    fedsim.errors.ConfigError: experiment: <lambda>: cannot be found by its name; define it at the top of a module
    """
    name = value.__qualname__
    if "<" in name:
        rule, hint = "cannot be found by its name", "define it at the top of a module"
        raise ConfigError([Problem("experiment", name.rpartition(".")[2], rule, hint)])
    return f"{value.__module__}:{name}"


def sources(dumped: Any) -> str:
    """Return the source of what an experiment takes from the running script or notebook, each once.

    Args:
        dumped: the experiment as plain values.
    """
    script, found = sys.modules[SCRIPT], dict[str, str]()
    for path in _strings(dumped):
        module, _, name = path.partition(":")
        value = getattr(script, name, None) if module == SCRIPT else None
        if value is not None and is_object(value):
            try:
                found[name] = inspect.getsource(value)
            except (OSError, TypeError):  # typed into a prompt that keeps nothing
                found[name] = f"# the source of {name} is not known\n"
    return "\n\n".join(found.values())


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
