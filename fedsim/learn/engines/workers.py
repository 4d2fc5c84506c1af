"""An engine on all cores: this process and others like it share whatever is ready, whoever has time.

A job's result is the same wherever it is done, so that neither the number of processes nor which of them did what can
be seen in any number. That is why they may start late: a short run never pays for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from fedsim import beside
from fedsim.learn.engines.base import Around, Engine, Known, TrainJob
from fedsim.learn.engines.desk import ALIGNED, Desk, dumps, loads, reserve
from fedsim.learn.engines.many import Made
from fedsim.learn.engines.process import Process
from fedsim.learn.engines.worker import PLACES, Start
from fedsim.learn.local import State
from fedsim.learn.several import X, leaves
from fedsim.machine import cores, memory_bytes
from fedsim.pulse import beat

LATE_S = 2.0
"""Other processes start when this one has worked for so long: about what it costs to start one."""

PIECE_S = 0.005
"""A piece of work takes at least about so long: handing one over takes about a tenth of it."""

DESK_BYTES = 2**20, 2**26
"""A desk is at least so large, and at most."""

VECTORS = 24
"""So many weight vectors fit on a desk, if it does not become too large."""

PART = 3
"""A piece of work is at most such a part of what would be each process's share of the rest: some clients have more."""

MOST_S, MOST = 0.05, VECTORS // 2
"""A piece takes at most about so long, and has at most so many items: the results have to fit on a desk."""

SHARE = 4
"""Data are laid down for other processes if they take no more than such a part of the memory: a copy stays here."""

Result = TypeVar("Result")
log = logging.getLogger("fedsim")


@dataclass
class Piece:
    """Some of the items that are ready, and where their results go."""

    kind: str
    items: list[Any]
    places: list[int]
    chunk: int = 0


class Helper(Protocol):
    """What does pieces of work somewhere else, and puts into a queue (itself, message) as a process does.

    Attributes:
        free: so many pieces of work it can be given, by their places.
        ready: whether it takes any.
    """

    free: list[int]
    ready: bool

    def give(self, piece: Piece, number: int, place: int) -> None:
        """Hand a piece of work over; raises whatever a method raises when it is pickled."""

    def take(self, place: int, data: bytes) -> list[Any]:
        """Return the results that lie at a place, of which it has told."""

    def ended(self) -> str:
        """Say how it has ended."""

    def close(self) -> None:
        """End it; what it is at is not waited for."""


class Worker(Process):
    """Another process of this machine."""

    def give(self, piece: Piece, number: int, place: int) -> None:
        """Lay a piece of work on its desk."""
        incoming = self.desks[place][0]
        incoming.clear()
        given = dumps(piece.items, incoming)
        self.tell(pickle.dumps((piece.kind, number, place, piece.chunk, given)))

    def take(self, place: int, data: bytes) -> list[Any]:
        """Return the results that lie on its desk."""
        found: list[Any] = loads(data, self.desks[place][1])
        return found


