"""The built-in clients of a simulation: local updates and evaluations, deferred and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedsim.errors import RunError
from fedsim.flower.arrays import LazyMetrics, layout_of, pack, unpack
from fedsim.flower.grid import round_of
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalSGD, LocalUpdate


class BuiltinClients:
    """Answers a server's messages with local updates.

    ``train`` and its actions (``train.anchor`` …) run the update of that name; ``evaluate`` reports loss and accuracy
    on the client's own data. The reply has what Flower's strategies expect: one record of arrays for each vector,
    and the metrics with ``num-examples``.

    Args:
        learner: model, data and engine.
        updates: local updates by message type.
    """

    def __init__(self, learner: Learner, updates: Mapping[str, LocalUpdate]) -> None:
        self.learner, self.updates = learner, dict(updates)
        self._visits: Counter[int] = Counter()
        self._proximal: dict[float, LocalSGD] = {}

    def work(self, client: int, message: Message) -> int:
        """Return how many per-sample gradients an answer costs; a forward pass counts as a third of one."""
        samples = self.learner.sizes[client]
        if message.metadata.message_type == MessageType.EVALUATE:
            return -(-samples // 3)
        return self._update(message).work(samples)

    def answer(self, client: int, message: Message, sim_time_s: float) -> RecordDict:
        """Return the reply's content, with values that are computed when they are read."""
        records = {name: r for name, r in message.content.items() if isinstance(r, ArrayRecord)}
        task = self.learner.engine.task
        vectors = {name: unpack(record, task.device, task.dtype) for name, record in records.items()}
        examples = {"num-examples": self.learner.sizes[client]}
        if self.learner.dry:
            vectors = {name: Deferred.phantom() for name in vectors}
        if message.metadata.message_type == MessageType.EVALUATE:
            scores = self.learner.evaluate(next(iter(vectors.values())), client)
            names = ("loss", "accuracy") if task.classifies else ("loss",)
            return RecordDict({"metrics": LazyMetrics(dict(examples), scores, names)})
        update = self._update(message)
        (layout, _), dtype = layout_of(next(iter(records.values()))), str(task.dtype).removeprefix("torch.")
        place = Place(client, self._round(client, message), sim_time_s)
        result = self.learner.train(update, client, vectors, place)
        reply = RecordDict({name: pack(result.pick(name), layout, dtype) for name in update.sends})
        reply["metrics"] = LazyMetrics(dict(examples), result, update.metrics)
        return reply

    def _round(self, client: int, message: Message) -> int:
        """Return the message's round, or if it names none the number of the client's visit: batches must differ."""
        self._visits[client] += 1
        named = round_of(message.content)
        return named if named >= 0 else self._visits[client]

    def _update(self, message: Message) -> LocalUpdate:
        action, client = message.metadata.message_type, message.metadata.dst_node_id
        if action not in self.updates:
            reason = f"a client does not know the message type {action}; it knows {sorted(self.updates)}"
            raise RunError(reason, client, round_of(message.content), phase=action)
        return self._with_term(self.updates[action], message.content)

    def _with_term(self, update: LocalUpdate, content: RecordDict) -> LocalUpdate:
        """Add the proximal term that Flower's FedProx asks for in its configuration."""
        configs = [record for record in content.values() if isinstance(record, ConfigRecord)]
        mu = next((float(str(c["proximal-mu"])) for c in configs if "proximal-mu" in c), 0.0)
        if not mu or not isinstance(update, LocalSGD):
            return update
        if mu not in self._proximal:
            self._proximal[mu] = LocalSGD(update.local, mu)
        return self._proximal[mu]
