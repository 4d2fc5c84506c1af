"""What is in the replies of a Flower app's clients: the means of their numbers, and what is odd about them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.errors import few
from fedsim.flower.appclient import EXAMPLES, examples
from fedsim.flower.instruction import trains


def means(contents: Sequence[RecordDict]) -> dict[str, float]:
    """Return the mean of every number that clients report, weighted by their examples.

    Args:
        contents: the replies; clients that do not say how many examples they have used count alike.

    >>> one, two = ({"num-examples": 10, "loss": 1.0}, {"num-examples": 30, "loss": 2.0})
    >>> means([RecordDict({"metrics": MetricRecord(numbers)}) for numbers in (one, two)])
    {'loss': 1.75}
    """
    weights = [examples(content) for content in contents]
    if not all(weights):
        weights = [1] * len(contents)
    found: dict[str, list[tuple[float, float]]] = {}
    for content, weight in zip(contents, weights, strict=True):
        for name, value in _numbers(content).items():
            found.setdefault(name, []).append((value, weight))
    return {
        name: math.fsum(value * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
        for name, pairs in found.items()
    }


def _numbers(content: RecordDict) -> dict[str, float]:
    """Return the numbers that a reply reports; Flower's former API sends metrics as a configuration."""
    return {
        key: float(value)
        for name, record in content.items()
        if isinstance(record, MetricRecord)
        or (isinstance(record, ConfigRecord) and name.endswith(".metrics"))
        for key, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in EXAMPLES
    }


def remark(replies: Sequence[Message]) -> str:
    """Return what may have made a server fail on its last replies, or nothing.

    Args:
        replies: what the server has had in its hands last.

    Returns:
        A remark on the first reply whose arrays differ in name or shape from the others', or on all of them, if they
        are trained models without arrays, or without examples.
    """
    contents = {reply.metadata.src_node_id: reply.content for reply in replies if reply.has_content()}
    shapes = {node: _shapes(content) for node, content in contents.items()}
    usual = max(shapes.values(), key=lambda one: (len(one), list(shapes.values()).count(one)), default={})
    odd = next((node for node in sorted(shapes) if shapes[node] != usual), None)
    if odd is not None:
        return f"; client {odd} has replied with the arrays {shapes[odd]}, others with {usual}"
    if not contents or not all(trains(reply.metadata.message_type) for reply in replies):
        return ""
    who = (
        f"client {min(contents)} has"
        if len(contents) == 1
        else f"clients {few(sorted(contents), most=3)} have"
    )
    if not usual:
        return f"; {who} replied without arrays"
    said = [
        name for content in contents.values() for record in content.metric_records.values() for name in record
    ]
    if any(name in EXAMPLES for name in said) and not any(map(examples, contents.values())):
        return f"; {who} replied that they have used 0 examples"
    return ""


def _shapes(content: RecordDict) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{key}": tuple(array.shape)
        for name, record in content.array_records.items()
        for key, array in record.items()
    }
