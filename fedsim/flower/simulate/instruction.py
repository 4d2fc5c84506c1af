"""What a grid carries, who answers it, and who may watch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from flwr.app import ConfigRecord, Error, Message, RecordDict


class Clients(Protocol):
    """What answers the server's messages."""

    def work(self, client: int, message: Message) -> int:
        """Return how many per-sample gradients the answer costs; asked once, when the client begins."""

    def answer(self, client: int, message: Message, sim_time_s: float) -> RecordDict | Error:
        """Return the answer's content, or the error that the client replies.

        The content is nobody else's (see :func:`fedsim.flower.records.isolate`), and its values may be deferred.
        """


class Watch:
    """Told what a grid does; each method may be left as it is."""

    def sent(self, messages: Sequence[Message]) -> None:
        """Messages have been sent together, as their receivers will see them."""

    def aborted(self, message: Message) -> None:
        """A client went offline while it worked on a message, or before it could begin."""

    def pulled(self, replies: Sequence[Message]) -> None:
        """The server has replies in its hands, in the order of their arrival."""


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
