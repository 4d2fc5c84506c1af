"""What every reader of files returns: labels, links and places, as the file has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.errors import MISSING, BadValue
from fedsim.machine import NODE_BYTES, require_room

Link = tuple[str, str, dict[str, Any]]

LINK_KEYS = ("latency_ms", "mbps")
"""What a link may have."""

VALUE = "value"
"""The number that a link has in formats that do not say what it means."""


@dataclass(frozen=True)
class Net:
    """A graph as a file has it.

    Args:
        labels: the nodes in the file's order.
        links: two labels, and what the link has: ``latency_ms``, ``mbps``, or a ``value`` whose meaning is open.
        places: longitude and latitude in degrees, or other coordinates, by label.
        names: what nodes are called besides, by label.
        parallel: whether two links between the same nodes are two; else the file says the same twice.
        geographic: whether the places are degrees; None where the file does not say.
    """

    labels: Sequence[str]
    links: Sequence[Link]
    places: dict[str, tuple[float, float]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    parallel: bool = False
    geographic: bool | None = None


def lines(content: bytes, comments: str = "#") -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty and no comment."""
    for number, line in enumerate(content.decode("utf-8-sig").splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith(tuple(comments)):
            yield number, text


def numbered(count: int) -> list[str]:
    """Return the labels 1 to count; a file may promise more nodes than there is room for."""
    require_room("path", MISSING, float(NODE_BYTES) * count, f"{count} nodes")
    return [str(id) for id in range(1, count + 1)]


def known(label: str, labels: Any, where: str) -> str:
    """Return a label that the file has declared.

    Raises:
        ValueError: if it has not.
    """
    if label not in labels:
        raise ValueError(f"{where} names the node {label}, which is not there")
    return label


def both_ways(arrows: Sequence[Link], what: str) -> list[Link]:
    """Return a link for each pair of arrows that go there and back with the same number.

    Raises:
        BadValue: if an arrow has none that goes back: the graph is directed.

    >>> both_ways([("a", "b", {}), ("b", "a", {})], "arcs")
    [('a', 'b', {})]
    """
    there = {(a, b): data for a, b, data in arrows}
    for (a, b), data in there.items():
        if there.get((b, a)) != data:
            hint = f"links work both ways, and these {what} go one way: {a} to {b}"
            raise BadValue("path", MISSING, "the graph is directed", hint)
    return [(a, b, data) for (a, b), data in there.items() if (b, a) not in there or a <= b]
