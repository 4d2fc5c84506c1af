"""What is in the replies of a Flower app's clients: the means of their numbers, and what is odd about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.errors import few
from fedsim.flower.apps.visit import EXAMPLES, said
from fedsim.methods.server import trains


@dataclass(frozen=True)
class Report:
    """The numbers of one reply.

    Args:
        node: the client.
        examples: how many examples it says it has used, or None if it does not say.
        numbers: what it reports, by name.
    """

    node: int
    examples: float | None
    numbers: Mapping[str, float]

    @classmethod
    def of(cls, reply: Message) -> Report:
        """Read a reply that has content."""
        return cls(reply.metadata.src_node_id, said(reply.content), numbers(reply.content))


def means(reports: Iterable[Report]) -> dict[str, float]:
    """Return the mean of every number that clients report, weighted by their examples.

    Args:
        reports: in any order. One with 0 examples weighs nothing, and what only such clients report has no mean; if
            any client does not say how many it has used, all of them count alike.

    >>> means([Report(0, 10, {"loss": 1.0}), Report(1, 30, {"loss": 2.0}), Report(2, 0, {"loss": 9.0})])
    {'loss': 1.75}
    """
    reports = list(reports)
    all_say = all(report.examples is not None for report in reports)
    found: dict[str, list[tuple[float, float]]] = {}
    for report in reports:
        weight = report.examples or 0.0 if all_say else 1.0
        for name, value in report.numbers.items() if weight else ():
            found.setdefault(name, []).append((value, weight))
    return {
        name: _sum(value * weight for value, weight in pairs) / _sum(weight for _, weight in pairs)
        for name, pairs in found.items()
    }


def _sum(values: Iterable[float]) -> float:
    """Return a sum that does not depend on the order, unless it is beyond what can be summed exactly."""
    values = list(values)
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # as for infinity minus infinity
        return sum(values)


def numbers(content: RecordDict) -> dict[str, float]:
    """Return the numbers that a reply reports; a name that is in several of its records comes with the record's.

    Flower's former API sends metrics as a configuration.

    >>> one, two = MetricRecord({"acc": 0.5, "loss": 1.0}), MetricRecord({"acc": 0.75})
    >>> numbers(RecordDict({"metrics": one, "tail": two}))
    {'metrics/acc': 0.5, 'loss': 1.0, 'tail/acc': 0.75}
    """
    records = {
        record_name: {key: value for key, value in scalars(record) if key not in EXAMPLES}
        for record_name, record in content.items()
        if isinstance(record, MetricRecord)
        or (isinstance(record, ConfigRecord) and record_name.endswith(".metrics"))
    }
    holders = Counter(key for record in records.values() for key in record)
    return {
        key if holders[key] == 1 else f"{record_name}/{key}": value
        for record_name, record in records.items()
        for key, value in record.items()
    }


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record by name; those of a list are named by their places.

    >>> dict(scalars({"acc": 1, "of_class": [0.5, 0.25], "who": "me", "ok": True}))
    {'acc': 1.0, 'of_class_0': 0.5, 'of_class_1': 0.25}
    """
    for name, value in record.items():
        many = isinstance(value, list | tuple)
        for place, one in enumerate(value if many else [value]):
            if not isinstance(one, bool) and isinstance(one, Real):  # NumPy's numbers are real, too
                yield f"{name}_{place}" if many else name, float(one)


def remark(replies: Sequence[Message]) -> str:
    """Return what may have made a server fail on its last replies, or nothing.

    Args:
        replies: what the server has had in its hands last.

    Returns:
        A remark on the first reply whose arrays differ in name or shape from the others', or on all of them, if they
        are trained models without arrays, or if all say that they have used no examples.
    """
    contents = {reply.metadata.src_node_id: reply.content for reply in replies if reply.has_content()}
    shapes = {node: _shapes(content) for node, content in contents.items()}
    usual = max(shapes.values(), key=lambda one: (len(one), list(shapes.values()).count(one)), default={})
    odd = next((node for node in sorted(shapes) if shapes[node] != usual), None)
    if odd is not None:
        return f"; client {odd} has replied with the arrays {shapes[odd]}, others with {usual}"
    who = (
        f"client {min(contents, default=-1)} has"
        if len(contents) == 1
        else f"clients {few(sorted(contents), most=3)} have"
    )
    if contents and not usual and all(trains(reply.metadata.message_type) for reply in replies):
        return f"; {who} replied without arrays"
    if contents and all(said(content) == 0 for content in contents.values()):
        return f"; {who} replied that they have used 0 examples"
    return ""


def _shapes(content: RecordDict) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.{key}": tuple(array.shape)
        for name, record in content.array_records.items()
        for key, array in record.items()
    }
