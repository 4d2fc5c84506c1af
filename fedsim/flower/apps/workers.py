"""Processes that run an app's ClientApp, beside this one or in its place.

By default this process and one more for each other core share the messages. They begin to when ClientApps have run
here for :data:`LATE_S`, so a short run never pays for a start, and only if a message has taken :data:`PIECE_S` or more
until then, because it costs about a tenth of that to hand one over. A visit's result is the same in any process, so
nobody can see in a result who has done what.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

import torch
from flwr.app import Context, Message

from fedsim.flower.apps.applog import OUTSIDE, Line, heard, say
from fedsim.flower.apps.parcel import dumps, loads
from fedsim.flower.apps.project import Project
from fedsim.flower.apps.visit import Broken, Done
from fedsim.flower.apps.worker import Start
from fedsim.flower.records import isolate
from fedsim.learn.engines.desk import ALIGNED, reserve
from fedsim.learn.engines.process import Process
from fedsim.learn.engines.worker import PLACES
from fedsim.learn.engines.workers import LATE_S, PIECE_S
from fedsim.machine import cores
from fedsim.pulse import beat

DESK_BYTES = 2**20, 2**26
"""A desk is at least so large, and at most; what finds no room on it goes through the pipe."""

MESSAGES = 4
"""So many messages fit on a desk, if it does not become too large: the second is a client's state."""

MODULE = "fedsim.flower.apps.worker"

log = logging.getLogger(OUTSIDE)


class Died(Exception):
    """A process has died.

    Args:
        how: its exit code or signal.
        task: what it was at, or None.
    """

    def __init__(self, how: str, task: Task | None) -> None:
        super().__init__(how)
        self.how, self.task = how, task


class Unfit(Exception):
    """Why a ClientApp, a message or a reply of an app that asks for processes cannot be had in another one."""


@dataclass(frozen=True)
class Raised:
    """What a ClientApp raised in this process."""

    error: BaseException


@dataclass(eq=False)
class Task:
    """One visit at a client, for whoever has time.

    Args:
        node: the client.
        round: the round of the message, or -1.
        message: the message.
        context: what the ClientApp sees.
        key: of everything random.

    Attributes:
        result: what has come out of it, or None.
        said: what was said meanwhile; whoever fetches the result hears it.
    """

    node: int
    round: int
    message: Message
    context: Context
    key: int
    result: Done | Broken | Raised | None = field(default=None, init=False)
    said: list[Line] = field(default_factory=list, init=False)

    @property
    def given(self) -> tuple[Message, Context, int]:
        """Return what a process is told."""
        return self.message, self.context, self.key


Here = Callable[[Message, Context, int], Done | Raised]
"""Runs the ClientApp in this process."""


