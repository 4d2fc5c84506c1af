"""A Flower Grid on the event plane: any Flower strategy runs in simulated time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.flower import compat
from fedsim.flower.lazy import together
from fedsim.flower.records import Lift, isolate, wire_bytes
from fedsim.flower.simulate.corrupt import corrupt
from fedsim.flower.simulate.failures import refuse
from fedsim.flower.simulate.instruction import Clients, Watch, round_of
from fedsim.methods.server import trains
from fedsim.running.exchange import Exchange
from fedsim.running.instruction import Answer, Instruction, Wait
from fedsim.running.servers import Dropped
from fedsim.world.node import Node
from fedsim.world.world import World

CODES = {
    "unreachable": compat.NODE_UNAVAILABLE,
    "expired": compat.UNAVAILABLE,
}
"""Flower's error codes by how an instruction ends; a client's own error is a whole Error."""


class Line(Exchange):
    """Lets clients work while a server waits without disturbing the generators that it draws from."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._spare = np.random.MT19937(0)  # clients seed it

    def wait(self, wait: Wait, timeout_s: float | None = None) -> None:
        """Let time pass until what is waited for has happened, or until the timeout."""
        with compat.undisturbed(self._spare):
            super().wait(wait, timeout_s)


class SimGrid(Grid):
    """Sends a server's messages through the simulated world and brings back the replies.

    Waiting advances the simulated clock. A client that is offline, or goes offline before its reply is in, gives an
    error reply (code 5, as a SuperLink does) once the server has noticed, and so does one whose message was lost; a
    slow one gives no reply in time. See :class:`fedsim.running.exchange.Exchange`, which carries the messages.

    Args:
        world: clients 0 to n-1 and the server, which is the last node.
        clients: answers the messages.
        detect_s: how long the server takes to notice that a client is offline.
        time_limit_s: when to end the run, or None.
        quorum: the share of the clients asked whose replies are enough; later ones are dropped.
        retries: how often to ask a client again that is online but whose message or reply was lost.
        watches: told what is sent and what comes back.
        drop: put an error in the place of a reply that cannot be computed, or has NaN in it, instead of raising.
        lift: makes pieces of one vector of the arrays that a server sends; None is the usual way.

    A message whose time to live is shorter than Flower's 12 hours gives an error reply (code 3) when it is over.
    """

    _line: type[Line] = Line

    def __init__(
        self,
        world: World,
        clients: Clients,
        detect_s: float = 0.0,
        time_limit_s: float | None = None,
        quorum: float = 1.0,
        retries: int = 0,
        watches: Sequence[Watch] = (),
        drop: bool = False,
        lift: Lift | None = None,
    ) -> None:
        translated = _Translated(clients, watches)
        self.line = self._line(world, translated, detect_s, time_limit_s, quorum, retries)
        self.world, self.clients, self.server = world, clients, self.line.server
        self.dropped: list[Dropped] = []
        self._watches, self._drop, self._lift = watches, drop, lift
        self._open: dict[str, Instruction] = {}
        self._count = 0
        self._run = compat.make_run()

    @property
    def updates(self) -> int:
        """Client updates that have come back."""
        return self.line.updates

    def set_run(self, run: Any) -> None:
        """Set the description of the run."""
        self._run = run

    @property
    def run(self) -> Any:
        """The description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; Flower's own constructor does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the clients that are online, sorted."""
        return self.line.online()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Returns:
            Their ids, with which the replies can be pulled.
        """
        made = self._write(messages)
        self.line.push(made)
        self._watch(made)
        return [one.payload.metadata.message_id for one in made]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; if there are none yet, wait for the next one."""
        return self._next([self._open[id] for id in message_ids if id in self._open])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies.

        Args:
            messages: what to send.
            timeout: how many simulated seconds to wait at most; None waits for all.

        Returns:
            The replies in the order of their arrival; those that are not in by then are dropped.
        """
        made = self._write(messages)
        replies = self._read(self.line.all(made, timeout, sent=self._watch))
        for one in made:
            self._open.pop(one.payload.metadata.message_id, None)
        return replies

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass; Flower's strategies call this while too few clients are online.

        Raises:
            StalledError: if nobody is left who could come, or after so long a wait that it must be a mistake.
        """
        self.line.sleep(seconds)

    def _next(self, wanted: Sequence[Instruction], timeout_s: float | None = None) -> list[Message]:
        return self._read(self.line.next(wanted, timeout_s))

    def _watch(self, made: Sequence[Instruction]) -> None:
        for watch in self._watches if made else ():
            watch.sent([one.payload for one in made])

    def _write(self, messages: Iterable[Message]) -> list[Instruction]:
        """Make instructions of messages; those of one round share their arrays."""
        lifted: dict[int, ArrayRecord] = {}
        sizes: dict[int, tuple[int, int]] = {}
        return [self._instruction(message, lifted, sizes) for message in list(messages)]

    def _instruction(
        self, message: Message, lifted: dict[int, ArrayRecord], sizes: dict[int, tuple[int, int]]
    ) -> Instruction:
        about, given = message.metadata, message.content
        known = sizes.get(id(given))
        round = round_of(given) if known is None else known[1]
        node = self.line.node(about.dst_node_id, round)
        self._count += 1
        name = str(self._count)
        compat.name_message(message, name, self.server.id)
        content = isolate(given, lifted, self._lift)
        copy = compat.delivered(message, content)
        if known is None:
            known = sizes[id(given)] = wire_bytes(content), round
        ttl_s = about.ttl if about.ttl < compat.DEFAULT_TTL_S else None
        made = Instruction(node, copy, known[0], round, trains(about.message_type), ttl_s)
        self._open[name] = made
        return made

    def _read(self, ended: Sequence[Instruction]) -> list[Message]:
        """Make replies of instructions that have ended."""
        for one in ended:
            self._open.pop(one.payload.metadata.message_id, None)
        for one, why in (refuse(ended, self.world.clock.now_s) if self._drop else {}).items():
            self.dropped.append(why)
            self.line.discard(one)
            one.end, one.content = "refused", Error(compat.RAISED, why.reason)
        replies = [_reply(one) for one in ended]
        together(reply.content for reply in replies if reply.has_content())
        for watch in self._watches if replies else ():
            watch.pulled(replies)
        return replies


class _Translated:
    """Clients that are told Flower messages."""

    def __init__(self, clients: Clients, watches: Sequence[Watch]) -> None:
        self._clients, self._watches = clients, watches

    def work(self, client: int, payload: Message) -> int:
        return self._clients.work(client, payload)

    def answer(self, client: int, payload: Message, sim_time_s: float) -> Answer:
        made = self._clients.answer(client, payload, sim_time_s)
        if isinstance(made, Error):
            return Answer(made, len(made.reason or ""), refused=True)
        return _answer(made)

    def corrupt(self, answer: Answer, node: Node, round: int) -> Answer:
        return _answer(corrupt(answer.content, node, round))

    def aborted(self, client: int, payload: Message) -> None:
        for watch in self._watches:
            watch.aborted(payload)


def _answer(content: RecordDict) -> Answer:
    return Answer(content, wire_bytes(content))


def _reply(ended: Instruction) -> Message:
    """Return what a server gets of an instruction."""
    message: Message = ended.payload
    id = f"{message.metadata.message_id}-reply"
    if ended.end == "answered":
        return compat.answered(message, id, ended.node.id, ended.content)
    if ended.end == "refused":
        reply = Message(ended.content, reply_to=message)
    else:
        reply = Message(Error(CODES[str(ended.end)], ended.content), reply_to=message)
    compat.name_message(reply, id, ended.node.id)
    return reply
