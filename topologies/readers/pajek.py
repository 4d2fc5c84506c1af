"""Pajek's .net files, as Pajek means them.

``*Edges`` work both ways and ``*Arcs`` one way, in one file; a line of ``*Edgeslist`` or ``*Arcslist`` is a node and
all its neighbours. NetworkX 3.6 lets edges go one way where arcs come before them, and arcs both ways where edges do;
of a neighbour list it reads the first neighbour, and takes the second for a weight.
"""

from __future__ import annotations

import re

from fedsim.errors import clip
from topologies.readers.net import VALUE, Link, Net, both_ways, lines, numbered

WORD = re.compile(r'"([^"]*)"|(\S+)')

SECTIONS = ("*vertices", "*edges", "*arcs", "*edgeslist", "*arcslist")


def read(content: bytes) -> Net:
    r"""Read nodes with their places, edges, and arcs that go both ways.

    >>> text = b'*Vertices 3\n1 "a" 0.1 0.2\n2 "b"\n*Edges\n1 2 5\n*Arcslist\n3 1 2\n1 3\n2 3'
    >>> read(text).links
    [('1', '2', {'value': 5.0}), ('1', '3', {}), ('2', '3', {})]
    """
    section, count = "", 0
    names: dict[str, str] = {}
    places: dict[str, tuple[float, float]] = {}
    edges: list[Link] = []
    arcs: list[Link] = []
    for number, line in lines(content, "%"):
        words = [quoted or word for quoted, word in WORD.findall(line)]
        if line.startswith("*"):
            section = words[0].lower()
            if section == "*network":
                continue
            if section not in SECTIONS:
                raise ValueError(f"line {number}: the section {clip(words[0])} is not one of nodes and links")
            if section == "*vertices":
                count = _count(number, words)
        elif section == "*vertices":
            id, *rest = words
            _known(number, id, count)
            names[id] = rest[0] if rest else id
            if len(rest) >= 3 and _number(rest[1]) is not None and _number(rest[2]) is not None:
                places[id] = float(rest[1]), float(rest[2])
        elif section in ("*edges", "*arcs"):
            (edges if section == "*edges" else arcs).append(_link(number, words, count))
        elif section:
            kept = edges if section == "*edgeslist" else arcs
            kept.extend(_link(number, [words[0], other], count) for other in words[1:])
        else:
            raise ValueError(f"line {number} stands before *Vertices: {clip(line)}")
    return Net(
        numbered(count), edges + both_ways(arcs, "arcs"), places, names, parallel=True, geographic=False
    )


def _count(number: int, words: list[str]) -> int:
    if len(words) == 3:
        raise ValueError(f"line {number}: nodes of two kinds have no topology of one kind")
    if len(words) < 2 or not words[1].isdecimal():
        raise ValueError(f"line {number} does not say how many nodes there are")
    return int(words[1])


def _known(number: int, id: str, count: int) -> str:
    if not id.isdecimal() or not 1 <= int(id) <= count:
        raise ValueError(f"line {number}: {clip(id)} is not a node; nodes are 1 to {count}")
    return str(int(id))


def _link(number: int, words: list[str], count: int) -> Link:
    if len(words) < 2:
        raise ValueError(f"line {number} is not a link")
    value = _number(words[2]) if len(words) > 2 else None
    a, b = (_known(number, id, count) for id in words[:2])
    return a, b, {} if value is None else {VALUE: value}


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
