"""The clients of a simulation: local updates and evaluations, deferred and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.errors import RunError
from fedsim.learn.around import Around
from fedsim.learn.buffers import judged
from fedsim.learn.codec import Codec
from fedsim.learn.corrupt import corrupted
from fedsim.learn.curriculum.update import Ordered
from fedsim.learn.deferred import Deferred, compute, noted
from fedsim.learn.learner import Failed, Learner, Place
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.methods.select import EVALUATE, QUERY_SIZE
from fedsim.methods.server import Ask, Query, Reply, nothing
from fedsim.running.client_state import Kept
from fedsim.running.instruction import Answer, Instruction
from fedsim.running.wire import numbers_bytes, text_bytes, vector_bytes
from fedsim.world.node import Node

EXAMPLES = "num-examples"


@dataclass(frozen=True)
class Order:
    """An ask in its round, as a client receives it."""

    round: int
    ask: Ask


class Numbers(Mapping[str, Any]):
    """Numbers by name, of which some are known and others are computed when they are read.

    Attributes:
        invented: whether a number has been read that is only assumed.


    Args:
        known: those that are there.
        values: a deferred dictionary of numbers.
        names: which of its entries belong here.
    """

    def __init__(self, known: Mapping[str, int | float], values: Deferred, names: Sequence[str] = ()) -> None:
        self.known, self.values_, self.names = known, values, names
        self.beside: list[Deferred] = []
        self.invented = False

    def __getitem__(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        if name not in self.names:
            raise KeyError(name)
        if self.values_.assumed is not None:  # whoever reads one number need not assume the others
            self.invented = True
            return float(self.values_.assumed[name])
        compute([self.values_, *self.beside])
        self.beside.clear()
        return self.values_.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.names, *(name for name in self.known if name not in self.names)))

    def __len__(self) -> int:
        return len(list(iter(self)))


class LocalClients:
    """Answers a server's orders with local updates.

    ``train`` and its actions (``train.anchor`` …) run the update of that name; ``evaluate`` reports loss and accuracy
    on the client's own data; ``query.size`` reports no more than how many samples there are, and so do a method's own
    queries, beside the vectors that they make of those received, which costs no time. A number of an order stands in
    for the update's own of that name, such as ``lr``. What an update keeps changes as soon as its answer exists,
    whether or not the server ever gets it.

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
        self.learner, self.updates = learner, dict(updates)
        self.kept = Kept(learner.zeros, learner.keeps, learner.state_bytes)
        self.queries: Mapping[str, Query] = {QUERY_SIZE: nothing, **(queries or {})}
        task = learner.engine.task
        self._layout, self._dtype = task.sent, str(task.dtype).removeprefix("torch.")
        self._sizes: dict[Codec | None, int] = {}
        self._visits: Counter[int] = Counter()
        self._lately: dict[int, tuple[int, int]] = {}
        self._proximal: dict[tuple[str, float], LocalUpdate] = {}

    def work(self, client: int, payload: Order) -> int:
        """Return how many per-sample gradients an answer costs; a forward pass counts as a third of one."""
        samples, action = self.learner.sizes[client], payload.ask.action
        if action == EVALUATE:
            return -(-samples // 3)
        if action in self.queries:
            return 0
        return self.update(client, payload).work(samples)

    def answer(self, client: int, payload: Order, sim_time_s: float) -> Answer:
        """Return the reply, with values that are computed when they are read."""
        reply = self.reply(client, payload, sim_time_s)
        codec = None if reply.action in self.queries else self._codec(reply.action)
        size = self.vector_bytes(codec)
        vectors = sum(text_bytes(name) + size for name in reply.vectors)
        return Answer(reply, vectors + text_bytes("metrics") + numbers_bytes(reply.metrics))

    def reply(self, client: int, order: Order, sim_time_s: float) -> Reply:
        """Return what a client answers."""
        ask, known = order.ask, {EXAMPLES: self.learner.sizes[client]}
        given = ask.vectors
        if self.learner.dry:
            given = {name: Deferred.phantom() for name in given}
        if ask.action == EVALUATE:
            model = judged(self.learner.engine.task, next(iter(given.values())), [self.kept.of(client)])
            scores = self.learner.evaluate(model, client)
            names = ("loss", "accuracy") if self.learner.engine.task.classifies else ("loss",)
            return Reply(client, ask.action, {}, Numbers(known, scores, names), known[EXAMPLES])
        if ask.action in self.queries:
            made = self.queries[ask.action](given)
            return Reply(client, ask.action, made, known, known[EXAMPLES])
        update = self.update(client, order)
        place = self._place(client, order, sim_time_s)
        kept = self.kept.of(client, update)
        result = self.learner.train(update, client, {**given, **kept}, place, ask.numbers)
        self.kept.put(client, update, result)
        vectors = {name: result.pick(name) for name in update.sends}
        return Reply(client, ask.action, vectors, Numbers(known, result, update.metrics), known[EXAMPLES])

    def corrupt(self, answer: Answer, node: Node, round: int) -> Answer:
        """Replace the vectors of an answer by what the client's faults make of them; metrics stay."""
        reply, place = answer.content, Place(node.id, round, node.clock.now_s)
        vectors = {
            name: corrupted(vector, node.corruptions, place, name) for name, vector in reply.vectors.items()
        }
        return answer._replace(content=replace(reply, vectors=vectors))

    def aborted(self, client: int, payload: Order) -> None:
        """Nothing has been computed yet."""

    def vector_bytes(self, codec: Codec | None = None) -> int:
        """Return the size of a vector [P] in a message."""
        if codec not in self._sizes:
            self._sizes[codec] = vector_bytes(self._layout, self._dtype, codec)
        return self._sizes[codec]

    def visits(self, client: int) -> tuple[int, int, int]:
        """Return how often a client has been visited, its latest round, and how often in that one."""
        return self._visits[client], *self._lately.get(client, (-1, 0))

    def recall(self, client: int, visits: tuple[int, int, int]) -> None:
        """Go on from what :meth:`visits` returned in another process."""
        total, round, again = visits
        self._visits[client] = total
        self._lately[client] = (round, again)

    def update(self, client: int, order: Order) -> LocalUpdate:
        """Return what a client does with an order.

        Raises:
            RunError: if it does not know the message type.
        """
        action = order.ask.action
        if action not in self.updates:
            reason = f"a client does not know the message type {action}; it knows {sorted(self.updates)}"
            raise RunError(reason, client, order.round, phase=action)
        return self._with_term(action, order.ask.numbers.get("proximal-mu", 0.0)).at(order.round)

    def _codec(self, action: str) -> Codec | None:
        return self.updates[action].codec if action in self.updates else None

    def _place(self, client: int, order: Order, sim_time_s: float) -> Place:
        """Name a visit: by its round, or if the message names none by its number; batches must differ."""
        self._visits[client] += 1
        round = order.round if order.round >= 0 else self._visits[client]
        latest, visit = self._lately.get(client, (round, 0))
        if round < latest:  # a number above those of all visits there have been, so that no two are alike
            return Place(client, round, sim_time_s, self._visits[client])
        self._lately[client] = (round, 1) if round > latest else (latest, visit + 1)
        return Place(client, round, sim_time_s, self._lately[client][1])

    def _with_term(self, action: str, mu: float) -> LocalUpdate:
        """Add the proximal term that Flower's FedProx asks for in its configuration."""
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


def together(replies: Iterable[Reply]) -> None:
    """Let the values of several replies be computed all at once, as soon as a number of one of them is read."""
    beside: list[Deferred] = []
    for reply in replies:
        if isinstance(reply.metrics, Numbers):
            reply.metrics.beside = beside
            beside.append(reply.metrics.values_)
        beside += reply.vectors.values()


def faults(ended: Sequence[Instruction]) -> dict[Instruction, str]:
    """Compute what replies hold, all together, and say what is wrong with those that cannot be used."""
    came = [one for one in ended if one.end == "answered" and not _is_phantom(one.content)]
    compute(one.content.metrics.values_ for one in came if isinstance(one.content.metrics, Numbers))
    found = {one: str(fault_of(one.content)) for one in came}
    return {one: why for one, why in found.items() if why}


def _is_phantom(reply: Reply) -> bool:
    return isinstance(reply.metrics, Numbers) and reply.metrics.values_.is_phantom


def fault_of(reply: Reply) -> Any:
    """Say what is wrong with a reply, or nothing."""
    values = [*reply.vectors.values()]
    if isinstance(reply.metrics, Numbers):
        values.append(reply.metrics.values_)
    return noted(values, "fault", lambda: _fault(reply)) if values else ""


def _fault(reply: Reply) -> str:
    if isinstance(reply.metrics, Numbers):
        value = reply.metrics.values_.value()
        if isinstance(value, Failed):
            return value.error.reason
    try:
        compute(vector for vector in reply.vectors.values() if not vector.is_phantom)
    except RunError as error:
        return error.reason
    return ""
