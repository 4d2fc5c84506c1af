"""What a run remembers of its deferred values: which of them are alive, and the numbers that were read of them.

From that it can go on after it was killed. All that happens is repeated from the start, and no value is computed that
was computed before: it is there because it was alive when the run was saved, or nobody will need it any more, and its
numbers, if any were read, are in the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

from fedsim.errors import RunError
from fedsim.learn.identity import Unnamed, identity

Numbers = float | str | dict[str, float]
"""What can be read of a value and written into a journal."""

log = logging.getLogger("fedsim")


class Mismatch(RunError):
    """What is repeated is not what was saved."""


class Value(Protocol):
    """A deferred value, as far as a book deals with it."""

    @property
    def identity(self) -> bytes:
        """What it is."""

    def settle(self, value: Any) -> None:
        """Be there, without having been computed."""

    def forget(self) -> None:
        """Be neither there nor ever computed."""


class Store(Protocol):
    """Values of other runs."""

    def get(self, identity: bytes) -> Any:
        """Return a value, or None."""

    def put(self, identity: bytes, value: Any) -> None:
        """Keep a value."""


@dataclass(frozen=True)
class Past:
    """What was there when a run was saved.

    Args:
        made: how many values had been made.
        round: the latest round that had ended.
        values: those that were alive and there, by identity.
        pending: the identities of those that were alive and still to be computed.
    """

    made: int
    round: int
    values: Mapping[bytes, Any]
    pending: Container[bytes]


class Book:
    """Keeps count of a run's deferred values.

    Args:
        journal: the numbers that were read before the run was killed, by key.
        past: what was there when it was saved; None begins anew.
        store: values of other runs, or None.

    Attributes:
        alive: the values that somebody holds.
        made: how many there have been; what is made to measure does not count.
        round: the latest round that has ended.
        write: takes key and numbers of everything that is read.
        pause: called between two batches of a long computation.
        begins: called with every local update that is made, as a value and its call.
        unnamed: the first part that could not be named, and why; or nothing.
        jobs: how many local updates were computed.
        reused: how many were taken from the store.
        gradients_saved: what these would have cost, in per-sample gradients.
        measures: says how the run is measured; two ways of measuring have two names for what has none of its own.
        only_reuses: whether a local update that is not in the store ends the run.
        lenient: whether measurements that were not made before may be missing in a repetition.
    """

    def __init__(
        self,
        journal: dict[str, Numbers] | None = None,
        past: Past | None = None,
        store: Store | None = None,
    ) -> None:
        self.alive: WeakSet[Value] = WeakSet()
        self.made, self.round, self._echoes = 0, -1, 0
        self.journal = {} if journal is None else journal
        self.past, self.store = past, store
        self.write: Callable[[str, Numbers], None] = lambda *_: None
        self.pause: Callable[[], None] = lambda: None
        self.begins: Callable[[Any, Any], None] = lambda *_: None
        self.unnamed = ""
        self.jobs = self.reused = self.gradients_saved = 0
        self.lenient = self.only_reuses = False
        self.measures, self._measured = "", 0
        self._counts = True

    @property
    def counts(self) -> bool:
        """Whether what is made now belongs to what happens, and not to what is measured of it."""
        return self._counts

    @property
    def repeats(self) -> bool:
        """Whether everything so far has happened before."""
        past = self.past
        return past is not None and (self.made, self.round) < (past.made, past.round)

    def take(self, value: Value) -> None:
        """Take note of a value that has just been made, and let it be what it was."""
        self.alive.add(value)
        if self.past is not None:
            if value.identity in self.past.values:
                value.settle(self.past.values[value.identity])
            elif self.repeats and value.identity not in self.past.pending:
                value.forget()
        self.made += self._counts

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let values be made to measure, which do not count: another run of the same may measure at other times."""
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before

    def computed(self, identity: bytes, call: Any, value: Any) -> None:
        """Take note of a value that has been computed, and keep it for other runs if it took long."""
        self.jobs += hasattr(call, "gradients")
        if self.store is not None and call.batch is not None and not self.unnamed:
            self.store.put(identity, value)

    def call(self, *parts: Any) -> bytes:
        """Return the identity of a value that is about to be made, of the parts of its call."""
        if self._counts:
            return self.name(*parts)
        self._measured += 1  # no two of those that do not count may have one name
        return self.name(*parts, place=(self.measures, self._measured))

    def name(self, *parts: Any, place: tuple[Any, ...] = ()) -> bytes:
        """Return the identity of parts; where one has none, the next best that a repetition will find again.

        Args:
            parts: what is to be named.
            place: tells what has no identity from others of which the run had made as many values before.
        """
        try:
            return identity(*parts)
        except Exception as error:  # what is named may be anybody's, and break while it is asked
            if not self.unnamed:
                self.unnamed = (
                    str(error) if isinstance(error, Unnamed) else f"{type(error).__name__}: {error}"
                )
                log.info("no other run can use what this one computes: %s", self.unnamed)
            return identity("unnamed", self.made, *place)

    def lift(self, make: Callable[[], bytes]) -> bytes:
        """Return the identity of a value that foreign code has made; in a repetition, of what it was then."""
        return bytes.fromhex(str(self.echo(lambda: make().hex())))

    def echo(self, make: Callable[[], Numbers]) -> Numbers:
        """Return numbers that foreign code has made; in a repetition, what they were then."""
        self._echoes += 1
        key = f"echo {self._echoes}"
        return self.recall(key) if self.repeats else self.note(key, make())

    def note(self, key: str, numbers: Numbers) -> Numbers:
        """Write down what was read, unless that was done before the run was killed."""
        if key not in self.journal:
            self.write(key, numbers)
        return numbers

    def recall(self, key: str) -> Numbers:
        """Return what was read before the run was killed.

        Raises:
            Mismatch: if nothing was.
        """
        if key not in self.journal:
            raise Mismatch("a number is asked for that nobody has read before")
        return self.journal[key]
