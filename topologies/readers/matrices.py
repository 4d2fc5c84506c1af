"""Formats that number their nodes from 1: Matrix Market and METIS."""

from __future__ import annotations

import io

import scipy  # which loads io and sparse when they are asked for: they take a tenth of a second

from fedsim.errors import MISSING, clip
from fedsim.machine import require_room
from topologies.readers.net import VALUE, Link, Net, both_ways, numbered


def market(content: bytes) -> Net:
    r"""Read a square matrix of Matrix Market, with SciPy: an entry is a link, and its number a value.

    >>> market(b"%%MatrixMarket matrix coordinate real symmetric\n3 3 2\n2 1 5.0\n3 2 7.0\n").links
    [('1', '2', {'value': 5.0}), ('2', '3', {'value': 7.0})]
    """
    rows, columns, _, form, kind, _ = scipy.io.mminfo(io.BytesIO(content))
    if rows != columns:
        raise ValueError(f"the matrix has {rows} rows and {columns} columns, and must be square")
    if kind == "complex":
        raise ValueError("its numbers are complex")
    labels = numbered(rows)
    if form == "array":
        require_room("path", MISSING, 16.0 * rows * columns, "its matrix")
    entries = scipy.sparse.coo_matrix(scipy.io.mmread(io.BytesIO(content)))
    plain = kind == "pattern"
    arrows: list[Link] = [
        (str(a + 1), str(b + 1), {} if plain else {VALUE: float(value)})
        for a, b, value in zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist())
        if form != "array" or value  # a zero that is written out in a list of entries is a link
    ]
    return Net(labels, both_ways(sorted(arrows, key=_ends), "entries"))


def _ends(link: Link) -> tuple[int, int]:
    return int(link[0]), int(link[1])


def metis(content: bytes) -> Net:
    r"""Read a graph of METIS: the line of each node has its neighbours, after sizes and weights if there are any.

    >>> metis(b"% a comment\n3 2 001\n2 5\n1 5 3 7\n2 7\n").links
    [('1', '2', {'value': 5.0}), ('2', '3', {'value': 7.0})]
    """
    text = [line for line in content.decode("utf-8-sig").splitlines() if not line.lstrip().startswith("%")]
    while text and not text[0].strip():
        text.pop(0)
    head = _whole(1, text[0] if text else "")
    if not 2 <= len(head) <= 4:
        raise ValueError("the first line must say how many nodes and links there are")
    nodes, count, form = head[0], head[1], f"{head[2] if len(head) > 2 else 0:03d}"
    if len(form) != 3 or set(form) - {"0", "1"}:
        raise ValueError(f"the form must be three digits 0 or 1, not {form}")
    skipped = int(form[0]) + (int(form[1]) and (head[3] if len(head) > 3 else 1))
    rows = text[1 : nodes + 1]
    if len(rows) < nodes or any(line.strip() for line in text[nodes + 1 :]):
        raise ValueError(f"there must be a line for each of {nodes} nodes, and there are {len(text) - 1}")
    arrows: list[Link] = []
    for node, line in enumerate(rows, start=1):
        numbers, step = _whole(node + 1, line)[skipped:], 1 + int(form[2])
        for at in range(0, len(numbers) - step + 1, step):
            if not 1 <= numbers[at] <= nodes:
                raise ValueError(f"node {node} names the node {numbers[at]}; nodes are 1 to {nodes}")
            arrows.append((str(node), str(numbers[at]), {VALUE: float(numbers[at + 1])} if step == 2 else {}))
    links = both_ways(arrows, "neighbours")
    if len(links) != count:
        raise ValueError(f"the first line promises {count} links, and there are {len(links)}")
    return Net(numbered(nodes), links)


def _whole(number: int, line: str) -> list[int]:
    try:
        return [int(word) for word in line.split()]
    except ValueError:
        raise ValueError(f"line {number} must hold whole numbers: {clip(line)}") from None
