"""Replies that cannot be used: which ones they are is known once they have been computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Error, Message, RecordDict

from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.records import LazyMetrics, unpack
from fedsim.flower.simulate.instruction import Instruction
from fedsim.learn.deferred import Deferred, compute
from fedsim.learn.learner import Failed

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Dropped:
    """An update that the server has not used.

    Args:
        node: whose it was.
        round: the round that it belonged to, or -1.
        sim_time_s: when it reached the server.
        reason: what was wrong.
    """

    node: int
    round: int
    sim_time_s: float
    reason: str


def refuse(pulled: Sequence[Instruction], sim_time_s: float) -> dict[Instruction, Dropped]:
    """Compute what several replies hold, all together, and put an error in the place of each that cannot be used.

    Args:
        pulled: instructions whose replies are about to be handed over.
        sim_time_s: now.

    Returns:
        What was wrong, by instruction; its reply is an error now, as if the client had raised it.
    """
    came = [(one, one.reply) for one in pulled if one.reply is not None and one.reply.has_content()]
    compute(result for _, reply in came for result in _results(reply.content))
    refused = {}
    for instruction, reply in came:
        reason = _fault(reply.content)
        if reason:
            node, metadata = instruction.node.id, reply.metadata
            refused[instruction] = Dropped(node, instruction.round, sim_time_s, reason)
            error = Message(Error(compat.RAISED, reason), reply_to=instruction.message)
            compat.name_message(error, metadata.message_id, metadata.src_node_id)
            instruction.reply = error
    return refused


def errors(replies: Sequence[Message], round: int, sim_time_s: float) -> list[Dropped]:
    """Return the replies in which a client reports an error; those that the world has kept away are not meant.

    Args:
        replies: what the server has in its hands.
        round: the server's.
        sim_time_s: now.
    """
    return [
        Dropped(reply.metadata.src_node_id, round, sim_time_s, reply.error.reason or "")
        for reply in replies
        if reply.has_error() and reply.error.code not in (compat.NODE_UNAVAILABLE, compat.UNAVAILABLE)
    ]


def warn(failed: Sequence[Dropped], text: str) -> None:
    """Say in the log how many have failed and why the first did.

    Args:
        failed: which ones; of none there is nothing to say.
        text: what is wrong with them, in the plural.
    """
    if failed:
        first = failed[0]
        where = "%d %s; the first is of client %d in round %d (%s)"
        log.warning(where, len(failed), text, first.node, first.round, first.reason)


def _results(content: RecordDict) -> list[Deferred]:
    """Return the results that a reply's numbers come from."""
    found = [r.__dict__["deferred"] for r in content.values() if isinstance(r, LazyMetrics)]
    return [result for result in found if not result.is_phantom]


def _fault(content: RecordDict) -> str:
    """Say why a reply cannot be used, or nothing."""
    for result in _results(content):
        value = result.value()
        if isinstance(value, Failed):
            return value.error.reason
    vectors = [unpack(record) for record in content.values() if isinstance(record, ArrayRecord) and record]
    try:
        compute(vector for vector in vectors if not vector.is_phantom)
    except RunError as error:
        return error.reason
    return ""
