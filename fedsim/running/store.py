"""Values that runs leave for each other: nothing that has been computed here is computed again.

A value is a file under its identity, so that several processes can use one store at once: a file is whole or not
there. What another version of the code, of torch or another kind of processor has computed may differ in its last
bits, and is kept apart.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.errors import BadValue
from fedsim.learn.identity import FORMAT
from fedsim.learn.learner import Failed
from fedsim.record.files import write_text
from fedsim.running import values

MARK, KIND = "fedsim-store.json", "fedsim store"
GIGABYTE = 10**9
COMPUTING = ("fedsim.learn", "fedsim.methods", "fedsim.rng", "strategies")
"""What the numbers in a store are computed with."""

LEFT = 0.8
"""The share of the limit to which a store that is full is emptied."""

log = logging.getLogger("fedsim")


class Store:
    """A folder of values; what was not used for the longest time goes first.

    Args:
        folder: where; it is made if it is not there.
        device: where values are needed.
        limit_bytes: how much it may hold.

    Raises:
        BadValue: if the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, device: torch.device | str, limit_bytes: float = 10 * GIGABYTE) -> None:
        self._folder, self._device, self._limit = folder, device, limit_bytes
        self._full = False
        check(folder)
        self._own = folder / machine(device)
        self._size = sum(size for _, size, _ in self._files())

    def get(self, identity: bytes) -> Any:
        """Return a value, or None; one that is damaged goes."""
        path = self._path(identity)
        if not path.exists():
            return None
        try:
            held, arrays = values.load(path)
            os.utime(path)
        except BadValue as error:
            log.warning("%s of the store is not used: it %s", path.name, error.rule)
            path.unlink(missing_ok=True)
            return None
        except OSError:  # somebody else has made room meanwhile
            return None
        return values.given_back(held, arrays, self._device)

    def put(self, identity: bytes, value: Any) -> None:
        """Keep a value; where that is not possible, the run goes on without."""
        path = self._path(identity)
        if self._full or isinstance(value, Failed) or path.exists():
            return
        writer = values.Writer()
        try:
            held = writer.take(value)
            path.parent.mkdir(parents=True, exist_ok=True)
            values.save(path, held, writer.arrays, lasting=False)
            self._size += path.stat().st_size
        except values.Unkept:
            return
        except OSError as error:
            self._full = True
            log.warning("nothing more is written to the store %s: %s", self._folder, error.strerror)
        if self._size > self._limit:
            self._make_room()

    def _path(self, identity: bytes) -> Path:
        name = identity.hex()
        return self._own / name[:2] / f"{name}{values.SUFFIX}"

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each file was used last, its size and its place."""
        for path in self._folder.glob(f"*/*/*{values.SUFFIX}"):
            try:
                found = path.stat()
            except OSError:
                continue
            yield found.st_mtime, found.st_size, path

    def _make_room(self) -> None:
        held = sorted(self._files())
        self._size = sum(size for _, size, _ in held)
        for _, size, path in held:
            if self._size <= LEFT * self._limit:
                return
            path.unlink(missing_ok=True)
            self._size -= size


def check(folder: Path) -> None:
    """Make a store, if there is none yet.

    Raises:
        BadValue: if the folder holds something else, or cannot be written.
    """
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = any(not path.name.startswith(".") for path in folder.iterdir())
        if (
            others and not mark.exists()
        ):  # looked for after the others: another process may begin the store as well
            raise BadValue("store", str(folder), f"is no store: it holds other files, and no {MARK}")
        if not mark.exists():
            write_text(mark, json.dumps({"kind": KIND, "format": FORMAT}))
        elif json.loads(mark.read_text()).get("kind") != KIND:
            raise BadValue("store", str(folder), f"is no store: its {MARK} says something else")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise BadValue("store", str(folder), "cannot be written (Permission denied)")
    except OSError as error:
        raise BadValue("store", str(folder), f"cannot be used ({error.strerror})") from error
    except (ValueError, AttributeError) as error:
        if isinstance(error, BadValue):
            raise
        raise BadValue("store", str(folder), f"is no store: its {MARK} cannot be read") from error


def machine(device: torch.device | str) -> str:
    """Return 16 hexadecimal digits for all that the last bits of a value depend on and that no identity says."""
    kind = torch.device(device)
    card = torch.cuda.get_device_name(kind) if kind.type == "cuda" else ""
    told = hashlib.sha256()
    for text in (
        torch.__version__,
        np.__version__,
        torch.backends.cpu.get_cpu_capability(),
        card,
        platform.machine(),
        str(FORMAT),
    ):
        told.update(f"{text}\0".encode())
    for file in sorted(file for name in COMPUTING for file in _files_of(name)):
        told.update(file.read_bytes())
    return told.hexdigest()[:16]


def _files_of(name: str) -> Iterator[Path]:
    """Yield the files of a package or a module."""
    found = find_spec(name)
    if found is None or found.origin is None:
        return
    folders = found.submodule_search_locations
    yield from (
        [Path(found.origin)] if folders is None else (p for f in folders for p in Path(f).rglob("*.py"))
    )
