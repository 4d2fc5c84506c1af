"""A run once more, up to one of its local updates, to see what that was made of."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import BadValue, FedsimError, RunError
from fedsim.learn.book import Book, Past
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Train
from fedsim.record.rows import rows
from fedsim.record.store import Record
from fedsim.running import garbage, threads
from fedsim.running.begin import check_data, origin_in
from fedsim.running.build import Setup, prepare
from fedsim.running.checkpoint import Journal, Keeper
from fedsim.running.observer import Observer
from fedsim.running.run import drive, scenes
from fedsim.spec.experiment import load

Known = Callable[[bytes], Any]
"""Returns a value by its identity, or None."""


class Foreign(FedsimError):
    """A value was made by code that does not say of what."""


class Plan(Book):
    """Knows how every value of a run is made, and lets none be computed; numbers come from the run's journal.

    Args:
        journal: the numbers that were read, by key.

    Attributes:
        calls: the call of each value and what it reads, by identity.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal.numbers, Past(sys.maxsize, sys.maxsize, {}, ()))
        self.lenient = True
        self.calls: dict[bytes, tuple[Any, Mapping[str, Deferred]]] = {}

    def take(self, value: Any) -> None:
        """Keep how a value is made; what is only measured is not looked at."""
        if self._counts:
            self.calls[value.identity] = value.made_of
        super().take(value)

    def ready(self, values: Iterable[Deferred], known: Known) -> list[Deferred]:
        """Return values that can be computed, in the place of those that cannot.

        Args:
            values: any of the run's.
            known: values that need not be computed.

        Raises:
            Foreign: if a value that it is made of was made by code that does not say how.
        """
        made: dict[bytes, Deferred] = {}
        wanted = list(values)
        stack = list(wanted)
        while stack:
            one = stack[-1]
            there = one.value() if one.done else known(one.identity)
            if one.identity in made or there is not None:
                made.setdefault(one.identity, Deferred.known(there))
                stack.pop()
                continue
            call, inputs = self.calls.get(one.identity, (None, {}))
            if call is None:
                raise Foreign("a value was made by code that does not say of what")
            missing = [source for source in inputs.values() if source.identity not in made]
            if not missing:
                made[one.identity] = Deferred(call, {k: made[v.identity] for k, v in inputs.items()})
            stack += missing
        return [made[value.identity] for value in wanted]


@dataclass(frozen=True)
class Found:
    """A local update of a run.

    Args:
        setup: the run that it belongs to.
        book: what is known of the run's values.
        call: what is to be done.
        update: what comes of it.
        inputs: what it reads, by name.
    """

    setup: Setup
    book: Book
    call: Train
    update: Deferred
    inputs: Mapping[str, Deferred]

    @property
    def identity(self) -> bytes:
        """What it is."""
        return self.update.identity

    @property
    def place(self) -> tuple[int, int, int]:
        """Node, round and visit."""
        return self.call.place.node, self.call.place.round, self.call.place.visit

    def given(self, known: Known) -> dict[str, Any]:
        """Compute what it reads, with as little else as possible.

        Raises:
            Foreign: if that cannot be told from the run's events alone.
        """
        values = list(self.inputs.values())
        if isinstance(self.book, Plan):
            values = self.book.ready(values, known)
        return {name: value.value() for name, value in zip(self.inputs, values, strict=True)}


def planned(run: Path, identity: bytes) -> Found:
    """Repeat a run up to one of its local updates without computing anything.

    Args:
        run: its folder; it may have been stopped.
        identity: of the update.

    Raises:
        BadValue: if the folder holds no run of which that is known, or its data or model are others now.
        RunError: if the run does not come to the update again.
    """
    return _until(run, identity, Plan(Journal(rows(run, "journal"))))


def computed(run: Path, identity: bytes, store: Any = None) -> Found:
    """Do a run again up to one of its local updates, with all that is computed on the way.

    Args:
        run, identity: as for :func:`planned`.
        store: values that need not be computed, or None.
    """
    return _until(run, identity, Book(store=store))


class _Reached(RunError):
    """Ends a repetition where it was to come to."""


def _until(run: Path, identity: bytes, book: Book) -> Found:
    origin = origin_in(run)
    if origin is None or origin["timing_only"]:
        why = "kept time only" if origin is not None else "was killed before anything happened"
        raise BadValue("run", str(run), f"{why}: it has no local updates")
    experiment = load(run / "experiment.yaml", {"compute.workers": 1, "record.trackers": []})
    found: list[Found] = []

    def begins(update: Deferred, call: Train) -> None:
        if update.identity == identity:
            calls = book.calls if isinstance(book, Plan) else {}
            inputs = calls.get(identity, update.made_of)[1]
            found.append(Found(setup, book, call, update, inputs))
            raise _Reached("the update that was looked for")

    with (
        threads.limited(experiment.compute.threads),
        tempfile.TemporaryDirectory(prefix="fedsim-") as scratch,
        Record(scratch) as record,
        np.errstate(all="ignore"),  # zeros stand for what is not computed
    ):
        setup = prepare(experiment, False, book)
        try:
            check_data(origin, setup)
            keeper = Keeper(Path(scratch), None, book)
            keeper.begin(setup.world, record)
            book.begins = begins
            observer = Observer(experiment, setup.learner, setup.world, record, None, keeper)
            with scenes(setup, observer):
                drive(setup, observer)
        except FedsimError:
            if not found:
                raise
        finally:
            setup.learner.engine.close()
            garbage.leave(setup.learner.nbytes)
    if not found:
        raise RunError(f"the run in {run} does not come to this local update when it is repeated")
    return found[0]
