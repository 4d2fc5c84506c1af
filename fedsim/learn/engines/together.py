"""Runs that advance together: whatever is ready in any of them is computed at once.

Each run has a thread of its own, and only one of them goes on at a time, until it needs something computed or has
ended. When all of them wait, what they wait for is computed together, and they go on in turn. A job's result depends on
the job alone, so that each run ends as it would have ended by itself, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from fedsim.learn.engines.base import Around, Engine, TrainJob
from fedsim.learn.engines.many import Many, placed
from fedsim.learn.engines.own import Own
from fedsim.learn.engines.ray import Cluster
from fedsim.learn.engines.workers import shared
from fedsim.learn.local import State
from fedsim.learn.several import X

GROUP: ContextVar[Group | None] = ContextVar("GROUP", default=None)
"""The group of the run that goes on at this moment."""


@dataclass
class Ask:
    """What a run waits for.

    Args:
        seat: whose it is.
        kind: ``"train"`` or ``"evaluate"``.
        items: jobs, or weight vectors.
        chunk: how many samples are evaluated at a time.
    """

    seat: Seat
    kind: str
    items: Sequence[Any]
    chunk: int = 0

    def alone(self) -> list[Any]:
        """Compute it with the run's own engine."""
        engine = self.seat.inner
        if self.kind == "train":
            return engine.train(self.items)
        assert engine.data.test is not None  # only what is on the held-out data waits for others
        return engine.evaluate(self.items, *engine.data.test, self.chunk)


class Seat(Around):
    """A run's engine in a group: what it is asked for is computed together with what others are asked for.

    Args:
        inner: the run's own engine.
        group: the runs.
    """

    def __init__(self, inner: Engine, group: Group) -> None:
        super().__init__(inner)
        self._group = group

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs; those that ask an expert stay here, since others are not told what he thinks."""
        if any(job.update.order is not None and job.update.order.score == "expert" for job in jobs):
            return self.inner.train(jobs)
        return self._group.ask(Ask(self, "train", jobs))

    def evaluate(self, weights: Sequence[Tensor], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Judge weight vectors; those on the held-out data together with others."""
        if not self.data.is_test(x):
            return self.inner.evaluate(weights, x, y, chunk)
        return self._group.ask(Ask(self, "evaluate", weights, chunk))

    def close(self) -> None:
        """Give back what the run's own engine holds."""
        self.inner.close()


class Turn:
    """A run in a thread of its own, which goes on only when it is told to.

    Args:
        do: the run.
    """

    def __init__(self, do: Callable[[], Any]) -> None:
        self._do, self._go, self._back = do, threading.Semaphore(0), threading.Semaphore(0)
        self.ask: Ask | None = None
        self.answer: list[Any] | BaseException = []
        self.result: Callable[[], Any] | None = None
        self._own = Own.fresh()
        run = copy_context().run
        self.thread = threading.Thread(target=run, args=(self._run,), name="fedsim-run", daemon=True)
        self.thread.start()

    def go(self) -> None:
        """Let it go on until it waits for something, or has ended."""
        self.ask = None
        self._go.release()
        self._back.acquire()

    def wait(self, ask: Ask) -> list[Any]:
        """Wait, in the run's own thread, until something is computed, and return it."""
        self.ask = ask
        self._own.aside()
        self._back.release()
        self._go.acquire()
        self._own.back()
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def _run(self) -> None:
        self._go.acquire()
        self._own.back()
        try:
            if isinstance(self.answer, BaseException):  # all was stopped before it began
                raise self.answer
            found = self._do()
            self.result = lambda: found
        except BaseException as error:  # it is told to whoever asks for the result
            self.result = _raising(error)
        self._back.release()


def _raising(error: BaseException) -> Callable[[], Any]:
    def tell() -> Any:
        raise error

    return tell


