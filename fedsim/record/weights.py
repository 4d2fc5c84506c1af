"""The final model of a run, as a safetensors file with the names of its parameters in the model's order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedsim.errors import BadValue
from fedsim.record.files import replaced

FILE = "weights.safetensors"

ROUNDS = "models"
"""The folder of a run in which the models of rounds are."""

Arrays = dict[str, npt.NDArray[np.generic]]


def of_round(run: Path, round: int) -> Path:
    """Return the file for the model of a round.

    >>> of_round(Path("run"), 40).as_posix()
    'run/models/000040.safetensors'
    """
    return run / ROUNDS / f"{round:06d}.safetensors"


def save_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]], order: Sequence[str]) -> None:
    """Write arrays by name.

    Args:
        path: the file; see :func:`fedsim.record.files.replaced`.
        arrays: contiguous ones.
        order: the names of the model's parameters; others may be in the file, too.

    Raises:
        OSError: if the file cannot be written.
        safetensors.SafetensorError: if the format has no room for one of the arrays.
    """
    with replaced(path) as part:
        save_file_at(part, arrays, {"parameters": json.dumps(list(order))})


def save_file_at(
    path: Path, arrays: Mapping[str, npt.NDArray[np.generic]], metadata: Mapping[str, str]
) -> None:
    """Write contiguous arrays by name with safetensors, where a disk that refuses is told as that.

    Raises:
        OSError: if the file cannot be written.
        safetensors.SafetensorError: if the format has no room for one of the arrays.
    """
    try:
        save_file(dict(arrays), path, metadata=dict(metadata))
    except SafetensorError as error:
        # The library has one exception for all that can go wrong, and says in words what the system said.
        number = re.search(r"(?:os error |code: )(\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def read_arrays(path: Path) -> Arrays:
    """Return a model's parameters by name, in the model's order.

    Raises:
        BadValue: if there is no such file, or it is not one that a run has written whole.
    """
    why = "it does not say which parameters the model has"
    try:
        with safe_open(path, framework="numpy") as file:
            names = json.loads((file.metadata() or {}).get("parameters", "null"))
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                return {name: file.get_tensor(name) for name in names}
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    except (SafetensorError, AttributeError, TypeError, ValueError) as error:
        why = str(error)  # the library lets numpy's own errors through for kinds of numbers that numpy lacks
    raise BadValue("weights", str(path), f"holds no readable weights of a run ({why})")
