"""Graphs of very many links in little memory: whole numbers in arrays, where NetworkX has dictionaries."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

import networkx as nx
import numpy as np

from fedsim.world.graph import Graph

MANY = 10_000
"""A graph with more links is kept in arrays: its dictionaries would take some hundred bytes a link."""


def packed(nodes: int, links: np.ndarray, facts: Mapping[str, np.ndarray] | None = None) -> Graph:
    """Return a graph that cannot be changed; ``graph.copy()`` is an ordinary one.

    Args:
        nodes: how many there are; their ids are from 0.
        links: the two ends of each link [links, 2], the smaller id first, in ascending order, none twice.
        facts: what is known of the links: an array of whole numbers [links] for each attribute.

    Returns:
        A NetworkX graph, whose nodes, links and neighbours come in ascending order.

    >>> path = packed(3, np.array([[0, 1], [1, 2]]), {"bits_per_s": np.array([7, 8])})
    >>> list(path.edges(data="bits_per_s")), list(path[1]), nx.shortest_path(path, 0, 2)
    ([(0, 1, 7), (1, 2, 8)], [0, 2], [0, 1, 2])
    """
    graph: Any = nx.freeze(Graph())
    graph._node, graph._adj = _Nodes(nodes), _Neighbours(nodes, links, facts or {})
    found: Graph = graph
    return found


def pairs(graph: Graph) -> np.ndarray:
    """Return the two ends of each link [links, 2], the smaller id first, in ascending order.

    >>> pairs(Graph([(2, 1), (0, 2)])).tolist()
    [[0, 2], [1, 2]]
    """
    all = vars(graph)["_adj"]
    if isinstance(all, _Neighbours):
        return all.pairs()
    return np.array(sorted((min(link), max(link)) for link in graph.edges), dtype=np.int32).reshape(-1, 2)


class _Facts(Mapping[str, int]):
    """What is known of a node or a link; as nobody keeps it, it cannot be written to."""

    __slots__ = ("_known",)

    def __init__(self, known: dict[str, int]) -> None:
        self._known = known

    def __getitem__(self, key: str) -> int:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def copy(self) -> dict[str, int]:
        """Return a dictionary, which NetworkX takes for its copies."""
        return self._known.copy()


NOTHING = _Facts({})


class _Nodes(Mapping[int, _Facts]):
    """Nodes of which nothing is known."""

    def __init__(self, nodes: int) -> None:
        self._ids = range(nodes)

    def __getitem__(self, node: int) -> _Facts:
        if node not in self._ids:
            raise KeyError(node)
        return NOTHING

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


class _Neighbours(Mapping[int, "_Ends"]):
    """The neighbours of every node: those of node i are ``ends[first[i]:first[i + 1]]``."""

    def __init__(self, nodes: int, links: np.ndarray, facts: Mapping[str, np.ndarray]) -> None:
        own = np.arange(len(links), dtype=np.int32)
        others = own[links[:, 0] != links[:, 1]]  # a node's link to itself is there once
        near, far = (np.concatenate([links[others, 1 - end], links[:, end]]) for end in (0, 1))
        order = np.argsort(near, kind="stable")  # those with smaller ids come first, each in their order
        self.first = _array(np.searchsorted(near[order], np.arange(nodes + 1)))
        self.ends = _array(far[order])
        self.places = _array(np.concatenate([others, own])[order])
        self.facts = {name: _array(values) for name, values in facts.items()}

    def pairs(self) -> np.ndarray:
        """Return all links, once each; see :func:`pairs`."""
        near = np.repeat(np.arange(len(self), dtype=np.int32), np.diff(np.array(self.first)))
        both = np.stack([near, np.array(self.ends, dtype=np.int32)], axis=1)
        found: np.ndarray = both[both[:, 0] <= both[:, 1]]
        return found

    def __getitem__(self, node: int) -> _Ends:
        if node not in range(len(self)):
            raise KeyError(node)
        return _Ends(self, self.first[node], self.first[node + 1])

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self.first) - 1


class _Ends(Mapping[int, _Facts]):
    """The neighbours of one node, and what is known of the links to them."""

    __slots__ = ("_all", "_first", "_stop")

    def __init__(self, all: _Neighbours, first: int, stop: int) -> None:
        self._all, self._first, self._stop = all, first, stop

    def __getitem__(self, node: int) -> _Facts:
        place = self._find(node)
        if place is None:
            raise KeyError(node)
        return self._facts(place)

    def __contains__(self, node: object) -> bool:
        return self._find(node) is not None

    def __iter__(self) -> Iterator[int]:
        return iter(self._all.ends[self._first : self._stop])

    def __len__(self) -> int:
        return self._stop - self._first

    def _find(self, node: Any) -> int | None:
        ends = self._all.ends
        try:
            place = bisect_left(ends, node, self._first, self._stop)
        except TypeError:  # no node has a name
            return None
        return place if place < self._stop and ends[place] == node else None

    def _facts(self, place: int) -> _Facts:
        facts = self._all.facts
        if not facts:
            return NOTHING
        link = self._all.places[place]
        return _Facts({name: values[link] for name, values in facts.items()})


def _array(values: np.ndarray) -> array[int]:
    """Return whole numbers as an array that gives Python's own, in four bytes each where they fit."""
    narrow = not values.size or -(2**31) <= values.min() <= values.max() < 2**31
    return array("i" if narrow else "q", values.astype(np.int32 if narrow else np.int64).tobytes())
