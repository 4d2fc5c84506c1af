"""Values of a run as safetensors files: tensors, numbers, texts, and containers of them; nothing is ever pickled.

A file says what its SHA-256 must be, so that one that was cut off, or in which a bit has flipped, gives itself away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fedsim.errors import BadValue, FedsimError, NotFiniteError, RunError
from fedsim.learn.learner import Failed
from fedsim.record.files import replaced
from fedsim.record.weights import save_file_at

SUFFIX = ".safetensors"

ERRORS = {kind.__name__: kind for kind in (RunError, NotFiniteError)}


class Unkept(FedsimError):
    """A value is of a kind that no file can hold."""


class Writer:
    """Takes values apart into arrays and what JSON can hold.

    Attributes:
        arrays: the arrays by name; one that several values share is there once.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._held: dict[tuple[Any, ...], str] = {}

    def take(self, value: Any) -> Any:
        """Return what JSON can hold of a value.

        Raises:
            Unkept: if it is of a kind that cannot be kept.
        """
        if value is None or (
            isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)
        ):
            return {"plain": value}
        if isinstance(value, torch.Tensor):
            place = (value.data_ptr(), value.dtype, value.shape, value.stride(), value.device)
            return {"tensor": self._array(place, value.numpy(force=True))}
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            return {"array": self._array((id(value), len(self.arrays)), np.asarray(value))}
        if isinstance(value, Failed):
            error = value.error
            told = [type(error).__name__, *error.args]
            return {"failed": told, "dict": {name: self.take(one) for name, one in value.items()}}
        if type(value) is dict and all(isinstance(name, str) for name in value):
            return {"dict": {name: self.take(one) for name, one in value.items()}}
        if type(value) is dict:
            return {"pairs": [[self.take(name), self.take(one)] for name, one in value.items()]}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self.take(one) for one in value]}
        raise Unkept(f"a {type(value).__name__} cannot be written to a file")

    def _array(self, place: tuple[Any, ...], array: np.ndarray) -> str:
        if place not in self._held:
            self._held[place] = str(len(self._held))
            self.arrays[self._held[place]] = np.asarray(array, order="C")
        return self._held[place]


def given_back(held: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: torch.device | str) -> Any:
    """Return a value that :class:`Writer` has taken apart.

    >>> writer = Writer()
    >>> held = writer.take({"a": torch.tensor([1.0]), "b": [1, 2.5, None]})
    >>> given_back(held, writer.arrays, "cpu")
    {'a': tensor([1.]), 'b': [1, 2.5, None]}
    """

    def back(one: Mapping[str, Any]) -> Any:
        return given_back(one, arrays, device)

    if "plain" in held:
        return held["plain"]
    if "tensor" in held:
        return torch.from_numpy(arrays[held["tensor"]]).to(device)
    if "array" in held:
        return arrays[held["array"]]
    if "pairs" in held:
        return {back(name): back(one) for name, one in held["pairs"]}
    if "dict" not in held:
        kind = list if "list" in held else tuple
        return kind(back(one) for one in held[kind.__name__])
    whole = {name: back(one) for name, one in held["dict"].items()}
    if "failed" not in held:
        return whole
    kind, *args = held["failed"]
    return Failed(ERRORS.get(kind, RunError)(*args), whole)


def save(
    path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], lasting: bool = True
) -> None:
    """Write arrays and what is to be known of them into a file, with the SHA-256 of it all.

    Args:
        path: the file, which is replaced if it is there.
        about: anything that JSON can hold.
        arrays: contiguous ones.
        lasting: whether to wait until it is on the disk.

    Raises:
        OSError: if it cannot be written; nothing is left of it, then.
    """
    text = json.dumps(about)
    with replaced(path, lasting) as part:
        save_file_at(part, arrays, {"about": text, "sha256": _digest(text, arrays)})


def load(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Return what :func:`save` has written.

    Raises:
        BadValue: if the file is not whole, or is not what was written.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            known = file.metadata()
        if known["sha256"] != _digest(known["about"], arrays):
            raise BadValue("file", str(path), "is damaged: it is not what was written")
        return json.loads(known["about"]), arrays
    except OSError as error:
        raise BadValue("file", str(path), f"cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadValue):
            raise
        raise BadValue("file", str(path), f"is damaged: {error}") from error


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of all that a file says."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()
