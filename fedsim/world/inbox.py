"""Messages that have arrived at a node, and those who wait for them."""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge

import simpy

from fedsim.world.clock import Clock, Timer
from fedsim.world.log import EventLog
from fedsim.world.net.messages import Message

Match = Callable[[Message], bool]
Item = tuple[int, Message]  # with the number of its arrival


class Inbox:
    """Messages that have arrived and wait to be read, and readers who wait for messages.

    Args:
        node: whose they are.
        clock: simulated time.
        log: where messages that come too late are written down.
    """

    __slots__ = ("_count", "_gathers", "_items", "_log", "_node", "_read", "_readers", "clock")

    def __init__(self, node: int, clock: Clock, log: EventLog) -> None:
        self._node, self.clock, self._log = node, clock, log
        self._items: dict[tuple[str, int], list[Item]] = {}
        self._count = 0
        self._readers: list[tuple[Match, simpy.Event]] = []
        self._gathers: list[Gather] = []
        self._read: dict[str, int] = {}

    def put(self, message: Message) -> None:
        """Hand a message to somebody who waits for it, or keep it."""
        src, round, kind = message.src, message.round, message.kind
        for gather in self._gathers:
            if round == gather.round and src in gather.missing and kind == gather.kind:
                gather.missing.remove(src)
                gather.heard[src] = message
                if not gather.missing:
                    gather.close()
                return
        if 0 <= round <= self._read.get(kind, -1):
            self._late(message)
            return
        if self._readers and self._hand_over(message):
            return
        self._count += 1
        try:
            self._items[kind, round].append((self._count, message))
        except KeyError:
            self._items[kind, round] = [(self._count, message)]

    def _hand_over(self, message: Message) -> bool:
        """Give a message to the first reader that it matches, and say whether there is one."""
        for index, (match, event) in enumerate(self._readers):
            if match(message):
                del self._readers[index]
                event.succeed(message)
                return True
        return False

    def _late(self, message: Message) -> None:
        self._log.add("late", self._node, message.src, message.size_bytes, message.round)

    def receive(self, match: Match) -> simpy.Event:
        """See :meth:`Node.receive`."""
        event = self.clock.event()
        for item in merge(*self._items.values()):
            if match(item[1]):
                self._remove(item)
                return event.succeed(item[1])
        self._readers.append((match, event))
        return event

    def _remove(self, item: Item) -> None:
        key = item[1].kind, item[1].round
        self._items[key].remove(item)
        if not self._items[key]:
            del self._items[key]

    def gather(self, kind: str, round: int, senders: frozenset[int], timeout_us: int | None) -> simpy.Event:
        """See :meth:`Node.gather`."""
        gather = Gather(self, kind, round, senders)
        items = self._items.pop((kind, round), None)
        if items is not None:
            kept = [item for item in items if not gather.takes(item[1])]
            if kept:
                self._items[kind, round] = kept
        self._gathers.append(gather)
        if not gather.missing:
            gather.close()
        elif timeout_us is not None:
            gather.timer = self.clock.timer(timeout_us, gather.close)
        return gather

    def close(self, gather: Gather) -> None:
        """Forget a finished gather and treat what nobody took for it as late."""
        self._gathers.remove(gather)
        kind = gather.kind
        self._read[kind] = latest = max(self._read.get(kind, -1), gather.round)
        past = [key for key in self._items if key[0] == kind and 0 <= key[1] <= latest]
        if past:
            for _, message in sorted(item for key in past for item in self._items.pop(key)):
                self._late(message)

    @property
    def stuck(self) -> bool:
        """Whether somebody reads and only a message could help."""
        waiting = bool(self._gathers or self._readers)
        return waiting and not any(gather.timer for gather in self._gathers)

    def waiting_for(self) -> str:
        """Say whom the readers wait for."""
        waits = [f"{g.kind} of round {g.round} from {sorted(g.missing)}" for g in self._gathers]
        return ", ".join(waits) or ("a message" if self._readers else "nothing")


class Gather(simpy.Event):
    """Waits for one message from each of several nodes."""

    def __init__(self, inbox: Inbox, kind: str, round: int, senders: frozenset[int]) -> None:
        super().__init__(inbox.clock)
        self._inbox, self.kind, self.round = inbox, kind, round
        self.missing = set(senders)
        self.timer: Timer | None = None
        self.heard: dict[int, Message] = {}

    def takes(self, message: Message) -> bool:
        """Take a message of its kind and round that it waits for, and say whether it does."""
        if message.src not in self.missing:
            return False
        self.missing.remove(message.src)
        self.heard[message.src] = message
        return True

    def close(self) -> None:
        """Finish with what has been heard."""
        if not self.triggered:
            if self.timer is not None:
                self.timer.cancel()
            self._inbox.close(self)
            self.succeed({sender: self.heard[sender] for sender in sorted(self.heard)})
