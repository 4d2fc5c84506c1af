"""Files that are whole or not there: written beside their place, and then renamed into it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.errors import BadValue


@contextlib.contextmanager
def replaced(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield an empty file to write; it takes a path's place when the block ends, and goes when the block fails.

    Whoever reads the path finds what was there before or all that is new, even after a kill or a loss of power. A link
    in its place is replaced; what it points to is left alone.

    Args:
        path: what to write.
        lasting: whether to wait until it is on the disk, as for all that cannot be made again.

    Raises:
        OSError: if it cannot be written, or its place is taken by a folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(Path(folder) / "sums.txt") as file:
    ...         _ = file.write_text("1 + 1 = 2")
    ...     [one.name for one in Path(folder).iterdir()], (Path(folder) / "sums.txt").read_text()
    (['sums.txt'], '1 + 1 = 2')
    """
    part, mode = _new(path)
    try:
        yield part
        if part.stat().st_mode & 0o777 != mode:
            part.chmod(mode)  # some libraries put a file of their own there, which only its owner may read
        if lasting:
            _sync(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if lasting:
        with contextlib.suppress(OSError):  # not every file system can do this for a folder
            _sync(path.parent)


def write_text(path: Path, text: str, lasting: bool = True) -> None:
    """Write a text as UTF-8; see :func:`replaced`."""
    with replaced(path, lasting) as part:
        part.write_text(text, encoding="utf-8")


def own_folder(path: Path) -> None:
    """Make a folder, if there is none.

    Raises:
        BadValue: if something else is there: a link would lead whoever writes out of its parent.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a link" if path.is_symlink() else "a file"
        raise BadValue(
            "run", str(path.parent), f"its {path.name} is {kind}, not a folder; nothing is written to it"
        )
    path.mkdir(exist_ok=True)


def to_json(value: Any, indent: int | None = None) -> str:
    """Write JSON, which knows neither NaN nor infinity: null stands for both.

    >>> to_json({"loss": float("nan"), "times": (1.5, float("inf"))})
    '{"loss": null, "times": [1.5, null]}'
    """
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def from_json(text: str) -> Any:
    """Read JSON; a bare NaN or Infinity, or a number beyond all floats, is None.

    Raises:
        ValueError: if it is not JSON.

    >>> from_json('[NaN, -Infinity, 1e999, 0.5]')
    [None, None, None, 0.5]
    """
    try:
        return finite(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: Any) -> Any:
    """Return plain data with None for each number that is NaN or infinite."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _new(path: Path) -> tuple[Path, int]:
    """Make an empty file beside a path, and return it with the permissions that a new file has here."""
    for number in itertools.count():
        part = path.with_name(f".{path.stem}-{os.getpid()}-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):  # a run that was killed has left it
            file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = os.fstat(file).st_mode & 0o777
            os.close(file)
            break
    return part, mode


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
