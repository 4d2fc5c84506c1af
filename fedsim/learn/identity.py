"""What something is, as 32 bytes that follow from its content: equal here, tomorrow, and on another machine.

Numbers, texts, tensors and containers of them are named by what is in them; an object by its class and its attributes;
a class or a function by its module and, where that is neither ours nor a library's, by the module's source. Whoever
wants to be named by less than all of its attributes has a method ``named_by`` that returns what counts.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import sys
import types
import weakref
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from fedsim.beside import own_name
from fedsim.errors import FedsimError

FORMAT = 2
"""Raised whenever what fedsim computes, or how it names that, changes: values of other formats are not taken over."""

OURS = ("fedsim", "strategies", "topologies")
TRUSTED = ("torch", "numpy", "pydantic")
"""Libraries whose parts are known by their names; what they compute depends on versions that a store looks after."""

CHANGES = (list, dict, set, bytearray, np.ndarray, Tensor)
"""What a closure must not hold: it may be another one when the function is called."""

Above = tuple[int, ...]
Result = TypeVar("Result")


class Unnamed(FedsimError):
    """Something has no name that would be the same tomorrow.

    Args:
        part: what it is.
        why: why it has none.
    """

    def __init__(self, part: str, why: str) -> None:
        super().__init__(part, why)
        self.part, self.why = part, why

    def __str__(self) -> str:
        return f"{self.part} {self.why}"


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
    return next((encode for kinds, encode in KINDS if issubclass(kind, kinds)), _object)


def _framed(tag: bytes, *pieces: bytes) -> bytes:
    """Put pieces together so that they can be told apart."""
    whole = [tag, b"%d;" % len(pieces)]
    for piece in pieces:
        whole += b"%d;" % len(piece), piece
    return b"".join(whole)


def _number(number: int) -> bytes:
    return b"%d;" % number


def _text(text: str) -> bytes:
    return b"s" + _number(len(data := text.encode("utf-8", "surrogatepass"))) + data


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
    if not hasattr(value, "__dict__") and not slots:
        raise Unnamed(f"a {type(value).__name__}", "cannot be looked into")
    held = {
        name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)
    }
    held |= getattr(value, "__dict__", {})
    return {name: one for name, one in held.items() if name not in derived}


@_once
def _slots(kind: type) -> list[str]:
    """Return the names of a class's slots."""
    return [name for one in kind.__mro__ for name in getattr(one, "__slots__", ())]


@_once
def _derived(kind: type) -> frozenset[str]:
    """Return which attributes of a class follow from others, and may be there or not."""
    names = {name for one in kind.__mro__ for name in vars(one)}
    return frozenset(
        name for name in names if isinstance(getattr(kind, name, None), functools.cached_property)
    )


def _block(value: BaseModel, above: Above) -> bytes:
    """Name a block of an experiment; those are frozen, and named again and again."""
    known = _blocks.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    named = _framed(b"V", _class_once(type(value)), _mapping(dict(value), above))
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


@functools.cache
def source(module: str) -> bytes:
    """Return the SHA-256 of a module's source and of those that it uses; nothing for ours, Python's and trusted ones.

    Raises:
        Unnamed: if it has no file, as in a notebook.

    >>> import yaml
    >>> source("fedsim.rng"), source("json"), len(source("yaml"))
    (b'', b'', 32)
    """
    top = module.partition(".")[0]
    if top in OURS or top in TRUSTED or (top in sys.stdlib_module_names and top != "__main__"):
        return b""
    seen: dict[str, bytes] = {}
    _read(module, seen)
    return hashlib.sha256(b"".join(seen[name] for name in sorted(seen))).digest()


def _read(module: str, seen: dict[str, bytes]) -> None:
    file = getattr(sys.modules.get(module), "__file__", None)  # what is named here has been imported
    if file is None or not Path(file).is_file():
        raise Unnamed(own_name(module), "has no file whose text could be compared")
    seen[module] = own_name(module).encode() + b"\0" + hashlib.sha256(Path(file).read_bytes()).digest()
    if _is_installed(file):
        return
    for value in vars(sys.modules[module]).values():
        used = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(used, str) and used not in seen and _is_users(used):
            _read(used, seen)


def _is_users(module: str) -> bool:
    """Tell whether a module is neither ours, nor Python's, nor installed."""
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    ours = top in OURS or top in TRUSTED or top in sys.stdlib_module_names
    return not ours and file is not None and not _is_installed(file)


def _is_installed(file: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(file).parts)


KINDS: list[tuple[Any, Callable[[Any, Above], bytes]]] = [
    (Enum, lambda value, _: _framed(b"E", _class_once(type(value)), value.name.encode())),
    (Tensor, _tensor),
    (np.ndarray | np.generic, _array),
    (nn.Module, _module),
    (BaseModel, _block),
    (tuple | list, _sequence),
    (Mapping, _mapping),
    (set | frozenset, _set),
    (type, _class),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (types.BuiltinFunctionType, lambda value, _: _framed(b"F", *_home(value))),
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
