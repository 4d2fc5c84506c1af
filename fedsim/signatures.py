"""What the signature of a part says: its parameters, their annotations, and whether it takes others."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from fedsim.beside import own_name
from fedsim.errors import BadValue

Part = Callable[..., Any]

NAMELESS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)
"""Kinds of parameters that nobody can give by name."""


def parameters(part: Part) -> dict[str, inspect.Parameter]:
    """Return the parameters of a part by name (for a class, those of its constructor).

    Where a class's constructor has ``**kwargs``, they are those of the constructors above it, as far as each
    passes its own on; ``**kwargs`` itself is among the parameters only where nobody says what it may hold.

    Raises:
        BadValue: if the part has no signature; the key is ``name``.

    >>> class Base:
    ...     def __init__(self, *, p: float = 0.5) -> None: ...
    >>> class Mine(Base):
    ...     def __init__(self, q: int, **rest: float) -> None: ...
    >>> list(parameters(Mine))
    ['q', 'p']
    """
    own = signature(part)
    above = _inherited(part) if has_kwargs(own) else []
    if not above:
        return own
    found = own.copy()
    for constructor in above:
        for name, parameter in list(signature(constructor).items())[1:]:
            found.setdefault(name, parameter)
    return {name: found[name] for name in names_of(found)}


def signature(part: Part) -> dict[str, inspect.Parameter]:
    """Return the parameters of a part's own signature by name.

    Raises:
        BadValue: if it has none.
    """
    try:
        return dict(inspect.signature(part).parameters)
    except (ValueError, TypeError) as error:
        raise BadValue("name", path_of(part), "has no signature that could be checked") from error


def has_kwargs(found: Mapping[str, inspect.Parameter]) -> bool:
    """Tell whether there is a ``**kwargs`` among parameters."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in found.values())


def is_open(part: Part) -> bool:
    """Tell whether a part takes parameters that its signature does not name.

    >>> is_open(print), is_open(lambda **more: more)
    (False, True)
    """
    return has_kwargs(parameters(part))


def path_of(part: Part) -> str:
    """Return where a part is found, as ``module:name``."""
    module = own_name(getattr(part, "__module__", None) or "")
    return f"{module}:{getattr(part, '__qualname__', part)}".removeprefix(":")


def _inherited(part: Part) -> list[Part]:
    """Return the constructors that a class's ``**kwargs`` go through, none if it is unknown where they end."""
    found: list[Part] = []
    for cls in inspect.getmro(part)[:-1] if inspect.isclass(part) else ():
        if "__init__" in vars(cls):
            found.append(vars(cls)["__init__"])
            if not has_kwargs(signature(found[-1])):
                return found
    return []


def hints(part: Part) -> dict[str, Any]:
    """Return the annotations of a part's parameters by name, for a class those of all constructors above it.

    >>> def ring(n: int) -> None: ...
    >>> hints(ring)["n"]
    <class 'int'>
    """
    makers = [cls for cls in inspect.getmro(part) if "__init__" in vars(cls)] if inspect.isclass(part) else []
    if makers and "__dataclass_params__" in vars(makers[0]):
        annotated: list[Any] = makers[:1]  # its fields may come from several modules
    elif inspect.isclass(part):
        annotated = _inherited(part) or [part.__init__]
    else:
        annotated = [part if inspect.isroutine(part) else type(part).__call__]
    try:
        found = [typing.get_type_hints(one, include_extras=True) for one in annotated]
    except NameError as error:
        hint = "import it where the program runs, too"
        raise BadValue("name", path_of(part), f"has an unknown annotation ({error})", hint) from error
    return {key: hint for hints in reversed(found) for key, hint in hints.items()}


def names_of(known: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the names of the parameters that can be given by name."""
    return [key for key, parameter in known.items() if parameter.kind not in NAMELESS]
