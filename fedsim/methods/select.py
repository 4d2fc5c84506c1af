"""Who takes part in a round: selectors, which any method with a server can take.

A part named in ``strategy.select``. Our methods ask it themselves; for one of Flower's strategies,
:class:`fedsim.flower.with_selector.Chosen` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedsim import rng
from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalUpdate
from fedsim.methods.metrics import Metric
from fedsim.methods.server import Ask, Reply, Server, ask_all
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Weighting

EVALUATE = "evaluate"
"""The message type that sends a client a model and asks for its loss and accuracy on the client's own data."""

QUERY_SIZE = "query.size"
"""The message type that asks a client how many samples it has."""


class Selector(ABC):
    """Chooses the clients of a round.

    Attributes:
        timing_depends_on_values: whether its choice, or when it is made, depends on what clients have computed.
        updates: what clients do with the messages that it sends, by message type, besides ``evaluate`` and
            ``query.size``, which all of them know.
        weighting: how the replies of those chosen are to be averaged, unless the experiment says something else. A
            selector that prefers clients with many samples says ``"uniform"``: else their size would count twice.
        in_round: how many updates make a round, said by a method whose clients are chosen now and then, as many as
            there are places for; None where those of a round are chosen together.
    """

    in_round: int | None = None
    timing_depends_on_values: bool = False
    weighting: Weighting = "samples"
    updates: Mapping[str, LocalUpdate] = {}

    @abstractmethod
    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Return the clients of a round, sorted.

        Args:
            round: its number, from 1; that of the choice, where clients are chosen more than once in a round.
            model: the weights [P].
            server: whom to choose from; messages may be sent through it.
            size: how many the method asks for, or None for all. A selector may return fewer or more.
        """

    def heard(  # noqa: B027 - most selectors learn nothing
        self, round: int, asked: Sequence[int], answered: Sequence[int]
    ) -> None:
        """Take note of who was asked in a round and who has answered; nothing by default."""

    def share(self, node: int) -> float:
        """Return how much a client that was chosen counts where clients do not count by their samples; 1 by default."""
        del node
        return 1.0

    def check(self, clients: int) -> None:  # noqa: B027 - most have nothing to check
        """Check the parameters against the number of clients; nothing by default."""

    def metrics(self, round: int) -> Iterable[Metric]:
        """Return numbers about the latest choice for the record; asked for wherever the model is evaluated."""
        del round
        return ()


class Uniform(Selector):
    """All subsets of the clients that are online are equally likely.

    Args:
        seed: of the draws.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Draw without replacement."""
        ids = server.online()
        return draw(ids, len(ids) if size is None else size, rng.stream(self.seed, "cohort", round=round))


class RoundRobin(Selector):
    """Clients take turns in the order of their ids; one that is offline at its turn is passed over."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Go on behind the client that was chosen last."""
        ids = server.online()
        turn = [id for id in ids if id > self._last] + [id for id in ids if id <= self._last]
        chosen = turn[: len(ids) if size is None else size]
        self._last = chosen[-1]
        return sorted(chosen)


class BySize(Selector):
    """The probability to take part is proportional to the number of samples, and is 1 for those who have too many.

    A client is asked for its number once, by a message of its own when it is online for the first time. Those chosen
    all count the same in an average, except that whoever is always chosen counts by its samples: so the average is
    that over all samples, however many take part. See :func:`proportional`.

    Args:
        seed: of the draws.
        timeout_s: how long to wait for the numbers, in seconds; who has not answered by then is left out.
    """

    weighting: Weighting = "uniform"

    def __init__(self, *, seed: int = 0, timeout_s: Positive | None = 3600.0) -> None:
        self.seed, self.sizes = seed, Sizes(timeout_s)
        self._shares: dict[int, float] = {}

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Draw without replacement."""
        sizes = self.sizes.of(server.online(), round, server)
        drawn = proportional(sizes, size, rng.stream(self.seed, "cohort", round=round))
        self._shares.update(drawn)
        return sorted(drawn)

    def share(self, node: int) -> float:
        """Return its number of samples by its probability to be drawn; 1 for all who are not always drawn."""
        return self._shares.get(node, 1.0)


class PowerOfChoice(Selector):
    """Of some candidates, those with the highest loss (Y. J. Cho, J. Wang, G. Joshi, AISTATS 2022).

    Candidates are drawn by their numbers of samples; each is sent the model and answers with its loss on its own data,
    which costs a forward pass and the bytes. Those chosen all count the same in an average, as in the paper.

    Args:
        candidates: how many are asked (d); no fewer than take part.
        seed: of the draws.
        timeout_s: how long to wait for the losses, in seconds; who has not answered by then is left out.
    """

    timing_depends_on_values = True
    weighting: Weighting = "uniform"

    def __init__(self, *, candidates: Count, seed: int = 0, timeout_s: Positive | None = 3600.0) -> None:
        self.candidates, self.seed, self.timeout_s = candidates, seed, timeout_s
        self.sizes = Sizes(timeout_s)

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Ask the candidates for their losses; of equal ones, the smaller id goes first."""
        sizes = self.sizes.of(server.online(), round, server)
        wanted = max(self.candidates, size or 0)
        candidates = weighted(sizes, wanted, rng.stream(self.seed, "candidates", round=round))
        replies = asked(server, round, ask_all(candidates, EVALUATE, arrays=model), self.timeout_s)
        losses = {reply.node: float(reply.metrics["loss"]) for reply in replies}
        return sorted(sorted(losses, key=lambda node: (-losses[node], node))[:size])

    def check(self, clients: int) -> None:
        """Refuse to ask more than there are."""
        if self.candidates > clients:
            raise BadValue("candidates", self.candidates, f"at most {clients}, the number of clients")


