"""What a grid carries, who answers it, and who may watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from fedsim.learn.deferred import Deferred
from fedsim.world.clock import Timer
from fedsim.world.node import Node

Vectors = Mapping[str, Deferred]
"""Vectors [P] by name."""

Query = Callable[[Vectors], Vectors]
"""What a client makes of the vectors of a message without its data: the vectors of its reply."""


class Clients(Protocol):
    """What answers the server's messages."""

    def work(self, client: int, message: Message) -> int:
        """Return how many per-sample gradients the answer costs; asked once, when the client begins."""

    def answer(self, client: int, message: Message, sim_time_s: float) -> RecordDict | Error:
        """Return the answer's content, whose values may be deferred, or the error that the client replies."""


class Watch:
    """Told what a grid does; each method may be left as it is."""

    def sent(self, messages: Sequence[Message]) -> None:
        """Messages have been sent together, as their receivers will see them."""

    def aborted(self, message: Message) -> None:
        """A client went offline while it worked on a message, or before it could begin."""

    def pulled(self, replies: Sequence[Message]) -> None:
        """The server has replies in its hands, in the order of their arrival."""


@dataclass(eq=False)
class Instruction:
    """A message to a client, until its reply has been pulled or nobody waits for it any more."""

    message: Message
    node: Node
    round: int
    retries: int = 0
    work: int = 0
    spent_us: int = 0
    wanted: bool = True
    started: bool = False
    answered: bool = False
    reply: Message | None = None
    expiry: Timer | None = None

    def why_lost(self) -> str:
        """Say what has kept the reply away."""
        id = self.node.id
        online = self.node.online
        return f"a message to or from client {id} was lost" if online else f"client {id} went offline"


def nothing(_: Vectors) -> Vectors:
    """Answer a message for the sake of the answer.

    >>> nothing({})
    {}
    """
    return {}


def numbers_of(content: RecordDict) -> dict[str, float]:
    """Return the numbers in a message's configuration by name.

    >>> numbers_of(RecordDict({"config": ConfigRecord({"lr": 0.5, "server-round": 3, "verbose": True})}))
    {'lr': 0.5, 'server-round': 3.0}
    """
    configs = [record for record in content.values() if isinstance(record, ConfigRecord)]
    return {
        name: float(value)
        for config in configs
        for name, value in config.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def trains(message_type: str) -> bool:
    """Tell whether a message asks a client to train.

    >>> trains("train.anchor"), trains("evaluate")
    (True, False)
    """
    return message_type.partition(".")[0] == MessageType.TRAIN


def evaluates(message_type: str) -> bool:
    """Tell whether a message asks a client to evaluate.

    >>> evaluates("evaluate.holdout"), evaluates("train")
    (True, False)
    """
    return message_type.partition(".")[0] == MessageType.EVALUATE


def round_of(content: RecordDict) -> int:
    """Return the server round that a message's configuration names, or -1.

    >>> [round_of(RecordDict({"c": ConfigRecord({"server-round": name})})) for name in (3, "warm-up")]
    [3, -1]
    """
    for record in content.values():
        if isinstance(record, ConfigRecord) and "server-round" in record:
            with suppress(ValueError):  # an app may name its rounds as it likes
                return int(str(record["server-round"]))
    return -1


def named_round(message: Message) -> int:
    """Return the server round that a message names: in its configuration, or as its group, as Flower's former API does.

    Returns:
        The round, or -1 if it names none.
    """
    named, group = round_of(message.content), message.metadata.group_id
    return int(group) if named < 0 and group.isdecimal() else named