class Workers(Around):
    """Shares the jobs of another engine between this process and others.

    Args:
        inner: does the jobs, here and in every other process.
        count: the number of processes, this one included.
        late_s: how long this one works alone, in seconds of real time.

    Attributes:
        inner: the engine.
        processes: those that are there.
        called: what one of them is called.
    """

    called = "a worker process"
    piece_s = PIECE_S

    def __init__(self, inner: Engine, count: int, late_s: float = LATE_S) -> None:
        super().__init__(inner)
        self.count, self.grain = count, inner.grain * count
        self.processes: list[Helper] = []
        self._late_s, self._spent_s, self._begun = late_s, 0.0, False
        self._item_s: dict[str, float] = {}
        self._news: queue.SimpleQueue[tuple[Any, bytes]] = queue.SimpleQueue()
        self._number = 0
        self._under_way: dict[int, tuple[Helper, Piece]] = {}
        self._left: deque[Piece] = deque()
        self._results: list[Any] = []
        self._files: list[str] = []
        self._expert = False

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs, in as many processes as there are."""
        asks = any(job.update.order is not None and job.update.order.score == "expert" for job in jobs)
        if asks and self._begun and not self._expert:  # the others were not told what the expert thinks
            return self.inner.train(jobs)
        self._expert = self._expert or asks
        return self._share("train", jobs, self.inner.train)

    def evaluate(self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Judge weight vectors; on the held-out data in as many processes as there are."""

        def judge(some: Sequence[Tensor]) -> list[dict[str, float]]:
            return self.inner.evaluate(some, x, y, chunk)

        if self.data.test is None or x is not self.data.test[0]:
            return judge(weights)
        return self._share("evaluate", weights, judge, chunk)

    def close(self) -> None:
        """End the other processes."""
        for process in self.processes:
            process.close()
        self.processes.clear()
        self._remove_files()
        self.inner.close()

    def begin(self) -> None:
        """Start the other processes; they join in when they are ready.

        A model or method that cannot be sent to them, or no room for the data, leaves this process alone.
        """
        self._begun = True
        try:
            self._call()
        except Exception as error:  # whatever a model raises when it is pickled
            self._alone(f"{type(error).__name__}: {error}")

    def _call(self) -> None:
        """Start the other processes."""
        start = self._start()
        self.processes = [Worker(self._own_desks(start), self._news) for _ in range(self.count - 1)]

    def wait(self) -> int:
        """Wait until all processes are ready or have ended, and return how many there are beside this one."""
        while any(not process.ready for process in self.processes):
            self._hear(*self._news.get())
        return len(self.processes)

    def _share(
        self, kind: str, items: Sequence[Any], do: Callable[[Sequence[Any]], list[Result]], chunk: int = 0
    ) -> list[Result]:
        """Do items here and elsewhere, and return their results in order."""
        if self.count > 1 and not self._begun and len(items) > 1 and self._spent_s >= self._late_s:
            self.begin()
        self._listen()
        if not any(process.ready for process in self.processes) or not self._is_worth_it(kind, len(items)):
            return self._timed(kind, items, do)
        self._results, self._left = [None] * len(items), self._pieces(kind, items, chunk)
        try:
            while self._left or self._under_way:
                self._hand_out()
                if self._left:
                    piece = self._left.popleft()
                    self._put(piece, self._timed(kind, piece.items, do))
                else:
                    self._hear(*self._news.get())
                self._listen()
            return self._results
        finally:  # what others are at is nobody's any more; their answers will only free their desks
            self._under_way.clear()

    def _timed(
        self, kind: str, items: Sequence[Any], do: Callable[[Sequence[Any]], list[Result]]
    ) -> list[Result]:
        """Do items here, and see how long one takes."""
        began = time.perf_counter()
        results = do(items)
        took = time.perf_counter() - began
        self._spent_s += took
        self._item_s[kind] = took / max(1, len(items))
        return results

    def _is_worth_it(self, kind: str, count: int) -> bool:
        return count > 1 and count * self._item_s.get(kind, 1.0) > self.piece_s

    def _pieces(self, kind: str, items: Sequence[Any], chunk: int) -> deque[Piece]:
        """Cut items into pieces: large ones first, for each takes time to hand over; then smaller, to end together."""
        grain, item_s = self.inner.grain, max(self._item_s.get(kind, 1.0), 1e-9)
        most = min(MOST_S / item_s, MOST)
        pieces: deque[Piece] = deque()
        begin = 0
        while begin < len(items):
            size = max((len(items) - begin) / (PART * self.count), self.piece_s / item_s)
            end = begin + -(-max(1, round(min(size, most))) // grain) * grain
            span = range(begin, min(end, len(items)))
            pieces.append(Piece(kind, [items[i] for i in span], list(span), chunk))
            begin = end
        return pieces

    def _put(self, piece: Piece, results: Sequence[Any]) -> None:
        for place, result in zip(piece.places, results, strict=True):
            self._results[place] = result

    def _hand_out(self) -> None:
        """Give every process as much as it takes, but for the last piece, which is begun here at once."""
        for process in list(self.processes):
            while process.ready and process.free and len(self._left) > 1:
                piece, place = self._left.popleft(), process.free.pop()
                self._number += 1
                try:
                    process.give(piece, self._number, place)
                except Exception as error:  # whatever a method raises when it is pickled
                    self._left.appendleft(piece)
                    self._alone(f"{type(error).__name__}: {error}")
                    return
                self._under_way[self._number] = process, piece

    def _listen(self) -> None:
        """Take what has come in."""
        while not self._news.empty():
            self._hear(*self._news.get())

    def _hear(self, process: Helper, message: bytes) -> None:
        beat()
        if not message:
            self._bury(process)
            return
        how, *what = pickle.loads(message)
        if how == "ready":
            process.ready = True
            if all(one.ready for one in self.processes):  # who needs the files has them
                self._remove_files()
        elif how == "unfit":
            self._alone(*what)
        else:
            self._take(process, how, *what)

    def _take(self, process: Helper, how: str, number: int, place: int, data: bytes) -> None:
        """Take the results of a piece; one that failed is done again here, where it can be told well."""
        process.free.append(place)
        _, piece = self._under_way.pop(number, (process, None))
        if piece is None:
            return
        if how == "failed":
            self._left.appendleft(piece)
        else:
            self._put(piece, process.take(place, data))

    def _bury(self, process: Helper) -> None:
        """Go on without a process that has ended; its work is done again."""
        if process not in self.processes:
            return
        self.processes.remove(process)
        self._take_back([process])
        log.warning("%s has ended (%s); what it was at is done again", self.called, process.ended())
        process.close()

    def _alone(self, reason: str) -> None:
        """Go on without other processes."""
        log.info("one process does all the work: %s", reason)
        gone, self.processes = self.processes, []
        for process in gone:
            process.close()
        self._take_back(gone)
        self._remove_files()

    def _take_back(self, gone: Sequence[Helper]) -> None:
        lost = [number for number, (process, _) in self._under_way.items() if process in gone]
        self._left.extendleft(self._under_way.pop(number)[1] for number in lost)

    def _start(self) -> Start:
        """Lay the data down where everybody can read them."""
        known = Known(self.data.expert_losses()) if self._expert else None
        tensors = [
            *known_tensors(known),
            *(tensor for one in self.inner.members for tensor in tensors_of(one)),
        ]
        each = {id(tensor): tensor.nbytes for tensor in tensors}
        size = sum(-(-nbytes // ALIGNED) * ALIGNED for nbytes in each.values()) + ALIGNED
        if size > memory_bytes() / SHARE:
            raise MemoryError(f"no room to lay {size / 1e9:.3g} GB of data down for others")
        path = self._file(size)
        made = dumps(self._made(known), Desk(path, 0, size))
        deterministic = torch.are_deterministic_algorithms_enabled()
        return Start((path, size), ("", 0), torch.get_num_threads(), deterministic, beside.folders(), made)

    def _made(self, known: Known | None) -> Made:
        """Return what another process makes the same engine of."""
        return type(self.inner), self.inner.settings, self.task, replace(self.data, difficulty=known)

    def _own_desks(self, start: Start) -> Start:
        least, most = DESK_BYTES
        size = min(most, max(least, VECTORS * self.task.initial.nbytes))
        size = -(-size // ALIGNED) * ALIGNED
        return replace(start, desks=(self._file(2 * PLACES * size), size))

    def _file(self, size: int) -> str:
        path = reserve(size)
        self._files.append(path)
        return path

    def _remove_files(self) -> None:
        for path in self._files:
            with contextlib.suppress(OSError):  # where a file cannot be removed while somebody maps it
                Path(path).unlink()
        self._files.clear()


def tensors_of(engine: Engine) -> list[Tensor]:
    """Return what another process needs to make the same engine."""
    data = engine.data
    test = [tensor for one in data.test or () for tensor in leaves(one)]
    return [*leaves(data.x), data.y, *data.owned, *test, engine.task.initial]


def shared(engine: Engine, wanted: int | None) -> Engine:
    """Return an engine that shares its jobs between processes, where there is something to share.

    Args:
        engine: does the jobs.
        wanted: how many processes; None takes one for each core and client, or as many as the environment variable
            ``FEDSIM_WORKERS`` says, and starts them late.
    """
    if engine.task.device.type != "cpu":
        return engine
    if wanted is not None:
        return Workers(engine, wanted, 0.0) if wanted > 1 else engine
    said = os.environ.get("FEDSIM_WORKERS", "")
    count = int(said) if said.isdecimal() else cores()
    count = min(count, sum(len(one.data.owned) for one in engine.members))
    return Workers(engine, count) if count > 1 else engine


def known_tensors(known: Known | None) -> Iterable[Tensor]:
    """Return what an expert has said, where it is known."""
    return () if known is None else (known.losses,)
