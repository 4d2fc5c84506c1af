"""A message from a server to a client, who answers it, and who waits for the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import simpy

from fedsim.world.clock import Timer
from fedsim.world.node import Node

End = Literal["answered", "refused", "unreachable", "expired"]
"""How an instruction ends for the server; ``refused`` is a client's own error."""


class Answer(NamedTuple):
    """What a client has made of an instruction.

    Args:
        content: what it sends.
        size_bytes: how much that is.
        refused: whether it is an error of the client's own, which ``content`` describes.
    """

    content: Any
    size_bytes: int
    refused: bool = False


class Clients(Protocol):
    """What answers a server's instructions."""

    def work(self, client: int, payload: Any) -> int:
        """Return how many per-sample gradients the answer costs; asked once, when the client begins."""

    def answer(self, client: int, payload: Any, sim_time_s: float) -> Answer:
        """Return the answer, whose values may be deferred."""

    def corrupt(self, answer: Answer, node: Node, round: int) -> Answer:
        """Return what a client sends instead whose messages are corrupted."""

    def aborted(self, client: int, payload: Any) -> None:
        """Take note that a client went offline while it worked, or before it could begin."""


@dataclass(eq=False, slots=True)
class Instruction:
    """A message to a client, until its answer has been taken or nobody waits for it any more.

    Args:
        node: the client.
        payload: what it is told.
        size_bytes: how much that is.
        round: the round that it belongs to, or -1.
        trains: whether an answer is a client update.
        ttl_s: how long it may take; None is for ever.
    """

    node: Node
    payload: Any
    size_bytes: int
    round: int
    trains: bool
    ttl_s: float | None = None
    retries: int = 0
    work: int = 0
    spent_us: int = 0
    wanted: bool = True
    started: bool = False
    arrived: bool = False
    end: End | None = None
    content: Any = None
    expiry: Timer | None = None

    def why_lost(self) -> str:
        """Say what has kept the answer away."""
        id, online = self.node.id, self.node.online
        return f"a message to or from client {id} was lost" if online else f"client {id} went offline"


@dataclass
class Wait:
    """What a server waits for: the ends of its instructions, or so many answers to them as are enough.

    The end of anything else does not end it, but for a server that looks whether ``anything`` has come.
    """

    missing: set[Instruction]
    over: simpy.Event
    answers: float = math.inf
    anything: bool = False

    def settle(self, instruction: Instruction) -> None:
        """Take note that an instruction has ended."""
        if instruction in self.missing:
            self.missing.discard(instruction)
            self.answers -= instruction.end == "answered"
            if not self.missing or self.answers <= 0:
                happen(self.over)
        if self.anything:
            happen(self.over)

    def __str__(self) -> str:
        return f"replies from clients {sorted({one.node.id for one in self.missing})}"


def happen(event: simpy.Event) -> None:
    """Let an event happen, if it has not happened yet."""
    if not event.triggered:
        event.succeed()
