"""Formats with one link, or one node and its neighbours, in each line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from fedsim.errors import MISSING, BadValue, clip, did_you_mean
from topologies.readers.net import LINK_KEYS, VALUE, Link, Net, lines

_NUMPY = re.compile(r"(np|numpy)\.(float[0-9]+|u?int[0-9]+|longdouble)")
"""How numpy 2 writes the kinds of its numbers."""

HINT = "write: a b latency_ms=20 mbps=100"


def edges(content: bytes) -> Net:
    """Read an edge list: ``a b``, ``a b latency_ms=20 mbps=100``, or with a dictionary as NetworkX writes it."""
    links = []
    for number, line in lines(content):
        # A # inside of a word is part of a label: what follows it must not be lost.
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split(maxsplit=2)
        if not words:
            continue
        try:
            links.append(_link(*words))
        except ValueError as error:
            raise BadValue("path", MISSING, f"line {number} is not a link ({error})", HINT) from error
    return Net([label for a, b, _ in links for label in (a, b)], links)


def adjacency(content: bytes) -> Net:
    """Read an adjacency list: a node and its neighbours in each line."""
    rows = [line.split("#")[0].split() for _, line in lines(content)]
    links: list[Link] = [(row[0], other, {}) for row in rows if row for other in row[1:]]
    return Net([label for row in rows for label in row], links)


def relations(content: bytes) -> Net:
    r"""Read CAIDA's relationships between autonomous systems: ``provider|customer|-1`` or ``peer|peer|0``.

    >>> relations(b"# source: topology\n1|11537|0\n1|2|-1|bgp").links
    [('1', '11537', {}), ('1', '2', {})]
    """
    links: list[Link] = []
    for number, line in lines(content):
        words = line.split("|")
        if (
            len(words) < 3
            or not all(word.isdecimal() for word in words[:2])
            or words[2] not in ("-1", "0", "1")
        ):
            raise ValueError(f"line {number} is not two systems and their relation: {clip(line)}")
        links.append((words[0], words[1], {}))
    return Net([label for a, b, _ in links for label in (a, b)], links)


def intra(content: bytes) -> Net:
    r"""Read Rocketfuel's links inside of a network: two routers and a weight, or a latency in milliseconds.

    Both files have the same form; a number is a value of open meaning here, and ``values`` says what it is.

    >>> intra(b"Albany,+NY284 Boston,+MA289 3.5\nBoston,+MA289 Albany,+NY284 3.5").links
    [('Albany,+NY284', 'Boston,+MA289', {'value': 3.5})]
    """
    found: dict[frozenset[str], Link] = {}
    for number, line in lines(content):
        words = line.rsplit(maxsplit=1)
        ends = words[0].split() if len(words) == 2 else []
        if len(ends) != 2:
            raise ValueError(f"line {number} is not two routers and a number: {clip(line)}")
        try:
            link: Link = (ends[0], ends[1], {VALUE: float(words[1])})
        except ValueError:
            raise ValueError(f"line {number}: {clip(words[1])} is not a number") from None
        if found.setdefault(frozenset(ends), link)[2] != link[2]:
            raise ValueError(f"line {number}: {ends[0]} - {ends[1]} has another number the other way round")
    return Net([label for a, b, _ in found.values() for label in (a, b)], list(found.values()))


def _link(a: str, b: str = "", data: str = "") -> Link:
    if not b:
        raise ValueError(f"{clip(a)} is linked to nothing")
    if data.startswith("{"):
        return a, b, _once(_written(data))
    pairs = [word.partition("=") for word in data.split()]
    for key, equals, value in pairs:
        if key not in LINK_KEYS or not equals:
            raise ValueError(f"{clip(key + equals + value)}: {did_you_mean(key, LINK_KEYS)}")
    return a, b, _once([(key, value) for key, _, value in pairs])


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of pairs in which no key comes twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{clip(key)} is there twice")
        found[key] = value
    return found


def _written(text: str) -> list[tuple[str, Any]]:
    """Return the pairs of a dictionary as Python writes it; what is not a link's is not looked at."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{clip(text)} is not a dictionary") from None
    if not isinstance(node, ast.Dict):
        raise ValueError(f"{clip(text)} is not a dictionary")
    pairs = []
    for key, value in zip(node.keys, node.values):
        name = key.value if isinstance(key, ast.Constant) else None
        if not isinstance(name, str):
            raise ValueError(f"{clip(text)} has a key that is not text")
        pairs.append((name, _value(value) if name in LINK_KEYS else None))
    return pairs


def _value(node: ast.expr) -> Any:
    """Return a literal; numpy 2 puts its own numbers' kind around it: ``np.float64(3.0)``."""
    match node:
        case ast.Call(func, [inner], []) if _NUMPY.fullmatch(ast.unparse(func)):
            node = inner
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"{clip(ast.unparse(node))} is not a number") from None
