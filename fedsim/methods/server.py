"""What a method with a server speaks through: what it asks of whom, and what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsim.errors import RunError, few
from fedsim.learn.deferred import Deferred, mean
from fedsim.spec.experiment import Weighting

Vectors = Mapping[str, Deferred]
"""Vectors [P] by name."""

Query = Callable[[Vectors], Vectors]
"""What a client makes of the vectors of a message without its data: the vectors of its reply."""


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
    vectors: Vectors = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What one client answered.

    Args:
        node: the client.
        action: what it was asked.
        vectors: what it sent, by name [P].
        metrics: the numbers it sent, by name; reading one computes it.
        examples: how many samples it has.
        weighting: whether that is how much it counts.
        share: how much it counts otherwise.
    """

    node: int
    action: str
    vectors: Vectors
    metrics: Mapping[str, Any]
    examples: int
    weighting: Weighting = "samples"
    share: float = 1.0

    @property
    def weight(self) -> float:
        """How much it counts in an average: as many samples as it has, or its share."""
        return self.examples if self.weighting == "samples" else self.share


@dataclass(frozen=True)
class Answer:
    """The end of something that was sent: a reply, or None if the client has failed or is too late.

    Args:
        round: the round in which it was sent.
        ask: what was sent.
        reply: what came back.
    """

    round: int
    ask: Ask
    reply: Reply | None


class Server(ABC):
    """A server as a method sees it: a simulated one, or one that speaks through a Flower grid.

    Attributes:
        clients: how many clients there are, or 0 where nobody can know.
    """

    clients: int = 0

    @abstractmethod
    def online(self, at_least: int = 1) -> list[int]:
        """Return the clients that are online, sorted; wait until there are enough of them."""

    @abstractmethod
    def exchange(
        self, round: int, asks: Iterable[Ask], timeout_s: float | None = None, share: float | None = None
    ) -> list[Reply]:
        """Send messages and wait for the replies.

        Args:
            round: the round that they belong to, from 1; 0 comes before the first.
            asks: what is sent.
            timeout_s: how long to wait at most, in seconds; None waits for all.
            share: which share of the replies is enough; the others are dropped. None is the server's own rule.

        Returns:
            The replies that came, in the order of node ids.
        """

    @abstractmethod
    def send(self, round: int, asks: Iterable[Ask], timeout_s: float | None = None) -> None:
        """Send messages and go on; what does not come back in time has failed."""

    @abstractmethod
    def receive(self) -> list[Answer]:
        """Wait for the next end of something sent, and return all that have come by then, in the order of arrival."""

    def train_here(self, round: int, model: Deferred) -> Reply:
        """Train a model [P] on the data of all clients, where those lie with the server, and return what comes of it.

        Raises:
            RunError: if the server has no data.
        """
        raise RunError("the server has no data of its own", round=round, phase="train")


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


def trains(action: str) -> bool:
    """Tell whether a message asks a client to train.

    >>> trains("train.anchor"), trains("evaluate")
    (True, False)
    """
    return action.partition(".")[0] == "train"


def evaluates(action: str) -> bool:
    """Tell whether a message asks a client to evaluate.

    >>> evaluates("evaluate.holdout"), evaluates("train")
    (True, False)
    """
    return action.partition(".")[0] == "evaluate"


def nothing(_: Vectors) -> Vectors:
    """Answer a message for the sake of the answer.

    >>> nothing({})
    {}
    """
    return {}
