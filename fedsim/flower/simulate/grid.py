"""A Flower Grid on the event plane: any Flower strategy runs in simulated time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedsim.errors import FedsimError, RunError, StalledError
from fedsim.flower import compat
from fedsim.flower.records import isolate, together, wire_bytes
from fedsim.flower.simulate.corrupt import corrupt
from fedsim.flower.simulate.failures import Dropped, refuse
from fedsim.flower.simulate.instruction import Clients, Instruction, Watch, round_of, trains
from fedsim.flower.simulate.wait import Look, Wait
from fedsim.world.clock import MICRO, micros
from fedsim.world.net import network
from fedsim.world.node import Job, Node
from fedsim.world.world import World

PATIENCE_S = 10_000_000.0
IDLE_CALLS = 10_000


class TimeUp(FedsimError):
    """The experiment's simulated time is over; ends the strategy's loop."""


class SimGrid(Grid):
    """Sends a server's messages through the simulated world and brings back the replies.

    Waiting advances the simulated clock. A client that is offline, or goes offline before its reply is in, gives an
    error reply (code 5, as a SuperLink does) once the server has noticed, and so does one whose message was lost; a
    slow one gives no reply in time. While the server itself is offline, its strategy stands still.

    Args:
        world: clients 0 to n-1 and the server, which is the last node.
        clients: answers the messages.
        detect_s: how long the server takes to notice that a client is offline.
        time_limit_s: when to end the run, or None.
        quorum: the share of the clients asked whose replies are enough; later ones are dropped.
        retries: how often to ask a client again that is online but whose message or reply was lost.
        watches: told what is sent and what comes back.
        drop: put an error in the place of a reply that cannot be computed, or has NaN in it, instead of raising.

    A message whose time to live is shorter than Flower's 12 hours gives an error reply (code 3) when it is over.
    """

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
    ) -> None:
        if world.server is None:
            raise RunError("a Flower strategy needs a server; build the world with one")
        self.world, self.clients, self.server = world, clients, world.server
        self.updates = 0
        self.dropped: list[Dropped] = []
        self._watches, self._drop = watches, drop
        self._detect_us, self._quorum, self._retries = micros(detect_s), quorum, retries
        self._ids = {node.id for node in world.members}
        self._open: dict[str, Instruction] = {}  # those that are done stand in the order of their arrival
        self._count = 0
        self._slept_s = 0.0
        self._idle = 0
        self._awaited = Wait(world.clock.event())
        self._looked: set[frozenset[str]] = set()  # what was pulled in vain since the last arrival
        self._time_up = False
        self._run = compat.make_run()
        self._spare = np.random.MT19937(0)  # clients seed it
        if time_limit_s is not None:
            world.clock.after(micros(time_limit_s), self._end)
        self.server.on_message = self._reply_in
        for node in world.members:
            node.on_message = self._instruct

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
        return [node.id for node in self.world.members if node.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages.

        Returns:
            Their ids, with which the replies can be pulled.
        """
        lifted: dict[int, ArrayRecord] = {}
        self.world.clock.count_wait()
        self._stand_still()
        ids = [self._push(message, lifted) for message in list(messages)]
        self._idle = 0 if ids else self._idle
        for watch in self._watches if ids else ():
            watch.sent([self._open[id].message for id in ids])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived; if there are none yet, wait for the next one.

        That may be the reply to another message, for which a server looks with another call; then there is nothing
        to return.
        """
        ids = [id for id in message_ids if id in self._open]
        if not ids:
            self._check_idle()
        elif not self._arrived(ids):
            self._look(frozenset(ids))
        return self._pull(ids)

    def _look(self, ids: frozenset[str]) -> None:
        """Wait for the next reply, unless a server that polls one message after another has yet to come to one."""
        has_another = any(one.reply is not None for one in self._open.values())
        if ids in self._looked or not has_another:
            self._wait(Look(self.world.clock.event(), ids))
        self._looked.add(ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and wait for the replies.

        Args:
            messages: what to send.
            timeout: how many simulated seconds to wait at most; None waits for all.

        Returns:
            The replies in the order of their arrival; those that are not in by then are dropped.
        """
        began_us, ids = self.world.clock.now, self.push_messages(messages)
        if ids:
            self._wait(Wait(self.world.clock.event(), ids, self._enough(ids)), timeout)
        else:
            self._check_idle()
        replies = self._pull(ids)
        if ids and all(_unavailable(reply) for reply in replies):
            self._pass_time(began_us, "no client can be reached")
        for id in ids:
            if id in self._open:
                self._open.pop(id).wanted = False
        return replies

    def _enough(self, ids: list[str]) -> float:
        """Return how many replies end the wait; a pass before the first round waits for all."""
        if all(self._open[id].round == 0 for id in ids):
            return math.inf
        return max(1, math.ceil(self._quorum * len(ids) - 1e-9))

    def _pass_time(self, began_us: int, trouble: str) -> None:
        """Let something happen before the strategy asks again, if all it asked for has failed at once."""
        clock = self.world.clock
        while clock.now == began_us and not self._time_up:
            if clock.peek() == math.inf:
                raise StalledError(f"{trouble}, and nothing will change that", sim_time_s=clock.now_s)
            clock.step()
        if self._time_up:
            raise TimeUp("the simulated time is over")

    def _check_idle(self) -> None:
        """Stop a strategy that asks nobody again and again, because no time passes by that."""
        self._idle += 1
        if self._idle > IDLE_CALLS:
            reason = f"the strategy has asked no client for anything {self._idle} times in a row"
            raise StalledError(reason, sim_time_s=self.world.clock.now_s)

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass; Flower's strategies call this while too few clients are online.

        Raises:
            StalledError: if nobody is left who could come, or after so long a wait that it must be a mistake.
        """
        clock, online = self.world.clock, sum(node.online for node in self.world.members)
        alive = sum(not node.crashed for node in self.world.members)
        if online == alive or clock.peek() == float("inf") or self._slept_s > PATIENCE_S:
            reason = (
                f"the strategy waits for more clients, and nobody else can come: {online} are online, "
                f"{len(self.world.members) - alive} of {len(self.world.members)} have crashed "
                f"(it has waited for {self._slept_s:.0f} s)"
            )
            raise StalledError(reason, sim_time_s=clock.now_s)
        next_s = (clock.peek() - clock.now) / MICRO
        # until something happens, asking again would not help
        seconds = seconds * max(1, math.ceil(next_s / seconds)) if seconds else next_s
        self._slept_s += seconds
        self._wait(Wait(clock.event()), seconds)

    def _wait(self, wait: Wait, timeout_s: float | None = None) -> None:
        """Let time pass until a wait is over, or the timeout."""
        clock = self.world.clock
        self._awaited = wait
        if not self._time_up:
            with compat.undisturbed(self._spare):
                if timeout_s is not None and timeout_s < math.inf:
                    self._expect(clock.now + micros(timeout_s))
                clock.wait(wait.ready, self._waiting_for)
        self._awaited = Wait(clock.event())
        self._stand_still()
        if self._time_up:
            raise TimeUp("the simulated time is over")

    def _expect(self, end_us: int) -> None:
        """Let time pass until a wait is over, or its end is what happens next: no timer outlives what it is for."""
        clock, wait = self.world.clock, self._awaited
        clock.advance(lambda: wait.ready.triggered or clock.peek() >= end_us)
        if not wait.ready.triggered:
            clock.after(end_us - clock.now, wait.end)

    def _stand_still(self) -> None:
        """Let time pass until the server is back, if it is only down for a while."""
        server, clock = self.server, self.world.clock
        while not (server.online or server.crashed or self._time_up):
            if clock.peek() == math.inf:
                reason = "the server is offline, and nothing is left that could bring it back"
                raise StalledError(reason, server.id, sim_time_s=clock.now_s)
            clock.step()

    def _waiting_for(self) -> str:
        ids = self._awaited.ids & self._open.keys()
        return f"replies from clients {sorted({self._open[id].node.id for id in ids})}"

    def _end(self) -> None:
        self._time_up = True
        self._awaited.end()

    def _arrived(self, ids: list[str]) -> list[str]:
        wanted = set(ids)
        return [
            id for id, instruction in self._open.items() if instruction.reply is not None and id in wanted
        ]

    def _pull(self, ids: list[str]) -> list[Message]:
        pulled = [self._open.pop(id) for id in self._arrived(ids)]
        for instruction in pulled:
            instruction.wanted = False
        for instruction, why in (refuse(pulled, self.world.clock.now_s) if self._drop else {}).items():
            self.dropped.append(why)
            self.updates -= trains(instruction.message.metadata.message_type)
            self._throw_away(instruction)
        replies = [instruction.reply for instruction in pulled if instruction.reply is not None]
        together(reply.content for reply in replies if reply.has_content())
        for watch in self._watches if replies else ():
            watch.pulled(replies)
        return replies

    def _push(self, message: Message, lifted: dict[int, ArrayRecord]) -> str:
        about, target = message.metadata, message.metadata.dst_node_id
        self._check(target, round_of(message.content))
        self._count += 1
        self._slept_s = 0.0
        id = str(self._count)
        content = isolate(message.content, lifted)
        copy = Message(content, target, about.message_type, ttl=about.ttl, group_id=about.group_id)
        for one in (message, copy):
            compat.name_message(one, id, self.server.id)
        instruction = Instruction(copy, self.world.nodes[target], round_of(content), self._retries)
        self._open[id] = instruction
        if about.ttl < compat.DEFAULT_TTL_S:
            instruction.expiry = self.world.clock.timer(micros(about.ttl), self._expire, instruction)
        self._send(instruction)
        return id

    def _expire(self, instruction: Instruction) -> None:
        """Give up a message whose time to live is over; a reply that comes later is late."""
        if instruction.wanted and instruction.reply is None:
            why = f"no reply within {instruction.message.metadata.ttl:g} s, the message's time to live"
            self._settle(instruction, Message(Error(compat.UNAVAILABLE, why), reply_to=instruction.message))
            instruction.wanted = False

    def _send(self, instruction: Instruction) -> None:
        size = wire_bytes(instruction.message.content)
        packet = network.Message("instruction", instruction, size, instruction.round)
        self.server.send(instruction.node, packet, lambda ok: None if ok else self._lost(instruction))

    def _check(self, target: int, round: int) -> None:
        now_s = self.world.clock.now_s
        if self.server.crashed:
            raise RunError("the server has crashed", self.server.id, round, now_s, "send")
        if target not in self._ids:
            reason = f"the strategy sends to node {target}; clients are 0 to {len(self._ids) - 1}"
            raise RunError(reason, self.server.id, round, now_s, "send")

    def _instruct(self, packet: network.Message) -> None:
        """A client has received an instruction: let it work, once."""
        instruction: Instruction = packet.payload
        if instruction.started:
            self._late(packet, instruction.node, self.server)
            return
        instruction.started = True
        instruction.work = self.clients.work(instruction.node.id, instruction.message)
        job = instruction.node.compute(instruction.work, instruction.round)
        assert job.callbacks is not None  # a job that has just been made has not been processed
        job.callbacks.append(
            lambda _: self._answer(instruction, job) if job.value else self._abort(instruction)
        )

    def _abort(self, instruction: Instruction) -> None:
        for watch in self._watches:
            watch.aborted(instruction.message)
        self._lost(instruction)

    def _answer(self, instruction: Instruction, job: Job) -> None:
        """A client has done its work: send what came out, whether or not it has been computed yet."""
        node = instruction.node
        assert job.start_us is not None  # it is done
        instruction.spent_us = self.world.clock.now - job.start_us
        made = self.clients.answer(node.id, instruction.message, self.world.clock.now_s)
        if isinstance(made, Error):
            reply, size = Message(made, reply_to=instruction.message), len(made.reason or "")
        else:
            content = isolate(made)
            if node.corruptions:
                content = corrupt(content, node, instruction.round)
            reply, size = Message(content, reply_to=instruction.message), wire_bytes(content)
        packet = network.Message("reply", (instruction, reply), size, instruction.round)
        node.send(self.server, packet, lambda ok: None if ok else self._waste(instruction))

    def _reply_in(self, packet: network.Message) -> None:
        instruction, reply = packet.payload
        if instruction.wanted and not instruction.answered:
            self.updates += reply.has_content() and trains(instruction.message.metadata.message_type)
            self._settle(instruction, reply)
        else:
            if not instruction.answered:
                self._throw_away(instruction)
            self._late(packet, self.server, instruction.node)
        instruction.answered = True

    def _late(self, packet: network.Message, at: Node, src: Node) -> None:
        """A message has arrived that nobody waits for, or a second time."""
        self.world.log.add("late", at.id, src.id, packet.size_bytes, packet.round)

    def _waste(self, instruction: Instruction) -> None:
        self._throw_away(instruction)
        self._lost(instruction)

    def _throw_away(self, instruction: Instruction) -> None:
        """Nobody will use what a client has computed."""
        instruction.node.wasted += instruction.work
        instruction.node.wasted_us += instruction.spent_us

    def _lost(self, instruction: Instruction) -> None:
        """The client is gone, or a message is lost: the server will notice after a while."""
        self.world.clock.after(self._detect_us, self._notice, instruction, instruction.why_lost())

    def _notice(self, instruction: Instruction, why: str) -> None:
        if not (self.server.online or self.server.crashed):  # it will notice when it is back
            back = self.server.back()
            assert back.callbacks is not None  # it has not happened yet
            back.callbacks.append(lambda _: self._notice(instruction, why))
        elif instruction.wanted and instruction.retries and instruction.node.online and self.server.online:
            instruction.retries -= 1
            instruction.started = False
            self._send(instruction)
        elif instruction.wanted:
            error = Error(compat.NODE_UNAVAILABLE, why)
            self._settle(instruction, Message(error, reply_to=instruction.message))

    def _settle(self, instruction: Instruction, reply: Message) -> None:
        id = instruction.message.metadata.message_id
        compat.name_message(reply, f"{id}-reply", instruction.node.id)
        instruction.reply = reply
        if instruction.expiry is not None:
            instruction.expiry.cancel()
        self._open[id] = self._open.pop(id)
        self._looked.clear()
        self._awaited.heard(id, reply.has_content())


def _unavailable(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == compat.NODE_UNAVAILABLE
