"""A node: it computes, sends and receives, while it is online."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import simpy

from fedsim.world.clock import Clock, Process
from fedsim.world.inbox import Inbox, Match
from fedsim.world.log import EventLog
from fedsim.world.net.broadcast import Broadcast
from fedsim.world.net.network import Message, Network, Transfer

PICOS_PER_MICRO = 1_000_000

LATER: dict[str, Callable[[], Any]] = {"transfers": dict, "_jobs": list}
"""Attributes of a node that are made when they are first asked for."""


class Corruption(NamedTuple):
    """How what a node sends is corrupted; see :func:`fedsim.world.faults.nodes.corrupt`."""

    kind: str
    scale: float
    seed: int
    checked: bool


class Node:
    """One participant of the simulated world.

    It is online while it is present, as churn has it, no fault blocks it, and it has not crashed. Going offline
    interrupts its computations, kills its transfers and drops what arrives.

    Args:
        id: a small integer, stable over runs.
        role: ``"client"``, ``"server"`` or ``"peer"``.
        clock: simulated time.
        log: the event log.
        network: carries its messages.
        ps_per_sample: how long one per-sample gradient takes it, in picoseconds.
    """

    __slots__ = (
        "_back",
        "_blocks",
        "_busy_us",
        "_inbox",
        "_jobs",
        "_online_us",
        "_since_us",
        "clock",
        "corruptions",
        "crashed",
        "goodbye",
        "heard",
        "id",
        "log",
        "network",
        "on_change",
        "on_message",
        "online",
        "present",
        "ps_per_sample",
        "role",
        "slowness",
        "transfers",
        "wasted",
        "wasted_us",
        "work",
    )

    transfers: dict[Transfer | Broadcast, None]
    _jobs: list[Job]

    def __init__(
        self, id: int, role: str, clock: Clock, log: EventLog, network: Network, ps_per_sample: int = 0
    ) -> None:
        self.id, self.role = id, role
        self.clock, self.log, self.network = clock, log, network
        self.ps_per_sample = ps_per_sample
        self.online = self.present = True
        self.crashed = False
        self.slowness: int | Fraction = 1
        self.corruptions: tuple[Corruption, ...] = ()
        self.on_message: Callable[[Message], None] | None = None
        self.on_change: tuple[Callable[[Node], None], ...] = ()
        self.work = self.wasted = self.wasted_us = 0
        self.goodbye: Callable[[], Process] | None = None
        self.heard = 0
        self._blocks = 0
        self._inbox: Inbox | None = None  # made with the first message or reader
        self._back: simpy.Event | None = None
        self._online_us = self._since_us = self._busy_us = 0

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Make what most nodes of a large world never need, when it is first asked for."""
            if name not in LATER:
                raise AttributeError(f"{self!r} has no attribute {name!r}", name=name, obj=self)
            setattr(self, name, LATER[name]())
            return getattr(self, name)

    def __repr__(self) -> str:
        return f"<{self.role} {self.id}>"

    def compute(self, work: int, round: int = -1) -> Job:
        """Work for a while; jobs queue up, one runs at a time.

        Args:
            work: the number of per-sample gradients.
            round: the round it is for.

        Returns:
            An event whose value is True when the work is done, or False when the node went offline before that.
        """
        job = Job(self, work, round)
        if self.online:
            self._jobs.append(job)
            if len(self._jobs) == 1:
                job.begin()
        else:
            job.succeed(False)
        return job

    def send(self, to: Node, message: Message, on_end: Callable[[bool], None] | None = None) -> None:
        """Send a message; see :meth:`Network.send`. A node that is offline sends nothing."""
        if self.online:
            self.network.send(
                self, to, message if message.src == self.id else message._replace(src=self.id), on_end
            )
        elif on_end is not None:
            on_end(False)

    def send_all(
        self, to: Iterable[Node], message: Message, on_end: Callable[[bool], None] | None = None
    ) -> None:
        """Send a message to several nodes, as one :meth:`send` after the other; see :meth:`Network.send_all`."""
        nodes = tuple(to)
        if self.online and on_end is None:
            own = message if message.src == self.id else message._replace(src=self.id)
            self.network.send_all(self, nodes, own)
        else:
            for node in nodes:
                self.send(node, message, on_end)

    def receive(self, match: Match | None = None) -> simpy.Event:
        """Wait for the next message that matches; the event's value is the message."""
        return self._open().receive(match or (lambda _: True))

    def gather(
        self, kind: str, round: int, senders: Iterable[int], timeout_us: int | None = None
    ) -> simpy.Event:
        """Wait for one message of a kind and a round from each of several nodes.

        Args:
            kind: the messages' kind.
            round: the messages' round; when the event has happened, messages of this or an earlier round that
                nobody gathers are dropped as late.
            senders: the nodes to wait for.
            timeout_us: how long to wait at most; None waits for ever.

        Returns:
            An event whose value maps the senders that were heard to their messages, in the order of ids.
        """
        return self._open().gather(kind, round, frozenset(senders), timeout_us)

    def deliver(self, message: Message) -> None:
        """Take a message from the network."""
        if message.round > self.heard:
            self.heard = message.round
        if self.on_message is not None:
            self.on_message(message)
        else:
            (self._inbox or self._open()).put(message)

    def _open(self) -> Inbox:
        """Return the node's inbox, which most nodes never need where there is a server."""
        if self._inbox is None:
            self._inbox = Inbox(self.id, self.clock, self.log)
        return self._inbox

    @property
    def stuck(self) -> bool:
        """Whether it does nothing and waits for nothing but messages without a timeout, or has crashed."""
        waits = self._inbox is not None and self._inbox.stuck
        return self.crashed or not (self._jobs or self._back or not waits or self.network.busy(self))

    @property
    def busy_us(self) -> int:
        """How long it has been computing until now, in microseconds."""
        start_us = self._jobs[0].start_us if self._jobs else None
        return self._busy_us + (0 if start_us is None else self.clock.now - start_us)

    def online_us(self) -> int:
        """Return how long it has been online until now, in microseconds."""
        return self._online_us + (self.clock.now - self._since_us if self.online else 0)

    def spend(self, work: int, wasted: int = 0) -> None:
        """Count per-sample gradients that have been computed, and how many turned out to be of no use."""
        effort = self.network.effort
        self.work += work
        self.wasted += wasted
        effort.work += work
        effort.wasted += wasted

    def waiting_for(self) -> str:
        """Say what this node waits for, for a diagnosis."""
        return "to come back online" if not self.online else self._open().waiting_for()

    def set_online(self, online: bool) -> None:
        """Leave or come back, as churn has it; a crashed node never comes back."""
        self.present = online
        self._update()

    def block(self) -> None:
        """Keep the node offline until it is unblocked as often as it was blocked."""
        self._blocks += 1
        self._update()

    def unblock(self) -> None:
        """Take back one :meth:`block`; the node comes back if nothing else keeps it offline."""
        self._blocks -= 1
        self._update()

    def crash(self) -> None:
        """Go offline for good."""
        if self.crashed:
            return
        self.crashed = True
        self.log.add("crash", self.id)
        self._update()

    def retire(self) -> Process:
        """Go offline for good, after finishing what it has begun.

        It receives what is on its way to it, works off what it has then, and sends what comes of that. What arrives
        later is not waited for, so that it goes however busy the others keep it. Before all that, it says ``goodbye``
        if it has something to say.
        """
        clock = self.clock
        if self.goodbye is not None:
            yield from self.goodbye()
        yield clock.all_of([_end(transfer) for transfer in self.network.transfers(self)])
        yield self._end_of_moment()
        yield clock.all_of(list(self._jobs))
        yield self._end_of_moment()
        yield clock.all_of([_end(t) for t in self.network.transfers(self) if t.src is self])
        self.crashed = True
        self._update()

    def _end_of_moment(self) -> simpy.Event:
        """Return an event that happens when everybody has reacted to what happens in this microsecond."""
        event = self.clock.event()
        self.clock.last(event.succeed)
        return event

    def slow(self, factor: Fraction) -> None:
        """Let work take so many times as long as it does now; what is left of a running job, too."""
        if self._jobs:
            self._jobs[0].stretch(self.slowness * factor)
        self.slowness *= factor
        if self.slowness == 1:
            self.slowness = 1  # whole numbers are quicker

    def _update(self) -> None:
        online = self.present and not self._blocks and not self.crashed
        if online != self.online:
            self._switch(online)

    def _switch(self, online: bool) -> None:
        self._online_us = self.online_us()
        self._since_us = self.clock.now
        self.online = online
        self.network.switches += 1
        self.log.add("online" if online else "offline", self.id)
        if online:
            self._come_back()
        else:
            self._leave()
        for call in self.on_change:
            call(self)

    def back(self) -> simpy.Event:
        """Return an event that happens when the node is online (at once if it is)."""
        if self.online:
            return self.clock.event().succeed()
        self._back = self._back or self.clock.event()
        return self._back

    def _come_back(self) -> None:
        if self._back is not None:
            self._back.succeed()
            self._back = None

    def _leave(self) -> None:
        self.network.cut(self)
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.abort()

    def _next(self) -> None:
        self._jobs.pop(0)
        if self._jobs:
            self._jobs[0].begin()


