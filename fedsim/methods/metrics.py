"""Numbers that methods and selectors have to tell."""

from __future__ import annotations

from typing import NamedTuple

SYSTEM = -1
"""Stands for the whole system in the place of a node."""


class Metric(NamedTuple):
    """A number for the record of a round.

    Args:
        name: what it is.
        value: how much.
        node: the client that it belongs to, or -1 for the whole system.

    >>> Metric("anchors", 3)
    Metric(name='anchors', value=3, node=-1)
    """

    name: str
    value: float
    node: int = SYSTEM