class Available(Selector):
    """Prefer clients that have been seen online for long and that have answered when they were asked.

    The probability of each draw is proportional to (answers + 1) / (times asked + 2), and to s / (s + 1) for a client
    that has been online in the last s choices without a gap. All of it is what a server sees by itself.

    Args:
        seed: of the draws.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._streaks: dict[int, int] = {}
        self._asked: Counter[int] = Counter()
        self._answered: Counter[int] = Counter()

    def weight(self, node: int) -> float:
        """Return how much a client that is online is preferred, between 0 and 1."""
        streak = self._streaks.get(node, 0)
        return (self._answered[node] + 1) / (self._asked[node] + 2) * streak / (streak + 1)

    def choose(self, round: int, model: Deferred, server: Server, size: int | None) -> list[int]:
        """Look who is online, and draw without replacement."""
        self._streaks = {node: self._streaks.get(node, 0) + 1 for node in server.online()}
        weights = {node: self.weight(node) for node in self._streaks}
        return weighted(weights, size, rng.stream(self.seed, "cohort", round=round))

    def heard(self, round: int, asked: Sequence[int], answered: Sequence[int]) -> None:
        """Count who was asked and who has answered."""
        self._asked.update(asked)
        self._answered.update(answered)


class Sizes:
    """The numbers of samples of the clients, each asked for once.

    Args:
        timeout_s: how long to wait for the answers, in seconds.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._known: dict[int, int] = {}

    def of(self, nodes: Iterable[int], round: int, server: Server) -> dict[int, int]:
        """Return the numbers of those clients that have ever answered, by id."""
        nodes = list(nodes)
        new = [node for node in nodes if node not in self._known]
        for reply in asked(server, round, ask_all(new, QUERY_SIZE), self._timeout_s):
            self._known[reply.node] = reply.examples
        return {node: self._known[node] for node in nodes if node in self._known}


def asked(server: Server, round: int, asks: Sequence[Ask], timeout_s: float | None) -> list[Reply]:
    """Ask clients something, if there is anybody to ask, and return the replies in the order of node ids."""
    return server.exchange(round, asks, timeout_s) if asks else []


def draw(ids: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Draw distinct clients uniformly, as many as there are but at most ``size``; sorted.

    >>> from fedsim.rng import stream
    >>> draw([3, 5, 8, 9], 2, stream(0, "doc"))
    [5, 8]
    """
    picked = rng.choice(len(ids), size=min(size, len(ids)), replace=False)
    return sorted(ids[int(index)] for index in picked)


def weighted(weights: Mapping[int, float], size: int | None, rng: np.random.Generator) -> list[int]:
    """Draw distinct ids one after another, each with a probability proportional to its weight; sorted.

    Args:
        weights: positive numbers by id.
        size: how many, or None for all; no more than there are.
        rng: draws.

    >>> from fedsim.rng import stream
    >>> weighted({3: 1.0, 5: 1e9, 8: 1.0}, 1, stream(0, "doc"))
    [5]
    """
    ids = sorted(weights)
    if size is None or size >= len(ids):
        return ids
    chances = np.array([weights[id] for id in ids], dtype=float)
    picked = rng.choice(len(ids), size=size, replace=False, p=chances / chances.sum())
    return sorted(ids[int(index)] for index in picked)


def proportional(sizes: Mapping[int, int], size: int | None, rng: np.random.Generator) -> dict[int, float]:
    """Draw distinct ids, each with a probability of taking part that is proportional to its size, or 1.

    A size that asks for more than 1 gives 1, and the others share what is left: drawing one after another would let
    large ones take part too rarely. The ids stand in a random order, each as wide as its probability, and are taken
    at equal distances from a random start (W. G. Madow, Annals of Mathematical Statistics 20, 1949).

    Args:
        sizes: numbers of samples by id; whoever has none is drawn only if nobody has any.
        size: how many, or None for all; no more than there are.
        rng: draws.

    Returns:
        How much each one drawn counts in a mean, by id: its size by its probability, 1 where that is below 1.

    >>> from fedsim.rng import stream
    >>> proportional({3: 1, 5: 1, 8: 6}, 2, stream(0, "doc"))[8]
    3.0
    >>> proportional({3: 1, 5: 2, 8: 6}, None, stream(0, "doc"))
    {3: 1.0, 5: 2.0, 8: 6.0}
    """
    ids = [node for node in sorted(sizes) if sizes[node]] or sorted(sizes)
    widths = np.array([sizes[node] or 1 for node in ids], dtype=float)
    wanted = len(ids) if size is None else min(size, len(ids))
    always = np.zeros(len(ids), dtype=bool)
    scale = 1 / widths.min() if len(ids) else 1.0
    while wanted > always.sum():
        scale = (wanted - always.sum()) / widths[~always].sum()
        more = ~always & (scale * widths > 1 - 1e-9)
        if not more.any():
            break
        always |= more
    rest = rng.permutation(np.flatnonzero(~always))
    marks = rng.random() + np.arange(wanted - always.sum())
    ends = np.cumsum(scale * widths[rest])
    drawn = [*np.flatnonzero(always), *rest[np.searchsorted(ends[:-1], marks, side="right")]]
    shares = np.maximum(scale * widths, 1.0)
    return {ids[index]: float(shares[index]) for index in sorted(drawn)}