class Group:
    """Runs that advance together.

    Args:
        runs: what to call for each of them.

    Attributes:
        rounds: how often something was computed together.
        shared: how many processes it was shared between at most.
    """

    def __init__(self, runs: Sequence[Callable[[], Any]]) -> None:
        before = GROUP.set(self)
        try:
            self._turns = [Turn(run) for run in runs]
        finally:
            GROUP.reset(before)
        self._engine: Engine | None = None
        self._numbers: dict[Seat, int] = {}
        self.workers: int | None = None
        self.cluster: Cluster | None = None
        self.rounds = self.shared = 0

    def seat(self, engine: Engine, workers: int | None, cluster: Cluster | None = None) -> Engine:
        """Return what a run of the group computes with; ``workers`` is how many processes it may use."""
        self.cluster = cluster or self.cluster
        if workers is not None:
            self.workers = max(workers, self.workers or 1)
        return Seat(engine, self)

    def ask(self, ask: Ask) -> list[Any]:
        """Let a run wait for what it needs."""
        own = threading.current_thread()
        return next(turn for turn in self._turns if turn.thread is own).wait(ask)

    def results(self) -> Iterator[tuple[int, Callable[[], Any]]]:
        """Let all runs come to their ends, and yield the number of each that has, and what returns its result."""
        left, outside = dict(enumerate(self._turns)), Own()
        try:
            while left:
                for number, turn in list(left.items()):
                    turn.go()
                    if turn.result is not None:
                        del left[number]
                        outside.back()
                        yield number, turn.result
                self._compute([turn for turn in left.values() if turn.ask is not None])
        finally:
            for turn in left.values():  # all of them write down how far they have come
                turn.answer = KeyboardInterrupt()
                while turn.result is None:
                    turn.go()
            outside.back()
            if self._engine is not None:
                self._engine.close()

    def _compute(self, turns: Sequence[Turn]) -> None:
        """Compute what runs wait for; where something fails, each by itself, so that its own run hears of it."""
        asks = [turn.ask for turn in turns if turn.ask is not None]
        if not asks:
            return
        self.rounds += 1
        engine = self._all([ask.seat for ask in asks])
        for turn in turns:
            turn.answer = []
        try:
            self._together(engine, turns)
        except Exception:
            for turn in turns:
                assert turn.ask is not None  # it waits
                try:
                    turn.answer = turn.ask.alone()
                except Exception as error:
                    turn.answer = error

    def _all(self, seats: Sequence[Seat]) -> Engine:
        """Return an engine of all runs; who comes later, such as a run that begins anew, is not among them."""
        if self._engine is None:
            first, engines = seats[0].inner, [seat.inner for seat in seats]
            self._numbers = {seat: number for number, seat in enumerate(seats)}
            many = Many(first.task, first.data, engines=engines)
            alike = all(one.task.device.type == "cpu" for one in engines)
            if self.cluster is not None:
                self._engine = self.cluster.around(many)
            else:
                self._engine = shared(many, self.workers if alike else 1)
            self.shared = self._engine.count
        return self._engine

    def _together(self, engine: Engine, turns: Sequence[Turn]) -> None:
        known: list[tuple[Turn, Ask]] = []
        for turn in turns:
            assert turn.ask is not None  # it waits
            if turn.ask.seat in self._numbers:
                known.append((turn, turn.ask))
            else:
                turn.answer = turn.ask.alone()
        known.sort(key=lambda pair: (pair[1].kind, pair[1].chunk))
        for (kind, chunk), some in groupby(known, key=lambda pair: (pair[1].kind, pair[1].chunk)):
            asked = list(some)
            items: list[Any] = []
            for _, ask in asked:
                number = self._numbers[ask.seat]
                items += [placed(one, number) if kind == "train" else (number, one) for one in ask.items]
            data = engine.data.test if kind == "evaluate" else None
            results: list[Any] = engine.train(items) if data is None else engine.evaluate(items, *data, chunk)
            for turn, ask in asked:
                turn.answer, results = results[: len(ask.items)], results[len(ask.items) :]


def seated(engine: Engine, workers: int | None, cluster: Cluster | None = None) -> Engine:
    """Return what a run computes with: with others together, where it is in a group, or else shared between processes.

    Args:
        engine: does the jobs.
        workers: how many processes; see :func:`fedsim.learn.engines.workers.shared`.
        cluster: whose processors share the jobs, in place of processes of this machine.
    """
    group = GROUP.get()
    if group is not None:
        return group.seat(engine, workers, cluster)
    return shared(engine, workers) if cluster is None else cluster.around(engine)
