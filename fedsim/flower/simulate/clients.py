"""The simulation's own clients behind Flower messages."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedsim.flower.records import LazyMetrics, layout_of, pack, unpack
from fedsim.flower.simulate.instruction import numbers_of, round_of
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalUpdate
from fedsim.learn.staying import filled, shared
from fedsim.methods.server import Ask, Query
from fedsim.running.clients import LocalClients, Numbers, Order


class BuiltinClients:
    """Reads messages as orders to the simulation's clients, and writes their answers as Flower's strategies expect.

    A reply has one record of arrays for each vector, and the metrics with ``num-examples``.

    Args:
        learner: model, data and engine.
        updates: local updates by message type.
        queries: what answers other messages, by message type.
    """

    def __init__(
        self,
        learner: Learner,
        updates: Mapping[str, LocalUpdate],
        queries: Mapping[str, Query] | None = None,
    ) -> None:
        self.local = LocalClients(learner, updates, queries)
        self.learner = learner

    def work(self, client: int, message: Message) -> int:
        """Return how many per-sample gradients an answer costs."""
        return self.local.work(client, self._order(message))

    def answer(self, client: int, message: Message, sim_time_s: float) -> RecordDict:
        """Return the reply's content, with values that are computed when they are read."""
        reply = self.local.reply(client, self._order(message), sim_time_s)
        first = next(iter(message.content.array_records.values()), None)
        layout = [] if first is None else layout_of(first)[0]
        dtype = str(self.learner.engine.task.dtype).removeprefix("torch.")
        update = self.local.updates.get(reply.action)
        codec = None if update is None or reply.action in self.local.queries else update.codec
        task = self.learner.engine.task
        vectors = {name: shared(task, one) if task.kept else one for name, one in reply.vectors.items()}
        content = RecordDict({name: pack(one, layout, dtype, codec) for name, one in vectors.items()})
        metrics = reply.metrics
        if isinstance(metrics, Numbers):
            content["metrics"] = LazyMetrics(dict(metrics.known), metrics.values_, tuple(metrics.names))
        else:
            content["metrics"] = MetricRecord(dict(metrics))
        return content

    def _order(self, message: Message) -> Order:
        task, about = self.learner.engine.task, message.metadata
        vectors = {
            name: unpack(record, task.device, task.dtype) if not self.learner.dry else Deferred.phantom()
            for name, record in message.content.items()
            if isinstance(record, ArrayRecord)
        }
        if task.kept:  # a server sends no more than what is shared
            vectors = {name: filled(task, one) for name, one in vectors.items()}
        ask = Ask(about.dst_node_id, about.message_type, vectors, numbers_of(message.content))
        return Order(round_of(message.content), ask)
