"""What a ClientApp does with one message, in whatever process."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim.flower import compat
from fedsim.flower.records import isolate

EXAMPLES = ("num-examples", "num_examples")


class Done(NamedTuple):
    """What a ClientApp made of a message: content or an error, its state afterwards, the examples that it has used."""

    content: RecordDict | None
    error: Error | None
    state: RecordDict
    examples: float = 0


@dataclass(frozen=True)
class Broken:
    """What a ClientApp raised in another process, as text: not every exception can be sent."""

    reason: str
    trace: str


def reason(error: BaseException) -> str:
    """Say what a ClientApp has raised.

    >>> reason(ValueError("no data"))
    'the ClientApp raised ValueError: no data'
    """
    return f"the ClientApp raised {type(error).__name__}: {error}"


def run_client(app: ClientApp, message: Message, context: Context, key: int) -> Done:
    """Let a ClientApp answer one message.

    Args:
        app: the ClientApp.
        message: the message.
        context: what it sees; its state may be changed.
        key: of everything that it draws.

    Raises:
        TypeError: if what it returns is not a message.
        ValueError: if the message names an impossible number of examples.
    """
    with compat.Client(context.node_id, key):
        reply: Any = app(message, context)
    if not isinstance(reply, Message):
        raise TypeError(f"a ClientApp must return a Message, not {type(reply).__name__}")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("a ClientApp must reply to its own message: Message(content, reply_to=message)")
    if reply.has_error():
        return Done(None, reply.error, isolate(context.state))
    used = said(reply.content) or 0  # an impossible number is a mistake of this client's
    return Done(isolate(reply.content), None, isolate(context.state), used)


def said(content: RecordDict) -> float | None:
    """Return how many examples a reply says it has used, at least 0, or None if it does not say.

    Raises:
        ValueError: if what it says is no finite number.

    >>> said(RecordDict({"metrics": MetricRecord({"num-examples": 60, "loss": 0.5})}))
    60
    """
    for record in content.values():
        for name in EXAMPLES if isinstance(record, MetricRecord) else ():
            if name in record:
                count = record[name]
                if isinstance(count, (int, float)) and math.isfinite(count):
                    return max(0, count)
                raise ValueError(f"{name} must be a finite number, not {count!r}")
    return None
