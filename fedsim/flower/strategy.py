"""What the server strategies share, so that each is one short file that reads like its paper."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim.errors import BadValue, RunError, ValueNeeded, few
from fedsim.flower.central import Central
from fedsim.flower.cohort import online
from fedsim.flower.records import layout_of, pack, real, unpack
from fedsim.flower.select import Selector, Uniform
from fedsim.flower.simulate.instruction import Query, Vectors
from fedsim.learn.around import Transform
from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalUpdate
from fedsim.spec.experiment import Weighting


@dataclass(frozen=True)
class Ask:
    """What one client is asked to do.

    Args:
        node: the client.
        action: the message type, such as ``"train"`` or ``"train.anchor"``.
        vectors: what it needs, by name [P]; the weights are called ``"arrays"``.
        numbers: what it uses instead of its update's own scalars, by name, such as a learning rate that changes.
    """

    node: int
    action: str
    vectors: Vectors
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What one client answered.

    Args:
        node: the client.
        action: what it was asked.
        vectors: what it sent, by name [P].
        metrics: the numbers it sent; reading one computes it.
        examples: how many samples it has.
        weighting: whether that is how much it counts.
    """

    node: int
    action: str
    vectors: Vectors
    metrics: MetricRecord
    examples: int
    weighting: Weighting = "samples"

    @property
    def weight(self) -> int:
        """How much it counts in an average: as many samples as it has, or 1."""
        return self.examples if self.weighting == "samples" else 1


class Rounds(Strategy):
    """A server strategy in rounds: choose clients, ask them, merge their replies into the model.

    A strategy says how to :meth:`merge`, and what to :meth:`ask` if that is more than to train. It is an ordinary
    Flower strategy, and runs in a simulation and on a SuperLink alike.

    Args:
        updates: what clients do, by message type.
        participants: clients in a round; fewer if fewer are online.
        select: how they are chosen; None draws them uniformly.
        seed: of everything that the strategy draws.
        timeout_s: how long an exchange of its own waits, in seconds; None waits for all.

    Attributes:
        queries: what clients answer without their data, by message type, such as ``query.average``.
        weighted: whether the strategy averages by :attr:`Reply.weight`; False counts all replies alike, whatever the
            experiment says.
        weighting: how replies are weighted, where they are.
        latest: what :meth:`facts` has said about the latest round, for the run's record.
    """

    timing_depends_on_values = False
    weighted = True
    weighting: Weighting = "samples"
    queries: Mapping[str, Query] = {}

    def __init__(
        self,
        updates: Mapping[str, LocalUpdate],
        participants: int,
        select: Selector | None = None,
        seed: int = 0,
        timeout_s: float | None = 3600.0,
    ) -> None:
        self.select = Uniform(seed=seed) if select is None else select
        self.updates = {**updates, **self.select.updates}
        self.participants, self.seed, self.timeout_s = participants, seed, timeout_s
        self.timing_depends_on_values = self.timing_depends_on_values or self.select.timing_depends_on_values
        self.clients = 0
        self.latest: dict[str, int | float] = {}

    def ask(self, round: int, model: Deferred, cohort: Sequence[int]) -> Iterable[Ask]:
        """Return what to ask of whom; by default all of the cohort train from the model.

        Args:
            round: its number, from 1.
            model: the weights [P].
            cohort: the clients chosen, sorted.
        """
        return ask_all(cohort, "train", arrays=model)

    @abstractmethod
    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Return the new weights [P].

        Args:
            round: its number, from 1.
            model: the weights [P] that were sent.
            replies: those that came, at least one, in the order of node ids, in which everything is to be summed.
        """

    def begin(self, model: Deferred) -> None:
        """Do what comes before the first round, with :meth:`online` and :meth:`exchange`; nothing by default."""

    def missed(self, round: int, model: Deferred) -> Deferred:
        """Return the new weights [P] after a round without any reply; the old ones by default."""
        return model

    def size(self, round: int) -> int | None:
        """Return how many clients take part in a round, or None for all that are online."""
        return self.participants

    def facts(self, replies: Sequence[Reply]) -> dict[str, int | float]:
        """Return numbers about a round, for the run's record and Flower's history.

        Where only time is kept, those of a strategy that reads what clients have computed are left out.
        """
        return {"replies": len(replies)}

    def check(self, clients: int) -> None:
        """Take note of the number of clients, and check the parameters against it."""
        if self.participants > clients:
            raise BadValue("participants", self.participants, f"at most {clients}, the number of clients")
        self.select.check(clients)
        self.clients = clients

    def check_around(self, transforms: Sequence[Transform | Central]) -> None:
        """Refuse what cannot go around this strategy; nothing by default.

        Args:
            transforms: what the experiment puts around it, in order.
        """

    def online(self) -> list[int]:
        """Return the clients that are online, sorted; wait for one if there is none."""
        return online(self._grid)

    def exchange(self, asks: Iterable[Ask]) -> list[Reply]:
        """Send messages besides those of :meth:`ask` and wait for the replies.

        Returns:
            The replies that came, in the order of node ids.
        """
        return heard(
            self._grid.send_and_receive(self._messages(asks), timeout=self.timeout_s), self.weighting
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Choose the clients of a round and write to them."""
        self._grid, self._config, self._arrays = grid, config, arrays
        self._model, self._shape = unpack(arrays), layout_of(arrays)
        if server_round == 1:
            config["server-round"] = 0
            # a server of Flower's own does not say how many clients there are
            self.clients = self.clients or max(self.participants, len(self.online()))
            self.begin(self._model)
        config["server-round"] = server_round
        cohort = self.select.choose(server_round, arrays, grid, self.size(server_round))
        messages = self._messages(self.ask(server_round, self._model, cohort))
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge what came back."""
        came = heard(replies, self.weighting)
        self.select.heard(server_round, self._asked, [reply.node for reply in came])
        model = self._model
        new = self.merge(server_round, model, came) if came else self.missed(server_round, model)
        self.latest = self._said(came)
        return pack(new, *self._shape), MetricRecord(dict(self.latest))

    def _said(self, came: Sequence[Reply]) -> dict[str, int | float]:
        """Return the facts, unless they are made of numbers that nobody has computed."""
        with real([reply.metrics for reply in came]) as is_real, suppress(ValueNeeded):
            found = dict(self.facts(came))
            return found if is_real() else {}
        return {}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked for."""
        return None

    def summary(self) -> None:
        """Say nothing; the experiment file says it all."""

    def _messages(self, asks: Iterable[Ask]) -> list[Message]:
        """Write messages; those that say the same share their content."""
        records = {id(self._model): self._arrays}
        contents: dict[tuple[tuple[str, int | float], ...], RecordDict] = {}
        messages = []
        for ask in asks:
            key = (*((name, id(vector)) for name, vector in ask.vectors.items()), *ask.numbers.items())
            if key not in contents:
                for vector in ask.vectors.values():
                    records.setdefault(id(vector), pack(vector, *self._shape))
                contents[key] = RecordDict({name: records[id(v)] for name, v in ask.vectors.items()})
                contents[key]["config"] = ConfigRecord({**self._config, **ask.numbers})
            messages.append(Message(contents[key], ask.node, ask.action))
        return messages


