"""Modules that lie beside an experiment file or in the current folder: found after everything that is installed.

They are imported under names of their own (``_beside_1a2b3c4d.mymodel``), so that equally named modules of two
folders are two modules, and ``sys.path`` stays as it is: a ``queue.py`` in such a folder is nobody else's queue. Only
the import statements in these modules see what lies beside them; ``importlib.import_module`` does not.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "_beside_"
DIGEST = "__sha256__"
"""What a module of a place knows of its file as it was imported; the file may be changed since."""

_OWN_NAME = re.compile(rf"\b{PREFIX}[0-9a-f]+\.?")


class Place:
    """Folders whose modules can be imported without being on ``sys.path``; :func:`place` makes one.

    Args:
        folders: the folders, the first one first.
    """

    def __init__(self, folders: tuple[str, ...]) -> None:
        self.folders = folders
        self.name = PREFIX + hashlib.sha256("\0".join(folders).encode()).hexdigest()[:8]
        self._certain: dict[str, bool] = {}
        # A package without a file: Python's own machinery finds everything below it, relative imports included.
        root = ModuleType(self.name)
        root.__path__ = list(folders)
        root.__spec__ = ModuleSpec(self.name, None, is_package=True)
        sys.modules[self.name] = root

    def load(self, name: str) -> ModuleType:
        """Import a module by its dotted name, as ``importlib.import_module`` does; what is installed comes first."""
        own = self.owns(name.partition(".")[0])
        return importlib.import_module(f"{self.name}.{name}" if own else name)

    def owns(self, top: str) -> bool:
        """Tell whether a module is taken from these folders: they have it, and it is not installed."""
        if not top or top in self._certain:
            return self._certain.get(top, False)
        here, there = self._here(top), _there(top)
        if there is not None and _is_installed(top, there):
            self._certain[top] = False
        elif here is not None and _is_better(here, there, top in sys.modules):
            self._certain[top] = True
        return self._certain.get(top, False)

    def hidden(self, top: str) -> str:
        """Return the file of a module in these folders that an installed one hides, or nothing."""
        here, there = self._here(top) if top else None, _there(top)
        if here is None or here.origin is None or there is None or not _is_installed(top, there):
            return ""
        return "" if _where(there) == _where(here) else here.origin

    def files(self) -> list[tuple[Path, Path]]:
        """Return the file of each module that was imported from these folders, and its path below its folder."""
        found = []
        for name, module in sys.modules.items():
            file = getattr(module, "__file__", None)
            if name.startswith(f"{self.name}.") and file is not None:
                above = next(folder for folder in self.folders if Path(folder) in Path(file).parents)
                found.append((Path(file), Path(file).relative_to(above)))
        return sorted(found)

    def code(self) -> dict[str, str]:
        """Return the SHA-256 of each module that was imported from these folders, as it was then, by its path there."""
        prefix = f"{self.name}."
        loaded = {
            one.__file__: vars(one).get(DIGEST)
            for name, one in list(sys.modules.items())
            if name.startswith(prefix)
        }
        return {
            path.as_posix(): digest
            for file, path in self.files()
            if (digest := loaded.get(str(file))) is not None
        }

    def has(self, code: Mapping[str, str]) -> bool:
        """Tell whether all these modules are in these folders as they were; ``code`` is of :meth:`code`."""
        return all(self._digest(path) == digest for path, digest in code.items())

    def _digest(self, path: str) -> str | None:
        found = (file for folder in self.folders if (file := Path(folder, path)).is_file())
        return next(map(_digest, found), None)

    def explain(self, error: BaseException) -> str:
        """Return what went wrong in an import, and the last line in these folders that led there."""
        plain = isinstance(error, ImportError | AttributeError | ValueError | TypeError)
        reason = str(error) if plain else f"{type(error).__name__}: {error}"
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        own = [f"{Path(file).name}:{line}" for file, line in lines if self._is_below(Path(file))]
        return own_name(f"{reason}, {own[-1]}" if own else reason)

    def importer(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        """Do what the import statement does in a module of these folders."""
        if level or not self.owns(name.partition(".")[0]):
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = builtins.__import__(f"{self.name}.{name}", globals, locals, fromlist, 0)
        return found if fromlist else sys.modules[f"{self.name}.{name.partition('.')[0]}"]

    def _is_below(self, file: Path) -> bool:
        library = "site-packages" in file.parts or Path(__file__).parent in file.parents
        return not library and any(Path(folder) in file.parents for folder in self.folders)

    def _here(self, top: str) -> ModuleSpec | None:
        return PathFinder.find_spec(f"{self.name}.{top}", list(self.folders))


_PLACES: dict[str, Place] = {}


def place(folder: str | Path | None = None) -> Place:
    """Return the place that is a folder and then the current folder.

    Args:
        folder: where an experiment file is, or None where there is no file.
    """
    folders = tuple(dict.fromkeys(os.path.realpath(one) for one in (folder, os.curdir) if one is not None))
    found = next((one for one in _PLACES.values() if one.folders == folders), None)
    return found or _enter(Place(folders))


def _enter(made: Place) -> Place:
    _PLACES[made.name] = made
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)  # it answers to no other names than those of places
    return made


def folders() -> list[tuple[str, ...]]:
    """Return the folders of every place, so that another process can import from them under the same names."""
    return [one.folders for one in _PLACES.values()]


def use(folders: Sequence[tuple[str, ...]]) -> None:
    """Make the places that another process has told of with :func:`folders`."""
    for some in folders:
        _enter(Place(some))


def own_name(text: str) -> str:
    """Return text in which modules have the names that the user gave them.

    >>> own_name("No module named '_beside_1a2b3c4d.lab.nets'")
    "No module named 'lab.nets'"
    """
    return _OWN_NAME.sub("", text)


class _Finder:
    """Finds modules of places."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if not name.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Lets a module's import statements see what lies beside it."""

    def exec_module(self, module: ModuleType) -> None:
        own: Mapping[str, Any] = vars(builtins) | {
            "__import__": _PLACES[module.__name__.partition(".")[0]].importer
        }
        module.__dict__["__builtins__"] = own
        module.__dict__[DIGEST] = _digest(Path(self.path))
        super().exec_module(module)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _there(top: str) -> ModuleSpec | None:
    """Return what an ordinary import gives."""
    if top in sys.modules:
        # The main program of a script has no spec, and is what it is.
        return getattr(sys.modules[top], "__spec__", None) or ModuleSpec(top, None, origin="built-in")
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _is_installed(top: str, spec: ModuleSpec) -> bool:
    """Tell what is installed from what is only there because Python was started in a folder, or with a script in it."""
    if spec.origin in ("built-in", "frozen"):
        return True
    if spec.origin is None:  # a folder without __init__.py can be on any path
        return False
    home = Path(spec.origin).parents[0 if spec.submodule_search_locations is None else 1]
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    passing = {
        os.path.realpath(one) for one in (os.curdir, script and os.path.dirname(script)) if one is not None
    }
    if os.path.realpath(home) in {os.path.realpath(one) for one in sys.path if one} - passing:
        return True
    # Packages that are installed in place, as by pip install -e, have finders of their own.
    finders = [one for one in sys.meta_path if one not in (PathFinder, _Finder) and hasattr(one, "find_spec")]
    return any(finder.find_spec(top, None) is not None for finder in finders)


def _is_better(here: ModuleSpec, there: ModuleSpec | None, loaded: bool) -> bool:
    """Prefer a file to a folder without __init__.py, as Python does, and a module that is loaded to its double."""
    if there is None:
        return True
    return not (loaded and _where(here) == _where(there)) and (
        here.origin is not None or there.origin is None
    )


def _where(spec: ModuleSpec) -> list[str]:
    places = spec.submodule_search_locations or [] if spec.origin is None else [spec.origin]
    return [os.path.realpath(one) for one in places]
