"""The built-in clients of a simulation: local updates and evaluations, deferred and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedsim.errors import RunError
from fedsim.flower.records import LazyMetrics, layout_of, pack, unpack
from fedsim.flower.select import QUERY_SIZE
from fedsim.flower.simulate.client_state import Kept
from fedsim.flower.simulate.instruction import Query, nothing, numbers_of, round_of
from fedsim.learn.around import Around
from fedsim.learn.curriculum.update import Ordered
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalSGD, LocalUpdate


class BuiltinClients:
    """Answers a server's messages with local updates.

    ``train`` and its actions (``train.anchor`` …) run the update of that name; ``evaluate`` reports loss and accuracy
    on the client's own data; ``query.size`` reports no more than how many samples there are, and so do a strategy's
    own queries, beside the vectors that they make of those received, which costs no time. The reply has what
    Flower's strategies expect: one record of arrays for each vector, and the metrics with ``num-examples``. A number
    in a message's configuration stands in for the update's own of that name, such as ``lr``. What an
    update keeps changes as soon as its answer exists, whether or not the server ever gets it.

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
        self.learner, self.updates, self.kept = learner, dict(updates), Kept(learner.zeros)
        self.queries: Mapping[str, Query] = {QUERY_SIZE: nothing, **(queries or {})}
        self._visits: Counter[int] = Counter()
        self._lately: dict[int, tuple[int, int]] = {}
        self._proximal: dict[tuple[str, float], LocalUpdate] = {}

    def work(self, client: int, message: Message) -> int:
        """Return how many per-sample gradients an answer costs; a forward pass counts as a third of one."""
        samples = self.learner.sizes[client]
        if message.metadata.message_type == MessageType.EVALUATE:
            return -(-samples // 3)
        if message.metadata.message_type in self.queries:
            return 0
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
        layout = layout_of(next(iter(records.values())))[0] if records else []
        dtype = str(task.dtype).removeprefix("torch.")
        if message.metadata.message_type in self.queries:
            made = self.queries[message.metadata.message_type](vectors)
            answer = RecordDict({name: pack(vector, layout, dtype) for name, vector in made.items()})
            answer["metrics"] = MetricRecord(dict(examples))
            return answer
        update = self._update(message)
        place = self._place(client, message, sim_time_s)
        given = {**vectors, **self.kept.of(client, update)}
        result = self.learner.train(update, client, given, place, numbers_of(message.content))
        self.kept.put(client, update, result)
        reply = RecordDict(
            {name: pack(result.pick(name), layout, dtype, update.codec) for name in update.sends}
        )
        reply["metrics"] = LazyMetrics(dict(examples), result, update.metrics)
        return reply

    def visits(self, client: int) -> tuple[int, int, int]:
        """Return how often a client has been visited, its latest round, and how often in that one."""
        return self._visits[client], *self._lately.get(client, (-1, 0))

    def recall(self, client: int, visits: tuple[int, int, int]) -> None:
        """Go on from what :meth:`visits` returned in another process."""
        total, round, again = visits
        self._visits[client] = total
        self._lately[client] = (round, again)

    def _place(self, client: int, message: Message, sim_time_s: float) -> Place:
        """Name a visit: by its round, or if the message names none by its number; batches must differ."""
        self._visits[client] += 1
        named = round_of(message.content)
        round = named if named >= 0 else self._visits[client]
        latest, visit = self._lately.get(client, (round, 0))
        self._lately[client] = (round, 1) if round > latest else (latest, visit + 1)
        return Place(client, round, sim_time_s, self._lately[client][1])

    def _update(self, message: Message) -> LocalUpdate:
        action, client = message.metadata.message_type, message.metadata.dst_node_id
        if action not in self.updates:
            reason = f"a client does not know the message type {action}; it knows {sorted(self.updates)}"
            raise RunError(reason, client, round_of(message.content), phase=action)
        return self._with_term(action, message.content).at(round_of(message.content))

    def _with_term(self, action: str, content: RecordDict) -> LocalUpdate:
        """Add the proximal term that Flower's FedProx asks for in its configuration."""
        configs = [record for record in content.values() if isinstance(record, ConfigRecord)]
        mu = next((float(str(c["proximal-mu"])) for c in configs if "proximal-mu" in c), 0.0)
        if not mu:
            return self.updates[action]
        if (action, mu) not in self._proximal:
            self._proximal[action, mu] = _proximal(self.updates[action], mu)
        return self._proximal[action, mu]


def _proximal(update: LocalUpdate, mu: float) -> LocalUpdate:
    """Return an update with a proximal term, inside of what is around it; one that is not local SGD has none."""
    if isinstance(update, Around | Ordered):
        return update.over(_proximal(update.update, mu))
    return LocalSGD(update.local, mu) if isinstance(update, LocalSGD) else update
