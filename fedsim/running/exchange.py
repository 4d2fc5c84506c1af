"""The life of a message from a server to a client and back: sent, worked on, answered, lost, late or given up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fedsim.errors import FedsimError, RunError, StalledError
from fedsim.running.instruction import Clients, End, Instruction, Wait, happen
from fedsim.world.clock import MICRO, micros
from fedsim.world.net import network
from fedsim.world.node import Job, Node
from fedsim.world.world import World

PATIENCE_S = 10_000_000.0
IDLE_CALLS = 10_000


class TimeUp(FedsimError):
    """The experiment's simulated time is over; ends the method's loop."""


class Exchange:
    """Carries a server's instructions through the simulated world and brings back the answers.

    Waiting advances the simulated clock. A client that is offline, or goes offline before its answer is in, is
    unreachable once the server has noticed, and so is one whose message was lost; a slow one has no answer in time.
    While the server itself is offline, its method stands still.

    Args:
        world: clients 0 to n-1 and the server, which is the last node.
        clients: answer.
        detect_s: how long the server takes to notice that a client is offline.
        time_limit_s: when to end the run, or None.
        quorum: the share of the clients asked whose answers are enough; later ones are dropped.
        retries: how often to ask a client again that is online but whose message or answer was lost.

    Attributes:
        updates: client updates that have come back.
    """

    def __init__(
        self,
        world: World,
        clients: Clients,
        detect_s: float = 0.0,
        time_limit_s: float | None = None,
        quorum: float = 1.0,
        retries: int = 0,
    ) -> None:
        if world.server is None:
            raise RunError("a method with a server needs one; build the world with it")
        self.world, self.clients, self.server = world, clients, world.server
        self.updates = 0
        self._detect_us, self._quorum, self._retries = micros(detect_s), quorum, retries
        self._ids = {node.id for node in world.members}
        self._arrived: dict[Instruction, None] = {}  # in the order of their ends
        self._looked: set[frozenset[Instruction]] = set()  # looked for in vain since the last end
        self._waits: list[Wait] = []
        self._seen, self._online = -1, list[int]()  # who is online, since so many have come or gone
        self._slept_s = 0.0
        self._idle = 0
        self._time_up = False
        if time_limit_s is not None:
            world.clock.after(micros(time_limit_s), self._end)
        self.server.on_message = self._reply_in
        for node in world.members:
            node.on_message = self._instruct

    def online(self) -> list[int]:
        """Return the clients that are online, sorted."""
        switches = self.world.network.switches
        if self._seen != switches:
            self._seen, self._online = switches, [node.id for node in self.world.members if node.online]
        return self._online.copy()

    def node(self, id: int, round: int) -> Node:
        """Return a client to write to.

        Raises:
            RunError: if there is no such client, or the server has crashed.
        """
        reason = None
        if self.server.crashed:
            reason = "the server has crashed"
        elif id not in self._ids:
            reason = f"the strategy sends to node {id}; clients are 0 to {len(self._ids) - 1}"
        if reason is not None:
            raise RunError(reason, self.server.id, round, self.world.clock.now_s, "send")
        return self.world.nodes[id]

    def push(self, instructions: Sequence[Instruction]) -> None:
        """Send instructions."""
        self.world.clock.count_wait()
        self.stand_still()
        for instruction in instructions:
            self._push(instruction)
        self._idle = 0 if instructions else self._idle

    def next(self, instructions: Sequence[Instruction], timeout_s: float | None = None) -> list[Instruction]:
        """Return those that have ended, in the order of their ends; if there are none yet, wait for the next end.

        That may be the end of another one, for which a server looks with another call; then there is nothing to return.

        Args:
            instructions: what to look for.
            timeout_s: how many simulated seconds to wait at most; None is for ever.
        """
        if not instructions:
            self.check_idle()
        elif not self._ended(instructions):
            self._look(frozenset(instructions), timeout_s)
        return self.take(instructions)

    def _look(self, instructions: frozenset[Instruction], timeout_s: float | None) -> None:
        """Wait for the next end, unless a server that polls one message after another has yet to come to one."""
        if instructions in self._looked or not self._arrived:
            self.wait(Wait(set(instructions), self.world.clock.event(), anything=True), timeout_s)
        self._looked.add(instructions)

    def all(
        self,
        instructions: Sequence[Instruction],
        timeout_s: float | None = None,
        share: float | None = None,
        sent: Callable[[Sequence[Instruction]], None] | None = None,
    ) -> list[Instruction]:
        """Send instructions and wait for their ends.

        Args:
            instructions: what to send.
            timeout_s: how many simulated seconds to wait at most; None waits for all.
            share: the share of the answers that is enough; None is the quorum.
            sent: told when they have been sent.

        Returns:
            Those that have ended by then, in the order of their ends; the others are dropped.
        """
        began_us = self.world.clock.now
        self.push(instructions)
        if sent is not None:
            sent(instructions)
        if instructions:
            enough = self._enough(instructions, share)
            self.wait(Wait(set(instructions), self.world.clock.event(), enough), timeout_s)
        else:
            self.check_idle()
        taken = self.take(instructions)
        if instructions and all(one.end == "unreachable" for one in taken):
            self.pass_time(began_us, "no client can be reached")
        for instruction in instructions:
            instruction.wanted = False
        return taken

    def take(self, instructions: Iterable[Instruction]) -> list[Instruction]:
        """Return those that have ended, in the order of their ends; each is handed out once."""
        taken = self._ended(instructions)
        for instruction in taken:
            del self._arrived[instruction]
            instruction.wanted = False
        return taken

    def discard(self, instruction: Instruction) -> None:
        """Nobody can use an update that has come back."""
        self.updates -= instruction.trains
        self._throw_away(instruction)

    def sleep(self, seconds: float) -> None:
        """Let simulated time pass, because too few clients are online.

        Raises:
            StalledError: if nobody is left who could come, or after so long a wait that it must be a mistake.
        """
        clock, online = self.world.clock, sum(node.online for node in self.world.members)
        alive = sum(not node.crashed for node in self.world.members)
        if online == alive or clock.peek() == math.inf or self._slept_s > PATIENCE_S:
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
        self.pause(seconds)

    def pause(self, seconds: float) -> None:
        """Let simulated time pass."""
        self.wait(Wait(set(), self.world.clock.event()), seconds)

    def wait(self, wait: Wait, timeout_s: float | None = None) -> None:
        """Let time pass until what is waited for has happened, or until the timeout."""
        self._waits.append(wait)
        try:
            if not self._time_up:
                self.stay(wait, timeout_s)
        finally:
            self._waits.remove(wait)
        self.stand_still()
        if self._time_up:
            raise TimeUp("the simulated time is over")

    def stay(self, wait: Wait, timeout_s: float | None) -> None:
        """Let time pass; what is waited for is known."""
        if timeout_s is not None and timeout_s < math.inf:
            self._expect(wait, self.world.clock.now + micros(timeout_s))
        self.world.clock.wait(wait.over, wait.__str__)

    def stand_still(self) -> None:
        """Let time pass until the server is back, if it is only down for a while."""
        server, clock = self.server, self.world.clock
        while not (server.online or server.crashed or self._time_up):
            if clock.peek() == math.inf:
                reason = "the server is offline, and nothing is left that could bring it back"
                raise StalledError(reason, server.id, sim_time_s=clock.now_s)
            clock.step()

    def pass_time(self, began_us: int, trouble: str) -> None:
        """Let something happen before a server asks again, if all it asked for has failed at once."""
        clock = self.world.clock
        while clock.now == began_us and not self._time_up:
            if clock.peek() == math.inf:
                raise StalledError(f"{trouble}, and nothing will change that", sim_time_s=clock.now_s)
            clock.step()
        if self._time_up:
            raise TimeUp("the simulated time is over")

    def check_idle(self) -> None:
        """Stop a method that asks nobody again and again, because no time passes by that."""
        self._idle += 1
        if self._idle > IDLE_CALLS:
            reason = f"the strategy has asked no client for anything {self._idle} times in a row"
            raise StalledError(reason, sim_time_s=self.world.clock.now_s)

    def _enough(self, instructions: Sequence[Instruction], share: float | None) -> float:
        """Return how many answers end the wait; a pass before the first round waits for all."""
        if share is None:
            if all(one.round == 0 for one in instructions):
                return math.inf
            share = self._quorum
        return max(1, math.ceil(share * len(instructions) - 1e-9))

    def _ended(self, instructions: Iterable[Instruction]) -> list[Instruction]:
        wanted = set(instructions)
        return [one for one in self._arrived if one in wanted]

    def _expect(self, wait: Wait, end_us: int) -> None:
        """Let time pass until a wait is over, or its end is what happens next: no timer outlives what it is for."""
        clock = self.world.clock
        clock.advance(lambda: wait.over.triggered or clock.peek() >= end_us)
        if not wait.over.triggered:
            clock.after(end_us - clock.now, happen, wait.over)

    def _end(self) -> None:
        self._time_up = True
        for wait in self._waits:
            happen(wait.over)

    def _push(self, instruction: Instruction) -> None:
        self._slept_s = 0.0
        instruction.retries = self._retries
        if instruction.ttl_s is not None:
            instruction.expiry = self.world.clock.timer(micros(instruction.ttl_s), self._expire, instruction)
        self._send(instruction)

    def _expire(self, instruction: Instruction) -> None:
        """Give up an instruction whose time to live is over; an answer that comes later is late."""
        if instruction.wanted and instruction.end is None:
            why = f"no reply within {instruction.ttl_s:g} s, the message's time to live"
            self._settle(instruction, "expired", why)
            instruction.wanted = False

    def _send(self, instruction: Instruction) -> None:
        size, round = instruction.size_bytes, instruction.round
        packet = network.Message("instruction", instruction, size, round, self.server.id)
        self.server.send(instruction.node, packet, lambda ok: None if ok else self._lost(instruction))

    def _instruct(self, packet: network.Message) -> None:
        """A client has received an instruction: let it work, once."""
        instruction: Instruction = packet.payload
        node = instruction.node
        if instruction.started:
            self._late(packet, node, self.server)
            return
        instruction.started = True
        instruction.work = self.clients.work(node.id, instruction.payload)
        job = node.compute(instruction.work, instruction.round)
        assert job.callbacks is not None  # a job that has just been made has not been processed
        job.callbacks.append(
            lambda _: self._answer(instruction, job) if job.value else self._abort(instruction)
        )

    def _abort(self, instruction: Instruction) -> None:
        self.clients.aborted(instruction.node.id, instruction.payload)
        self._lost(instruction)

    def _answer(self, instruction: Instruction, job: Job) -> None:
        """A client has done its work: send what came out, whether or not it has been computed yet."""
        node = instruction.node
        assert job.start_us is not None  # it is done
        instruction.spent_us = self.world.clock.now - job.start_us
        answer = self.clients.answer(node.id, instruction.payload, self.world.clock.now_s)
        if node.corruptions and not answer.refused:
            answer = self.clients.corrupt(answer, node, instruction.round)
        size, round = answer.size_bytes, instruction.round
        packet = network.Message("reply", (instruction, answer), size, round, node.id)
        node.send(self.server, packet, lambda ok: None if ok else self._waste(instruction))

    def _reply_in(self, packet: network.Message) -> None:
        instruction, answer = packet.payload
        if instruction.wanted and not instruction.arrived:
            self.updates += instruction.trains and not answer.refused
            self._settle(instruction, "refused" if answer.refused else "answered", answer.content)
        else:
            if not instruction.arrived:
                self._throw_away(instruction)
            self._late(packet, self.server, instruction.node)
        instruction.arrived = True

    def _late(self, packet: network.Message, at: Node, src: Node) -> None:
        """A message has arrived that nobody waits for, or a second time."""
        self.world.log.add("late", at.id, src.id, packet.size_bytes, packet.round)

    def _waste(self, instruction: Instruction) -> None:
        self._throw_away(instruction)
        self._lost(instruction)

    def _throw_away(self, instruction: Instruction) -> None:
        """Nobody will use what a client has computed."""
        instruction.node.spend(0, instruction.work)
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
            self._settle(instruction, "unreachable", why)

    def _settle(self, instruction: Instruction, end: End, content: Any) -> None:
        instruction.end, instruction.content = end, content
        if instruction.expiry is not None:
            instruction.expiry.cancel()
        self._arrived.pop(instruction, None)
        self._arrived[instruction] = None
        self._looked.clear()
        for wait in self._waits:
            wait.settle(instruction)
