"""Saves a run now and then: the values that are alive, by identity, and where in the run that was."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.errors import BadValue, DiskError, RunError
from fedsim.learn.book import Book, Mismatch, Numbers, Past
from fedsim.learn.deferred import Deferred
from fedsim.learn.identity import FORMAT
from fedsim.record.store import Record
from fedsim.running import values
from fedsim.spec.record import Checkpoints as Rule
from fedsim.world.world import World

FOLDER = "checkpoints"
WIDTH = 32
"""Bytes of an identity."""

SHARE = 50
"""Between two checkpoints that the clock asks for, at least so many times passes as one takes."""

State = Callable[[], Any]

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Args:
        file: where it is.
        event_hash: of all events until the latest round had ended.
        past: what was there.
        journal: how many numbers had been read, and their SHA-256.
        state: what a strategy is that keeps more than deferred values.
    """

    file: Path
    event_hash: str
    past: Past
    journal: tuple[int, str]
    state: Any = None


class Journal:
    """The numbers that a run has read, and their SHA-256.

    Args:
        rows: key and JSON of those that were written before, in their order.
    """

    def __init__(self, rows: Sequence[tuple[str, str]] = ()) -> None:
        self._rows, self._hash, self.count = rows, hashlib.sha256(), len(rows)
        self.numbers: dict[str, Numbers] = {key: json.loads(text) for key, text in rows}
        for row in rows:
            self._hash.update(_line(*row))

    def digest(self, count: int) -> str:
        """Return the SHA-256 of the first of those that were written before."""
        return hashlib.sha256(b"".join(_line(*row) for row in self._rows[:count])).hexdigest()

    def add(self, key: str, numbers: Numbers) -> str:
        """Take in a number and return its JSON, which gives every bit of it back."""
        text = json.dumps(numbers)
        self._hash.update(_line(key, text))
        self.count += 1
        return text

    def mark(self) -> tuple[int, str]:
        """Return how many numbers there are, and their SHA-256."""
        return self.count, self._hash.hexdigest()


def _line(key: str, text: str) -> bytes:
    return f"{key}\0{text}\n".encode()