def ask_all(
    nodes: Iterable[int], action: str, numbers: Mapping[str, float] | None = None, **vectors: Deferred
) -> list[Ask]:
    """Ask several clients for the same; an underscore in a vector's name stands for a dash.

    Args:
        nodes: the clients.
        action: the message type.
        numbers: what they use instead of their update's own scalars, by name.
        vectors: what they need, by name [P].

    >>> [ask.node for ask in ask_all([2, 5], "train", arrays=Deferred.phantom())]
    [2, 5]
    """
    named = {name.replace("_", "-"): vector for name, vector in vectors.items()}
    return [Ask(node, action, named, numbers or {}) for node in nodes]


def heard(messages: Iterable[Message], weighting: Weighting = "samples") -> list[Reply]:
    """Return the replies that are not errors, in the order of node ids."""
    came = (_reply(message, weighting) for message in messages if message.has_content())
    return sorted(came, key=lambda reply: reply.node)


def _reply(message: Message, weighting: Weighting) -> Reply:
    vectors, metrics = {}, MetricRecord()
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            vectors[name] = unpack(record)
        elif isinstance(record, MetricRecord):
            metrics = record
    examples = int(str(metrics.get("num-examples", 0)))
    who, what = message.metadata.src_node_id, message.metadata.message_type
    return Reply(who, what, vectors, metrics, examples, weighting)


def average(replies: Sequence[Reply], name: str = "arrays") -> Deferred:
    """Return the mean of what the clients sent [P], weighted by their samples unless all count alike.

    Clients without any weigh nothing; see :func:`weighing`.
    """
    heavy = weighing(replies)
    return mean([reply.vectors[name] for reply in heavy], [reply.weight for reply in heavy])


def weighing(replies: Sequence[Reply]) -> list[Reply]:
    """Return the replies that weigh something in a mean: those of clients that have samples, or all if all count alike.

    Raises:
        RunError: if no client has any.
    """
    heavy = [reply for reply in replies if reply.weight]
    if not heavy:
        who = few([reply.node for reply in replies])
        reason = f"clients {who} have replied that they have used 0 examples, so there is no mean by examples"
        raise RunError(reason, phase="aggregate")
    return heavy


def uniform_mean(replies: Sequence[Reply], name: str = "arrays") -> Deferred:
    """Return the mean of what the clients sent [P], all counted the same."""
    return mean([reply.vectors[name] for reply in replies])
