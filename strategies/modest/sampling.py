"""How the nodes of MoDeST find a round's sample without talking about it: hashes, and who answers.

A. Dhasade, A.-M. Kermarrec, E. Lavoie, J. Pouwelse, R. Sharma, M. de Vos: Practical Federated Learning without a
Server. EuroMLSys 2025; its first version is MoDeST, arXiv 2302.13837, 2023.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import simpy

from fedsim.methods.peer import Peer

try:  # Python's own is twice as fast for short texts as OpenSSL's
    from _md5 import md5 as _md5  # type: ignore[import-not-found]  # it has no types
except ImportError:
    _md5 = partial(hashlib.md5, usedforsecurity=False)

Probe = Callable[[int], simpy.Event]
"""Asks a node whether it is there; the event's value says whether it answered."""

PING_AGAIN_S = 1.0
"""After how many seconds a ping without an answer is sent once more."""


def digest(id: str, round: int) -> bytes:
    """Return what decides a node's place in a round.

    Args:
        id: the node's name.
        round: the round.

    Returns:
        The MD5 of id, dash and round: 16 bytes.

    >>> digest("0", 1).hex()
    'c2eb282156233b5d827219971c8b04c2'
    """
    found: bytes = _md5(f"{id}-{round}".encode()).digest()
    return found


def order(ids: Sequence[str], round: int) -> list[int]:
    """Return the order in which nodes are asked in a round, which everybody finds alike.

    Leaving nodes out does not change the order of the others, so the order of some is found in that of all.

    Args:
        ids: the nodes' names.
        round: the round.

    Returns:
        Positions in ``ids``, sorted by digest; equal digests, by name.

    >>> order("0123456789", 1)
    [6, 5, 4, 2, 8, 7, 9, 0, 3, 1]
    """
    return orders(ids)(round)


def orders(ids: Sequence[str]) -> Callable[[int], list[int]]:
    """Return :func:`order` for some nodes as a function of the round: it sorts their names once.

    >>> orders("0123456789")(1) == order("0123456789", 1)
    True
    """
    by_name = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    names = [ids[index].encode() for index in by_name]

    def of_round(round: int) -> list[int]:
        end = f"-{round}".encode()
        digests = b"".join([_md5(name + end).digest() for name in names])
        high, low = np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2).T
        turns = np.argsort(high)
        if (np.diff(high[turns]) == 0).any():
            turns = np.lexsort((low, high))
        found: list[int] = by_name[turns].tolist()
        return found

    return of_round


def fastest_first(candidates: Iterable[int], size: int, mbps: Callable[[int], float]) -> Iterator[int]:
    """Yield the first candidates sorted by bandwidth, the highest first, and then the others as they come.

    Args:
        candidates: the candidates in the round's order.
        size: how many of them are sorted.
        mbps: what a node can send and receive, in Mbit/s.

    Yields:
        The candidates.

    >>> list(fastest_first([3, 1, 4, 2], 3, lambda node: node))
    [4, 3, 1, 2]
    """
    rest = iter(candidates)
    yield from sorted(islice(rest, size), key=mbps, reverse=True)
    yield from rest


def quorum(success_fraction: float, sample_size: int, invited: int) -> int:
    """Return how many trained models make an average.

    Args:
        success_fraction: which share of the sample.
        sample_size: how many nodes a sample should have.
        invited: how many it has.

    Returns:
        The share, rounded up; what a product of floats adds does not count.

    >>> quorum(0.8, 13, 13), quorum(0.29, 100, 100), quorum(0.7, 10, 4)
    (11, 29, 3)
    """
    return math.ceil(success_fraction * min(sample_size, invited) - 1e-9)


def least_window(nodes: int, sample_size: int, risk: float = 0.01) -> int:
    """Return the activity window below which nodes that are there are forgotten.

    A node that is in no sample for so many rounds is taken for gone. It must be unlikely that any is.

    Args:
        nodes: how many there are.
        sample_size: how many of them are sampled in a round.
        risk: the expected number of nodes that are forgotten.

    Returns:
        The window in rounds.

    >>> least_window(100, 10), least_window(1000, 13), least_window(5, 5)
    (88, 880, 3)
    """
    start = 3  # before anybody has been heard of, the first sample looks for the second one
    if sample_size >= nodes:
        return start
    return max(start, math.ceil(math.log(nodes / risk) / -math.log1p(-sample_size / nodes)))


class Probes:
    """The pings of a node that wait for an answer.

    Args:
        peer: the node.
        timeout_s: how long they wait, in seconds.
        ping: sends a ping, given the receiver and a number that its answer must have.
    """

    def __init__(self, peer: Peer, timeout_s: float, ping: Callable[[int, int], None]) -> None:
        self._peer, self._timeout_s, self._ping = peer, timeout_s, ping
        self._open: dict[int, simpy.Event] = {}
        self._count = 0

    def ask(self, node: int) -> simpy.Event:
        """Ask a node whether it is there; the event's value says whether it answered in time."""
        peer = self._peer
        answer = peer.node.clock.event()
        if node == peer.id:
            return answer.succeed(True)
        self._count += 1
        self._open[self._count] = answer
        self._ping(node, self._count)
        if self._timeout_s > PING_AGAIN_S:
            peer.after(PING_AGAIN_S, self._ask_again, node, self._count)
        peer.after(self._timeout_s, self.end, self._count, False)
        return answer

    def end(self, number: int, answered: bool) -> None:
        """Note that the answer to a ping has come, or that its time is over."""
        if number in self._open:
            self._open.pop(number).succeed(answered)

    def _ask_again(self, node: int, number: int) -> None:
        if number in self._open:
            self._ping(node, number)


class LiveSample(simpy.Event):
    """The first nodes of an order that answer, in the order of their answers.

    One that does not answer is replaced by the next one. The event happens when there are enough, or when everybody
    has been asked and has answered or not.

    Args:
        env: simulated time.
        candidates: whom to ask, in this order.
        size: how many are wanted, at least 1.
        probe: asks one.

    >>> env = simpy.Environment()
    >>> def probe(node: int) -> simpy.Event:
    ...     return env.timeout(1, value=True) if node != 4 else env.timeout(5, value=False)
    >>> sample = LiveSample(env, iter([7, 4, 2, 9]), 2, probe)
    >>> env.run(sample), env.now
    ([7, 2], 6)
    """

    def __init__(self, env: simpy.Environment, candidates: Iterator[int], size: int, probe: Probe) -> None:
        super().__init__(env)
        self.found: list[int] = []
        self._candidates, self._size, self._probe = candidates, size, probe
        self._open = 0
        for _ in range(size):
            self._ask()
        if not self._open:
            self.succeed(self.found)

    def stop(self) -> None:
        """Give up; the event's value is None."""
        if not self.triggered:
            self.succeed(None)

    def _ask(self) -> None:
        node = next(self._candidates, None)
        if node is not None:
            self._open += 1
            answer: Any = self._probe(node)
            answer.callbacks.append(partial(self._note, node))

    def _note(self, node: int, answer: simpy.Event) -> None:
        self._open -= 1
        if self.triggered:
            return
        if answer.value:
            self.found.append(node)
        else:
            self._ask()
        if len(self.found) == self._size or not self._open:
            self.succeed(self.found)