@dataclass
class Keeper:
    """Makes the checkpoints of a run, and sees to it that a repetition is one.

    Args:
        folder: the run's.
        rule: how often to save; None never does.
        book: the run's values.
        journal: the numbers that were read.
        goal: the checkpoint from which the run goes on, or None.
    """

    folder: Path
    rule: Rule | None
    book: Book
    journal: Journal = field(default_factory=Journal)
    goal: Saved | None = None

    def __post_init__(self) -> None:
        self.state: State | None = None
        self._world: World | None = None
        self._record: Record | None = None
        self._hash = ""
        self._round_saved, self._sim_saved_s = 0 if self.goal is None else self.goal.past.round, 0.0
        self._wall_saved_s, self._took_s = time.monotonic(), 0.0
        self._broken = self.rule is None

    def begin(self, world: World, record: Record) -> None:
        """Take note of where the run happens."""
        self._world, self._record = world, record
        self.book.write = self._write
        self.book.pause = self._pause_in_round
        self.book.begins = self._begins

    def stop(self) -> None:
        """Save nothing more."""
        self._broken = True

    def round_begins(self, round: int) -> None:
        """Take note of the events until the end of a round, before anything of it is measured.

        Raises:
            Mismatch: if a repetition has come to the checkpoint's round with other events.
        """
        if self._world is None or (self._broken and self.goal is None):
            return
        self.book.round, self._hash = round, self._world.log.hexdigest()
        goal = self.goal
        if goal is not None and goal.past.round == round and goal.event_hash != self._hash:
            raise Mismatch("other events have happened", None, round, self._world.clock.now_s)

    def round_ends(self) -> None:
        """Save, if it is time."""
        rule = self.rule
        if self._broken or rule is None or self._world is None:
            return
        rounds, sim_s = self.book.round - self._round_saved, self._world.clock.now_s - self._sim_saved_s
        due = rule.every_rounds is not None and rounds >= rule.every_rounds
        due |= rule.every_sim_s is not None and sim_s >= rule.every_sim_s
        if due:
            self.save()
        else:
            self._pause()

    def ends(self) -> None:
        """Save the end of a run that has been saved before, or would have been: somebody may let it go on."""
        if not self._broken and self.saved_any and self.state is None:
            self.save()

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """Save a run that somebody stops, and let the interrupt say how it can go on."""
        try:
            yield
        except KeyboardInterrupt as stop:
            if self.state is None:
                self.save()
            if self.saved_any:
                stop.go_on = f"fedsim resume {self.folder}"  # type: ignore[attr-defined]
            raise

    @property
    def saved_any(self) -> bool:
        """Whether there is a checkpoint of this run."""
        return bool(files(self.folder))

    def save(self) -> bool:
        """Make a checkpoint, and return whether that was possible."""
        if self._broken or self._world is None or self._record is None or self.book.repeats:
            return False
        began_s = time.monotonic()
        try:
            self._record.flush()
            self._save()
        except (OSError, DiskError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", error)
            log.warning("no checkpoint was made: %s", why)
            return False
        except values.Unkept as error:
            log.warning("this run makes no checkpoints: %s", error)
            self._broken = True
            return False
        finally:
            self._wall_saved_s = time.monotonic()
            self._took_s = self._wall_saved_s - began_s
            self._round_saved, self._sim_saved_s = self.book.round, self._world.clock.now_s
        return True

    def _save(self) -> None:
        writer, held, pending = values.Writer(), {}, set()
        for one in list(self.book.alive):
            assert isinstance(one, Deferred)  # nothing else is taken note of
            if one.done:
                held[one.identity.hex()] = writer.take(one.value())
            elif not one.is_gone:
                pending.add(one.identity)
        arrays = {**writer.arrays, "pending": np.frombuffer(b"".join(sorted(pending)), dtype=np.uint8)}
        about = {"format": FORMAT, "round": self.book.round, "event_hash": self._hash, "made": self.book.made}
        about |= {"journal": self.journal.mark(), "values": held}
        if self.state is not None:
            about["state"] = writer.take(self.state())
            arrays |= writer.arrays
        folder = self.folder / FOLDER
        folder.mkdir(exist_ok=True)
        for part in folder.glob(f".*{values.SUFFIX}"):  # a run that was killed has left it
            part.unlink(missing_ok=True)
        name = f"{self.book.made:012d}-{self.book.round + 1:08d}{values.SUFFIX}"
        values.save(folder / name, about, arrays)
        assert self.rule is not None  # or nothing would be saved
        for old in files(self.folder)[self.rule.keep :]:
            old.unlink(missing_ok=True)

    def _write(self, key: str, numbers: Numbers) -> None:
        assert self._record is not None  # the run has begun
        self._record.add("journal", key, self.journal.add(key, numbers))

    def _begins(self, update: Deferred, call: Any) -> None:
        assert self._record is not None  # the run has begun
        assert self._world is not None
        own, place = update.identity.hex(), call.place
        self._record.add("jobs", self._world.clock.now, own, place.node, place.round, place.visit)

    def _pause_in_round(self) -> None:
        if self.state is None:  # what a strategy holds in the middle of a round cannot be restored there
            self._pause()

    def _pause(self) -> None:
        rule = self.rule
        if self._broken or rule is None or rule.every_wall_s is None:
            return
        least_s = max(rule.every_wall_s, SHARE * self._took_s)
        if time.monotonic() - self._wall_saved_s >= least_s:
            self.save()


def files(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the latest first."""
    found = (folder / FOLDER).glob(f"*{values.SUFFIX}")
    return sorted((file for file in found if not file.name.startswith(".")), reverse=True)


def read(file: Path, journal: Journal, device: torch.device | str) -> Saved:
    """Read a checkpoint.

    Args:
        file: one of :func:`files`.
        journal: the numbers that the run has read.
        device: where its values are needed.

    Raises:
        BadValue: if it is damaged, of another format, or reckons with numbers that the journal has not.
    """
    about, arrays = values.load(file)
    if about["format"] != FORMAT:
        raise BadValue("file", str(file), f"is of format {about['format']}, and this fedsim has {FORMAT}")
    count, digest = about["journal"]
    if journal.digest(count) != digest:
        raise BadValue("file", str(file), "does not fit the record: the numbers read until then are others")
    raw = arrays["pending"].tobytes()
    pending = {raw[start : start + WIDTH] for start in range(0, len(raw), WIDTH)}
    held: Mapping[str, Any] = about["values"]
    there = {bytes.fromhex(name): values.given_back(one, arrays, device) for name, one in held.items()}
    state = values.given_back(about["state"], arrays, "cpu") if "state" in about else None
    past = Past(about["made"], about["round"], there, pending)
    return Saved(file, about["event_hash"], past, (count, digest), state)


def is_before(error: RunError, book: Book) -> bool:
    """Tell whether an error has come while a run was repeated: then the checkpoint does not fit."""
    return isinstance(error, Mismatch) or book.repeats
