"""What a notebook user calls to look into runs that have been."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fedsim.errors import BadValue, ConfigError, Problem

if TYPE_CHECKING:
    from fedsim.running.redo import Redone


def differences(first: str | Path, second: str | Path) -> Iterator[str]:
    """Yield in what two runs differ, in lines; nothing is trained for that.

    These are the keys in which their files differ, the first event that is another one, and the first local update
    that is another one, with those of its inputs that make it so. Runs may have been stopped.

    Args:
        first: the folder of a run.
        second: that of another one.

    Raises:
        ConfigError: if one of them holds no run.
    """
    with told():
        yield from late("running.difference").differences(Path(first), Path(second))


def replay_job(
    run: str | Path,
    id: str,
    *,
    store: str | Path | None = None,
    do: Callable[[Callable[..., Any], Sequence[Any]], Any] | None = None,
) -> Redone:
    """Do one local update of a run again, alone, and compare the result with what the run has left of it.

    What the update reads is taken from the run's checkpoints and a store, as far as it is there, and computed
    otherwise. It is done by the sequential engine; other engines may have computed other last digits.

    Args:
        run: the run's folder; the run may have been stopped.
        id: the first digits of the update's identity, as :func:`fedsim.api.happened` tells it.
        store: a folder of what runs have computed; None is that of ``FEDSIM_STORE``, if it is set.
        do: calls the engine with the job before all else, such as under a debugger; None does not.

    Returns:
        What was done, what came of it, and how far that is from what the run has: ``lines()`` says so in words.

    Raises:
        ConfigError: if there is no such update, or the run's data or model are others now.
        RunError: if the update fails.
    """
    held = store or os.environ.get("FEDSIM_STORE")
    with told():
        done: Redone = late("running.redo").redone(Path(run), id, Path(held) if held else None, do)
        return done


def late(name: str) -> ModuleType:
    """Return a module that takes long to load, and that not every call needs."""
    return importlib.import_module(f"fedsim.{name}")


@contextmanager
def told() -> Iterator[None]:
    """Let what a folder or a parameter is refused for be told in one line."""
    try:
        yield
    except BadValue as error:
        raise ConfigError([Problem(error.key, error.value, error.rule, error.hint)]) from error
