"""Signs of life of what computes: each step of training and each batch of an evaluation is one."""

from __future__ import annotations

_beats = 0


def beat() -> None:
    """Give a sign of life."""
    global _beats
    _beats += 1


def beats() -> int:
    """Return how many signs of life there have been.

    >>> before = beats()
    >>> beat()
    >>> beats() - before
    1
    """
    return _beats