def _end(transfer: Transfer) -> simpy.Event:
    """Return an event that happens when a transfer has been delivered or lost."""
    event, tell = transfer.src.clock.event(), transfer.on_end

    def on_end(delivered: bool) -> None:
        if tell is not None:
            tell(delivered)
        event.succeed()

    transfer.on_end = on_end
    return event


class Job(simpy.Event):
    """A computation of a node; its value says whether it was finished."""

    def __init__(self, node: Node, work: int, round: int) -> None:
        super().__init__(node.clock)
        self.node, self.amount, self.round = node, work, round
        self.length_us = -(-work * node.ps_per_sample // PICOS_PER_MICRO)
        self.start_us: int | None = None
        self._left: int | Fraction = self.length_us  # at the normal pace, at the last change of pace
        self._since_us = self._due_us = 0

    def begin(self) -> None:
        """Start working."""
        node = self.node
        self.start_us = self._since_us = node.clock.now
        node.log.add("compute", node.id, size=self.amount, round=self.round)
        self._plan(node.slowness)

    def stretch(self, slowness: int | Fraction) -> None:
        """Change the pace from now on, just before the node's slowness changes."""
        self._left -= self._done()
        self._since_us = self.node.clock.now
        self._plan(slowness)

    def _plan(self, slowness: int | Fraction) -> None:
        left = self._left
        delay_us = left if slowness == 1 and isinstance(left, int) else math.ceil(left * slowness)
        self._due_us = self.node.clock.now + delay_us
        self.node.clock.after(delay_us, self._finish, self._due_us)

    def _done(self) -> Fraction:
        """Return what has been done since the last change of pace, in microseconds at the normal pace."""
        return min(Fraction(self._left), Fraction(self.node.clock.now - self._since_us) / self.node.slowness)

    def abort(self) -> None:
        """Stop because the node went offline; what had been done is wasted."""
        node = self.node
        if self.start_us is not None:
            done_us = self.length_us - self._left + self._done()
            pace = node.ps_per_sample
            part = min(self.amount, int(done_us * PICOS_PER_MICRO // pace)) if pace else 0
            node._busy_us += node.clock.now - self.start_us
            node.wasted_us += node.clock.now - self.start_us
            node.spend(part, part)
            node.log.add("aborted", node.id, size=part, round=self.round)
        self.succeed(False)

    def cancel(self) -> None:
        """Stop because nobody wants the result any more; what had been done is wasted, and the next job begins."""
        if self.triggered:
            return
        jobs = self.node._jobs
        self.abort()
        jobs.remove(self)
        if jobs and jobs[0].start_us is None:
            jobs[0].begin()

    def _finish(self, due_us: int) -> None:
        if self.triggered or due_us != self._due_us or self.start_us is None:
            return
        node = self.node
        node._busy_us += node.clock.now - self.start_us
        node.spend(self.amount)
        node.log.add("done", node.id, size=self.amount, round=self.round)
        node._next()
        self.succeed(True)
