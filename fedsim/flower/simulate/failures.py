"""Replies that cannot be used: which ones they are is known once they have been computed."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import ArrayRecord, Message, RecordDict

from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.lazy import LazyMetrics
from fedsim.flower.records import unpack
from fedsim.learn.deferred import Deferred, compute, noted
from fedsim.learn.learner import Failed
from fedsim.running.instruction import Instruction
from fedsim.running.servers import Dropped


def refuse(ended: Sequence[Instruction], sim_time_s: float) -> dict[Instruction, Dropped]:
    """Compute what several replies hold, all together, and say what is wrong with each that cannot be used.

    Args:
        ended: instructions whose replies are about to be handed over.
        sim_time_s: now.

    Returns:
        What was wrong, by instruction.
    """
    came = [(one, one.content) for one in ended if one.end == "answered"]
    compute(result for _, content in came for result in _results(content))
    faults = {one: _noted(content) for one, content in came}
    return {one: Dropped(one.node.id, one.round, sim_time_s, why) for one, why in faults.items() if why}


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


def _results(content: RecordDict) -> list[Deferred]:
    """Return the results that a reply's numbers come from."""
    found = [r.__dict__["deferred"] for r in content.values() if isinstance(r, LazyMetrics)]
    return [result for result in found if not result.is_phantom]


def _noted(content: RecordDict) -> str:
    """Say why a reply cannot be used, or nothing; what was said before a run was killed is said again."""
    values = [*_results(content), *_vectors(content)]
    return str(noted(values, "fault", lambda: _fault(content))) if values else ""


def _vectors(content: RecordDict) -> list[Deferred]:
    return [unpack(record) for record in content.values() if isinstance(record, ArrayRecord) and record]


def _fault(content: RecordDict) -> str:
    for result in _results(content):
        value = result.value()
        if isinstance(value, Failed):
            return value.error.reason
    try:
        compute(vector for vector in _vectors(content) if not vector.is_phantom)
    except RunError as error:
        return error.reason
    return ""
