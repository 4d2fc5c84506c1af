"""What the text of a module is, and that of all the user's modules that it uses."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from pathlib import Path

from fedsim.beside import DIGEST, PREFIX, own_name
from fedsim.errors import FedsimError

OURS = ("fedsim", "strategies", "topologies")
TRUSTED = ("torch", "numpy", "pydantic")
"""Libraries whose parts are known by their names; what they compute depends on versions that a store looks after."""


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


@functools.cache
def source(module: str) -> bytes:
    """Return the SHA-256 of a module's source and of those that it uses; nothing for ours, Python's and trusted ones.

    Raises:
        Unnamed: if it has no file, as in a notebook.

    >>> import yaml
    >>> source("fedsim.rng"), source("json"), len(source("yaml"))
    (b'', b'', 32)
    """
    if _is_known(module):
        return b""
    file = _file(module)
    if file is None or not file.is_file():
        raise Unnamed(own_name(module), "has no file whose text could be compared")
    seen: dict[str, bytes] = {}
    _read(module, file, seen)
    return hashlib.sha256(b"".join(seen[name] for name in sorted(seen))).digest()


def _read(module: str, file: Path, seen: dict[str, bytes]) -> None:
    text = file.read_bytes()
    # What is imported from beside an experiment was read once, and its file may be another one by now.
    digest = getattr(sys.modules.get(module), DIGEST, None) or hashlib.sha256(text).hexdigest()
    seen[module] = f"{own_name(module)}\0{digest}".encode()
    if _is_installed(file):
        return
    for used in _used(module, text):
        there = None if used in seen or _is_known(used) else _file(used)
        if there is not None and there.is_file() and not _is_installed(there):
            _read(used, there, seen)


def _used(module: str, text: bytes) -> Iterator[str]:
    """Yield the modules that one may use: by its import statements, wherever they stand, and by what it holds."""
    place = module.partition(".")[0]
    for name in _imported(module, text):
        if place.startswith(PREFIX) and _spec(f"{place}.{name}") is not None:
            yield f"{place}.{name}"
        else:
            yield name
    for value in vars(sys.modules.get(module, types)).values():
        used = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(used, str):
            yield used


def _imported(module: str, text: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # no text, but a library that was compiled
        return
    spec = _spec(module)
    package = "" if spec is None else spec.parent or ""
    for node in ast.walk(tree):
        names = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            above = node.module or ""
            if node.level and package:
                above = resolve_name("." * node.level + above, package)
            names = [above, *(f"{above}.{name}" for name in names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: count + 1]) for count in range(len(parts)))


def _spec(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing anything."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__spec__", None)
    above = module.rpartition(".")[0]
    if not above:
        return PathFinder.find_spec(module) if module else None
    if above in sys.modules:
        folders = getattr(sys.modules[above], "__path__", None)
    else:
        found = _spec(above)
        folders = None if found is None else found.submodule_search_locations
    return PathFinder.find_spec(module, list(folders)) if folders is not None else None


def _file(module: str) -> Path | None:
    if module in sys.modules:
        file = getattr(sys.modules[module], "__file__", None)
    else:
        spec = _spec(module)
        file = spec.origin if spec is not None and spec.has_location else None
    return None if file is None else Path(file)


def _is_known(module: str) -> bool:
    """Tell whether a module is ours, Python's, or one of a library that is known by its name."""
    top = module.partition(".")[0]
    return top in OURS or top in TRUSTED or (top in sys.stdlib_module_names and top != "__main__")


def _is_installed(file: Path) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in file.parts)
