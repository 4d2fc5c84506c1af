"""What something is, as 32 bytes that follow from its content: equal here, tomorrow, and on another machine.

Numbers, texts, tensors and containers of them are named by what is in them; an object by its class and its attributes;
a class or a function by its module and, where that is neither ours nor a library's, by the module's source. Whoever
wants to be named by less than all of its attributes has a method ``named_by`` that returns what counts.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import types
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from fedsim.beside import own_name
from fedsim.learn.source import Unnamed, source

__all__ = ["FORMAT", "Unnamed", "attributes", "identity", "source"]

FORMAT = 3
"""Raised whenever what fedsim computes, or how it names that, changes: values of other formats are not taken over."""

CHANGES = (list, dict, set, bytearray, np.ndarray, Tensor)
"""What a closure must not hold: it may be another one when the function is called."""

WORD = struct.calcsize("P")
"""The size of what refers to an object, in bytes."""

Above = tuple[int, ...]
Result = TypeVar("Result")


def identity(*parts: Any) -> bytes:
    """Return the SHA-256 of what some parts are.

    Raises:
        Unnamed: if one of them cannot be named.

    >>> identity({"a": 1, "b": 2.0}) == identity({"b": 2.0, "a": 1})
    True
    >>> identity(torch.zeros(2)) == identity(torch.zeros(2, dtype=torch.float64))
    False
    """
    return hashlib.sha256(_encode((FORMAT, *parts), ())).digest()


def _encode(value: Any, above: Above) -> bytes:
    """Return bytes that differ for different things; ``above`` are the ids of what holds this one."""
    simple = SIMPLE.get(type(value))
    if simple is not None:
        return simple(value)
    if id(value) in above:
        return b"^" + _number(len(above) - above.index(id(value)))
    return _encoder(type(value))(value, (*above, id(value)))


def _once(function: Callable[[type], Result]) -> Callable[[type], Result]:
    """Ask a function once for each class."""
    return functools.cache(function)


@_once
def _encoder(kind: type) -> Callable[[Any, Above], bytes]:
    """Return what encodes the objects of a class."""
    encode = next((encode for kinds, encode in KINDS if issubclass(kind, kinds)), _object)
    if encode in (_sequence, _mapping, _set) and source(kind.__module__):
        return _of_users(kind, encode)
    return encode


def _framed(tag: bytes, *pieces: bytes) -> bytes:
    """Put pieces together so that they can be told apart."""
    whole = [tag, b"%d;" % len(pieces)]
    for piece in pieces:
        whole += b"%d;" % len(piece), piece
    return b"".join(whole)


def _number(number: int) -> bytes:
    return b"%d;" % number


def _text(text: str) -> bytes:
    return b"s" + _number(len(data := str.encode(text, "utf-8", "surrogatepass"))) + data


SIMPLE: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"n",
    bool: lambda value: b"b1" if value else b"b0",
    int: lambda value: b"i" + _number(value),
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: _text,
    bytes: lambda value: b"y" + _number(len(value)) + value,
    type(Ellipsis): lambda _: b"e",
}


def _sequence(value: Any, above: Above) -> bytes:
    return _framed(b"(", *[_encode(one, above) for one in value])


def _mapping(value: Mapping[Any, Any], above: Above) -> bytes:
    return _framed(b"{", *sorted(_encode(key, above) + _encode(one, above) for key, one in value.items()))


def _set(value: Any, above: Above) -> bytes:
    return _framed(b"<", *sorted(_encode(one, above) for one in value))


def _of_users(kind: type, encode: Callable[[Any, Above], bytes]) -> Callable[[Any, Above], bytes]:
    """Return what encodes the objects of somebody's own kind of container: by their class and attributes, too."""

    def whole(value: Any, above: Above) -> bytes:
        held = _mapping(getattr(value, "__dict__", {}), above)
        return _framed(b"S", _class_once(kind), encode(value, above), held)

    return whole


def _special(value: Any, above: Above) -> bytes:
    """Name a number or a text whose class is none of Python's: by its class and attributes, too."""
    plain = next(kind for kind in type(value).__mro__ if kind in SIMPLE)
    held = _mapping(getattr(value, "__dict__", {}), above)
    return _framed(b"S", _class_once(type(value)), SIMPLE[plain](value), held)


def _tensor(value: Tensor, above: Above) -> bytes:
    if value.layout is not torch.strided:
        raise Unnamed("a tensor", f"has the layout {value.layout}")
    data: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    grad = b"g" if isinstance(value, nn.Parameter) and value.requires_grad else b""
    shape = _sequence(tuple(value.shape), above)
    return _framed(b"T", str(value.dtype).encode(), shape, grad, hashlib.sha256(data).digest())


def _array(value: Any, above: Above) -> bytes:
    whole = np.ascontiguousarray(value)
    if whole.dtype.hasobject:
        return _framed(b"O", _sequence(whole.shape, above), _sequence(whole.reshape(-1).tolist(), above))
    return _framed(
        b"A", whole.dtype.str.encode(), _sequence(np.shape(value), above), hashlib.sha256(whole.data).digest()
    )


def _module(value: nn.Module, above: Above) -> bytes:
    """Name a model by its classes and all that it holds, whatever mode it is in."""
    held = {
        name: one for name, one in vars(value).items() if name != "training" and not _is_unused(name, one)
    }
    return _framed(b"M", _class_once(type(value)), _mapping(held, above))


