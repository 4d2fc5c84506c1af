"""Corrupted answers of clients."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from fedsim.flower.lazy import TensorArray
from fedsim.flower.records import repack, unpack
from fedsim.learn.corrupt import corrupted
from fedsim.learn.learner import Place
from fedsim.world.node import Node


def corrupt(content: RecordDict, node: Node, round: int) -> RecordDict:
    """Replace the vectors of an answer by what the client's faults make of them; metrics stay.

    Args:
        content: the answer, as :func:`fedsim.flower.records.isolate` returns it.
        node: the client.
        round: the round it belongs to.

    Returns:
        The same answer.
    """
    place = Place(node.id, round, node.clock.now_s)
    for name, record in list(content.items()):
        if isinstance(record, ArrayRecord) and all(
            isinstance(array, TensorArray) for array in record.values()
        ):
            content[name] = repack(corrupted(unpack(record), node.corruptions, place, name), record)
    return content
