"""Every public exception.

A mistake in an experiment file is a :class:`ConfigError` (exit code 2): one line for each mistake, no traceback.
A run that breaks is a :class:`RunError` (exit code 3): it says where in the simulated world it broke.

All exceptions keep every constructor argument in ``args``, because SimPy rebuilds the exception of a failed
process as ``type(error)(*error.args)``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim import scalars


class FedsimError(Exception):
    """The root of all exceptions that fedsim raises on purpose."""


class BadValue(FedsimError, ValueError):
    """A part (a topology, a partition, a strategy …) refuses one of its parameters.

    Args:
        key: the parameter's name, dotted when it is nested.
        value: what was given.
        rule: what must hold instead, as a short sentence without a full stop.
        hint: what to do about it, or an empty string.

    >>> print(BadValue("degree", 3, "nodes x degree must be even (5 x 3)"))
    degree: 3: nodes x degree must be even (5 x 3)
    """

    def __init__(self, key: str, value: Any, rule: str, hint: str = "") -> None:
        super().__init__(key, value, rule, hint)
        self.key, self.value, self.rule, self.hint = key, value, rule, hint

    def __str__(self) -> str:
        return str(Problem(self.key, self.value, self.rule, self.hint))


class _Missing:
    """No value; there is one of it, also for who gets it from another process."""

    def __repr__(self) -> str:
        return "(missing)"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""Stands for 'no value' in a :class:`Problem`; ``None`` is a value."""


MOST = 800
"""No part of a message has more characters, whatever a file or a library says."""


@dataclass(frozen=True)
class Problem:
    """One mistake in an experiment, printed as ``FILE:LINE: key: value: rule; hint``."""

    key: str
    value: Any
    rule: str
    hint: str = ""
    source: str = ""

    def __str__(self) -> str:
        shown = "" if self.value is MISSING else f"{short(self.value)}: "
        where = f"{clip(self.source, MOST)}: " if self.source else ""
        key = f"{self.key}: " if self.key else ""
        text = f"{where}{clip(key, MOST)}{shown}{clip(self.rule, MOST)}"
        text += f"; {clip(self.hint, MOST)}" if self.hint else ""
        return " ".join(map(str.strip, text.splitlines()))


class ConfigError(FedsimError):
    """The experiment file is wrong; every mistake found is listed, one on each line.

    >>> print(ConfigError([Problem("stratgey", MISSING, "unknown key", "did you mean strategy?", "a.yaml:4")]))
    a.yaml:4: stratgey: unknown key; did you mean strategy?
    """

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class RunError(FedsimError):
    """A run broke; the message says at which node, in which round, when and in which phase.

    Args:
        reason: what happened.
        node: the node's id, or None when it happened at no node in particular.
        round: the round, or None.
        sim_time_s: simulated seconds since the start, or None.
        phase: what was being done (``"train"``, ``"aggregate"`` …).
    """

    exit_code = 3

    def __init__(
        self,
        reason: str,
        node: int | None = None,
        round: int | None = None,
        sim_time_s: float | None = None,
        phase: str = "",
    ) -> None:
        super().__init__(reason, node, round, sim_time_s, phase)
        self.reason, self.node, self.round, self.sim_time_s, self.phase = (
            reason,
            node,
            round,
            sim_time_s,
            phase,
        )

    def __str__(self) -> str:
        place = [
            f"node {self.node}" if self.node is not None else "",
            f"round {self.round}" if self.round is not None else "",
            f"t = {self.sim_time_s:.6f} s" if self.sim_time_s is not None else "",
            self.phase,
        ]
        return f"{', '.join(filter(None, place)) or 'run'}: {self.reason}"


class DiskError(RunError):
    """Something that a run leaves could not be written."""

    @classmethod
    def of(cls, name: str, error: Exception) -> DiskError:
        """Return the error that says why a file could not be written.

        >>> print(DiskError.of("summary.json", OSError(28, "No space left on device")))
        run: summary.json cannot be written (No space left on device)
        """
        return cls(f"{name} cannot be written ({getattr(error, 'strerror', None) or error})")


class StalledError(RunError):
    """Nobody in the simulated world can make progress any more."""


def at_round(error: StalledError, round: int, phase: str = "") -> StalledError:
    """Return a copy of an error that says in which round it happened."""
    return StalledError(error.reason, error.node, round, error.sim_time_s, phase or error.phase)


class NotFiniteError(RunError):
    """Weights or a loss became NaN or infinite."""


class EndedError(FedsimError):
    """The process of a run ended before the run did.

    >>> print(EndedError())
    its process ended before the run did (killed, or out of memory)
    """

    def __str__(self) -> str:
        return "its process ended before the run did (killed, or out of memory)"


class ValueNeeded(FedsimError):
    """A timing-only run was asked for a number that only training can give."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that looks most like ``word``.

    >>> did_you_mean("stratgey", ["strategy", "stop"])
    'did you mean strategy?'
    >>> did_you_mean("xyz", ["strategy", "stop"])
    'known: stop, strategy'
    """
    options = sorted(known)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(options)}" if options else ""


def few(ids: Collection[Any], most: int = 10) -> str:
    """Name nodes or other things, or the first of them where they are many.

    >>> few([3, 1, 2]), few(range(30), most=3)
    ('[3, 1, 2]', '[0, 1, 2] and 27 more')
    """
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"{list(ids)[:most]}{more}"


def short(value: Any) -> str:
    """Show a value as it would be written in YAML, so that '7' is not taken for 7, in at most 60 characters.

    >>> short("7"), short("a" * 99) == "a" * 57 + "..."
    ("'7'", True)
    """
    if value is None or isinstance(value, bool):
        return str(json.dumps(value))
    plain = isinstance(value, str) and (not value or scalars.kind(value) == "str")
    try:
        text = value if plain else repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        text = (
            f"a whole number of {value.bit_length()} bits"
            if isinstance(value, int)
            else "a value that is too long"
        )
    text = repr(text)[1:-1] if len(text.splitlines()) > 1 else text
    return clip(text)


def clip(text: str, most: int = 60) -> str:
    """Return text, or its beginning where it is long: no message quotes a whole file.

    >>> clip("three rings", 8), clip("a ring", 8)
    ('three...', 'a ring')
    """
    return text if len(text) <= most else text[: most - 3] + "..."