def _is_unused(name: str, value: Any) -> bool:
    """Tell whether an attribute is one of the many that every module has, and says nothing."""
    return name.startswith("_") and (value is None or value == {} or value == set())


@_once
def _class_once(kind: type) -> bytes:
    return _framed(b"C", *_home(kind))


def _class(value: type, _: Above) -> bytes:
    return _framed(b"C", *_home(value))


def _function(value: Any, above: Above) -> bytes:
    if "<lambda>" in value.__qualname__:
        raise Unnamed(f"a lambda in {own_name(value.__module__)}", "has no name")
    held = []
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        if isinstance(cell.cell_contents, CHANGES):
            raise Unnamed(
                f"{own_name(value.__module__)}.{value.__qualname__}", f"closes over {name}, which can change"
            )
        held.append(_encode(cell.cell_contents, above))
    defaults = _encode((value.__defaults__, value.__kwdefaults__), above)
    return _framed(b"F", *_home(value), defaults, *held)


def _method(value: types.MethodType, above: Above) -> bytes:
    return _framed(b"B", _encode(value.__func__, above), _encode(value.__self__, above))


def _builtin(value: Any, above: Above) -> bytes:
    """Name a function of Python's or a library's own code, and the object that it belongs to."""
    of = value.__self__
    if of is None or isinstance(of, type | types.ModuleType):
        return _framed(b"F", *_home(value))
    return _framed(b"B", _encode(of, above), *_home(value))


def _partial(value: Any, above: Above) -> bytes:
    return _framed(
        b"P", _encode(value.func, above), _encode(value.args, above), _encode(value.keywords, above)
    )


def _object(value: Any, above: Above) -> bytes:
    """Name an object by its class and its attributes, or by what it says that counts."""
    kind = _class_once(type(value))
    if hasattr(type(value), "named_by"):
        return _framed(b"N", kind, _encode(value.named_by(), above))
    return _framed(b"V", kind, _mapping(attributes(value), above))


def attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that count, by name.

    Raises:
        Unnamed: if it has none that can be seen.
    """
    slots, derived = _slots(type(value)), _derived(type(value))
    if _hides(type(value)) or (not hasattr(value, "__dict__") and not slots):
        raise Unnamed(f"a {type(value).__name__}", "cannot be looked into")
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    held |= getattr(value, "__dict__", {})
    return {name: one for name, one in held.items() if name not in derived}


@_once
def _slots(kind: type) -> list[str]:
    """Return the names of a class's slots."""
    found = []
    for one in kind.__mro__:
        slots = vars(one).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{one.__name__.lstrip('_')}{name}" if private else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


@_once
def _hides(kind: type) -> bool:
    """Tell whether objects of a class hold more than Python sees, such as the state of ``random.Random``."""
    seen = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ > 0 or kind.__basicsize__ > object.__basicsize__ + WORD * seen


@_once
def _derived(kind: type) -> frozenset[str]:
    """Return which attributes of a class follow from others, and may be there or not."""
    made = functools.cached_property
    names = {name for one in kind.__mro__ for name, held in vars(one).items() if isinstance(held, made)}
    return frozenset(name for name in names if isinstance(getattr(kind, name), made))


def _block(value: BaseModel, above: Above) -> bytes:
    """Name a block of an experiment; those are frozen, and named again and again."""
    known = _blocks.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    derived = _derived(type(value))
    held = {name: one for name, one in value if name not in derived}
    named = _framed(b"V", _class_once(type(value)), _mapping(held, above))
    if value.model_config.get("frozen"):
        gone = functools.partial(_blocks.pop, id(value))
        _blocks[id(value)] = weakref.ref(value, lambda _: gone(None)), named
    return named


_blocks: dict[int, tuple[weakref.ref[BaseModel], bytes]] = {}


def _home(value: Any) -> tuple[bytes, bytes, bytes]:
    """Return module, name and source of a class or a function."""
    module = getattr(value, "__module__", None) or "builtins"
    return own_name(module).encode(), value.__qualname__.encode(), source(module)


def _refused(why: str) -> Callable[[Any, Above], bytes]:
    def refuse(value: Any, _: Above) -> bytes:
        raise Unnamed(f"a {type(value).__name__}", why)

    return refuse


def _plain(tag: bytes) -> Callable[[Any, Above], bytes]:
    return lambda value, _: _framed(tag, str(value).encode())


KINDS: list[tuple[Any, Callable[[Any, Above], bytes]]] = [
    (Enum, lambda value, _: _framed(b"E", _class_once(type(value)), value.name.encode())),
    (Tensor, _tensor),
    (np.ndarray | np.generic, _array),
    (int | float | complex | str | bytes, _special),
    (nn.Module, _module),
    (BaseModel, _block),
    (tuple | list, _sequence),
    (Mapping, _mapping),
    (set | frozenset, _set),
    (type, _class),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (types.BuiltinFunctionType, _builtin),
    (functools.partial, _partial),
    (functools._lru_cache_wrapper, lambda value, above: _encode(value.__wrapped__, above)),
    (
        types.ModuleType,
        lambda value, _: _framed(b"m", own_name(value.__name__).encode(), source(value.__name__)),
    ),
    (PurePath, _plain(b"p")),
    (torch.dtype, _plain(b"d")),
    (torch.device, lambda value, _: _framed(b"v", value.type.encode())),
    (np.dtype, _plain(b"D")),
    (torch.Generator | np.random.Generator | np.random.RandomState, _refused("changes with every draw")),
]
