"""What a Flower app's run leaves in its record: rounds, and the numbers of the server and of its clients."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType

from fedsim.errors import few
from fedsim.flower.apps.names import SERVER, Names, clients
from fedsim.flower.apps.replies import Report, means, scalars
from fedsim.flower.simulate.failures import errors
from fedsim.flower.simulate.grid import SimGrid
from fedsim.flower.simulate.instruction import Watch, named_round
from fedsim.methods.server import evaluates, trains
from fedsim.record.store import Record
from fedsim.running.progress import Progress
from fedsim.running.servers import Dropped
from fedsim.running.sinks import Sinks
from fedsim.running.watched import Run
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

log = logging.getLogger("fedsim")


class Journal(Watch, Run):
    """Writes down an app's rounds and metrics as they show in its messages.

    A round is what the messages' configuration calls ``server-round`` (or, with Flower's former API, their group);
    messages that name no round open one whenever the server trains again. Those that it sends one by one, at one
    moment or as one group, belong together until it has had a reply, and so do those with one model to one client
    after the other. What clients report is averaged over all
    replies to one message type that the server has had in a round, in whatever groups it has pulled them.

    Args:
        experiment: whose run it is.
        world: counts bytes and work.
        record: where everything is written.
        progress: called after every round, or None.
        sinks: hear of every round, or None.
    """

    grid: SimGrid

    def __init__(
        self,
        experiment: Experiment,
        world: World,
        record: Record,
        progress: Callable[[Progress], None] | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        super().__init__(experiment, world, record, progress, sinks)
        self.arrays: ArrayRecord | None = None
        self.replies: Sequence[Message] = ()
        self.failed: list[Dropped] = []
        self._names = Names(self._rename)
        self._reports: dict[str, list[Report]] = defaultdict(
            list
        )  # of the round that is open, by message type
        self._aggregates: dict[str, dict[str, float]] = {}
        self._heard_us = 0
        self._told: set[tuple[str, str]] = set()
        self._group: str | None = None
        self._model: list[Any] = []
        self._nodes: set[int] = set()
        self._first: int | None = None  # what makes 1 of the round that trains first, if it is called 0

    def sent(self, messages: Sequence[Message]) -> None:
        """Open the round that the messages belong to."""
        first = messages[0].metadata
        number = self._numbered(messages[0])
        if number < 0 and trains(first.message_type):
            group = first.group_id or str(self.world.clock.now)
            number = self.round + self._begins(group, messages)
        if number > self.round:
            if self.round:
                self.end_round()
            self._average()
            self.round = number

    def _numbered(self, message: Message) -> int:
        """Return the round that a message names, or -1; an app may count those that train from 0 on.

        What a method calls its round 0 and asks for by an action of its own comes before its first round.
        """
        number = named_round(message)
        if self._first is None and number >= 0 and message.metadata.message_type == MessageType.TRAIN:
            self._first = int(number == 0)
        return number if number < 0 else number + (self._first or 0)

    def _begins(self, group: str, messages: Sequence[Message]) -> bool:
        """Tell whether a server that numbers nothing begins a round.

        It goes on with one while it has heard nothing since, or asks others than before with the same model.
        """
        nodes = {message.metadata.dst_node_id for message in messages}
        model = [
            array.data for record in messages[0].content.array_records.values() for array in record.values()
        ]
        goes_on = bool(model) and model == self._model and not nodes & self._nodes
        same = group == self._group or goes_on
        self._nodes = nodes | (self._nodes if same else set())
        self._group, self._model = group, model
        return not same

    def pulled(self, replies: Sequence[Message]) -> None:
        """Take note of what the clients report."""
        self.replies, self._group = replies, None
        self.failed += errors(replies, self.round, self.world.clock.now_s)
        for reply in replies:
            kind = reply.metadata.message_type
            if reply.has_content() and (trains(kind) or evaluates(kind)):
                self._reports[kind].append(Report.of(reply))
                self._heard_us = self.world.clock.now

    def take(self, arrays: ArrayRecord) -> None:
        """Keep the server's model."""
        self.arrays = arrays

    def measure(self, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Write down what the server's own evaluation gives."""
        for name, value in scalars(metrics):
            self._metric(SERVER, name, value, server_round, self.world.clock.now)

    def aggregated(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Take note of what the server's strategy makes of its clients' metrics: it replaces the plain means."""
        self._aggregates[kind] = dict(scalars(metrics))
        self._heard_us = self.world.clock.now

    def end_round(self) -> None:
        """Close the round that is open."""
        self._average()
        self.write_round(self.round, self.grid.updates)
        self.tell(self.grid.updates)

    def _average(self) -> None:
        """Write down the means of what the clients have reported in the round that is open."""
        for kind in sorted({*self._reports, *self._aggregates}):
            reports = self._reports[kind]
            if reports:
                self._remark(kind, reports)
            for name, value in {**means(reports), **self._aggregates.get(kind, {})}.items():
                self._metric(clients(kind), name, value, self.round, self._heard_us)
        self._reports.clear()
        self._aggregates.clear()

    def _remark(self, kind: str, reports: Sequence[Report]) -> None:
        """Say, once for each message type, that the examples which clients name are no weights."""
        silent = {one.node for one in reports if one.examples is None}
        nodes = {one.node for one in reports}
        if 0 < len(silent) < len(nodes):
            self._warn(kind, silent, "do not say num-examples, so the recorded means count all clients alike")
        elif not any(one.examples is None or one.examples for one in reports):
            self._warn(kind, nodes, "have used 0 examples, so no mean of what they report is recorded")

    def _warn(self, kind: str, nodes: Iterable[int], why: str) -> None:
        if (kind, why) not in self._told:
            self._told.add((kind, why))
            log.warning("round %d, %s: clients %s %s", self.round, kind, few(sorted(nodes)), why)

    def _metric(self, whose: str, given: str, value: float, round: int, time_us: int) -> None:
        name = self._names.of(whose, given)
        self.scores[name] = value
        if name == "accuracy":
            self.judge(value, time_us)
        self.record.metric(round, time_us, name, value)

    def _rename(self, old: str, new: str) -> None:
        self.record.rename(old, new)
        if old in self.scores:
            self.scores[new] = self.scores.pop(old)