class Workers:
    """Other processes for an app's ClientApp.

    Args:
        count: how many.
        reference: where the ClientApp is.
        seed: the experiment's.
        shares: whether this process works, too; then the others start late, and whatever keeps the ClientApp out of
            them leaves this one alone.

    Attributes:
        processes: those that are there.
        given_up: whether this process is alone for good.
    """

    def __init__(self, count: int, reference: str, seed: int, shares: bool = False) -> None:
        self.count, self.shares = count, shares
        self.processes: list[Process] = []
        self._reference, self._seed = reference, seed
        self._begun = self.given_up = False
        self._spent_s, self._visits, self._number = 0.0, 0, 0
        self._news: queue.SimpleQueue[tuple[Process, bytes]] = queue.SimpleQueue()
        self._pending: deque[Task] = deque()
        self._at: dict[Process, dict[int, Task]] = {}

    def spend(self, seconds: float) -> None:
        """Take note of how long a visit has taken in this process."""
        self._spent_s += seconds
        self._visits += 1

    def is_open(self, size_bytes: Callable[[], int]) -> bool:
        """Tell whether to hand over visits, and start the processes when it is time.

        Args:
            size_bytes: says about how large the messages are.

        Raises:
            Unfit: if the app has asked for processes, and there can be none.
        """
        if not self._begun and (not self.shares or self._is_late()):
            self._begin(size_bytes())
        if not self.shares:
            return True
        self._listen()
        return any(process.ready for process in self.processes)

    def submit(self, task: Task) -> None:
        """Have a visit made by whoever has time; :meth:`fetch` returns the result."""
        self._pending.append(task)
        self._listen()
        self._hand_out()

    def fetch(self, task: Task, here: Here) -> Done | Broken | Raised:
        """Return what came out of a visit; this process makes visits itself meanwhile, if it shares them.

        Raises:
            Died: if a process has died at work.
            Unfit: if the app has asked for processes, and this cannot be done in one.
        """
        self._listen()
        self._hand_out()
        while task.result is None:
            if self.given_up or (self.shares and self._pending):
                mine = task if task in self._pending or self.given_up else self._pending[-1]
                with suppress(ValueError):
                    self._pending.remove(mine)
                with heard(mine.said, through=False) if mine is not task else nullcontext():
                    mine.result = here(*mine.given)
            else:
                self._hear(*self._news.get())
            self._listen()
            self._hand_out()
        say(task.said)
        return task.result

    def drop(self, task: Task) -> None:
        """Forget a visit that nobody wants any more, if nobody is at it."""
        with suppress(ValueError):
            self._pending.remove(task)

    def close(self) -> None:
        """End the processes; one that is at work for long is not waited for."""
        for process in self.processes:
            process.close()
        self.processes.clear()

    def _is_late(self) -> bool:
        return self._spent_s >= LATE_S and self._spent_s >= PIECE_S * self._visits

    def _begin(self, size_bytes: int) -> None:
        self._begun = True
        if self.shares and on_gpu():
            self._alone("it computes on a GPU")
            return
        least, most = DESK_BYTES
        size = -(-min(most, max(least, MESSAGES * size_bytes)) // ALIGNED) * ALIGNED
        try:
            for _ in range(self.count):
                start = Start(
                    (reserve(2 * PLACES * size), size), self._reference, self._seed, torch.get_num_threads()
                )
                self.processes.append(Process(start, self._news, MODULE))
        except OSError as error:
            self._alone(f"there is no room for others ({error})")
        self._at = {process: {} for process in self.processes}

    def _hand_out(self) -> None:
        """Give every process something to do; the next thing, too, where enough is left for all."""
        for most in range(PLACES):
            for process in list(self.processes):
                if self.given_up:
                    return
                enough = not most or len(self._pending) > len(self.processes) + self.shares
                ready = process.ready or not self.shares
                if self._pending and ready and enough and len(self._at[process]) <= most and process.free:
                    self._hand(process, self._pending.popleft())

    def _hand(self, process: Process, task: Task) -> None:
        place = process.free.pop()
        incoming = process.desks[place][0]
        incoming.clear()
        try:
            given = dumps(task.given, incoming)
        except Exception as error:  # whatever an app's own objects raise
            self._pending.appendleft(task)
            self._alone(f"a message cannot be sent ({type(error).__name__}: {error})")
            return
        self._number += 1
        self._at[process][self._number] = task
        process.tell(pickle.dumps((self._number, place, given)))

    def _listen(self) -> None:
        """Take what has come in."""
        while not self._news.empty():
            self._hear(*self._news.get())

    def _hear(self, process: Process, message: bytes) -> None:
        beat()
        if process not in self.processes:  # its end has been dealt with
            return
        if not message:
            self._bury(process)
            return
        how, *what = pickle.loads(message)
        if how == "ready":
            process.ready = True
        elif how == "unfit":
            self._alone(*what)
        else:
            number, place, data, said = what
            found = loads(data, process.desks[place][1])
            if isinstance(found, Done) and found.content is not None:
                found = found._replace(content=isolate(found.content))
            task = self._at[process].pop(number)
            task.said, task.result = said, found
            process.free.append(place)

    def _bury(self, process: Process) -> None:
        """Go on without a process that has died before it was at work; otherwise say whom it was at work for."""
        how, tasks = process.ended(), list(self._at[process].values())
        if self.shares and not process.ready:
            self._alone(f"a worker process has died ({how})")
            return
        raise Died(how, tasks[0] if tasks and process.ready else None)

    def _alone(self, reason: str) -> None:
        """Go on without other processes, if nobody has asked for them."""
        if not self.shares:
            raise Unfit(reason)
        log.warning("one process runs all ClientApps: %s", reason)
        self.given_up = True
        self.close()
        self._at.clear()
        self._pending.clear()


@contextmanager
def workers_of(project: Project, nodes: int, seed: int) -> Iterator[Workers | None]:
    """Let an app have as many processes as it asks for, or one for each core; None if there is nothing to share.

    Args:
        project: the app. If its ``workers`` is None, this process is one of them.
        nodes: how many clients there are; more processes would be of no use by default.
        seed: the experiment's.
    """
    wanted = project.settings.workers
    count = min(_usual(), nodes) - 1 if wanted is None else wanted
    if count < 1:
        yield None
        return
    workers = Workers(count, project.clientapp, seed, shares=wanted is None)
    try:
        yield workers
    finally:
        workers.close()


def on_gpu() -> bool:
    """Tell whether anything in this process computes on a GPU."""
    return bool(torch.cuda.is_available() and torch.cuda.memory_reserved())


def _usual() -> int:
    """Return how many processes there are by default: one for each core, or what ``FEDSIM_WORKERS`` says."""
    said = os.environ.get("FEDSIM_WORKERS", "")
    return int(said) if said.isdecimal() else cores()
