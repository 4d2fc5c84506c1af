"""Peer strategies: algorithms without a server, written as one SimPy process for each node."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

import simpy

from fedsim.learn.corrupt import corrupted
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalUpdate
from fedsim.world.clock import Process, micros
from fedsim.world.graph import Graph, receivers, rounds, senders, talk
from fedsim.world.net.network import Message
from fedsim.world.node import Node
from fedsim.world.world import World


class PeerStrategy(ABC):
    """A decentralized algorithm; see ``strategies/peer/dpsgd.py`` for one that reads like its paper.

    Attributes:
        update: what the nodes train with; None is plain local SGD.
        timing_depends_on_values: whether what happens depends on numbers that only training can give.
        directed: whether it can use links that only work one way.
        varying: whether it can use a topology that changes from round to round.
        one_model: whether a round has one model, which :meth:`Peer.conclude` names, and not one for each node.
    """

    update: LocalUpdate = None  # type: ignore[assignment]  # some have none of their own
    timing_depends_on_values = False
    directed = False
    varying = False
    one_model = False

    @abstractmethod
    def run(self, node: Peer) -> Process:
        """One node's life, as a SimPy generator."""

    def check(self, clients: int) -> None:  # noqa: B027 - most strategies run with any number
        """Refuse parameters that do not fit the number of peers, before the start."""

    def setup(self, graph: Graph) -> None:  # noqa: B027 - most strategies have nothing to prepare
        """Prepare what all nodes share, such as mixing weights; called once, before the start."""

    def facts(self) -> Mapping[str, float]:
        """Return numbers about the prepared strategy that belong in the record, by name."""
        return {}

    def measure(self, round: int) -> Mapping[str, float]:
        """Return numbers about a round that has just ended, by name, which must not depend on values.

        They become metrics of the rounds whose models are evaluated, also where time alone is kept.
        """
        del round
        return {}

    def holders(self, round: int) -> Container[int] | None:
        """Return the nodes whose models count at the end of a round; None stands for all."""
        del round
        return None


class Host(Protocol):
    """What a peer needs of the run that it belongs to.

    Attributes:
        world: where it lives.
        learner: model, data and engine.
        rounds: how many rounds there are, or None.
        model_bytes: the size of a model in a message.
        founders: the nodes that are online at the start, in the order of ids.
        updates: client updates that are in use.
    """

    world: World
    learner: Learner
    rounds: int | None
    model_bytes: int
    founders: list[int]
    updates: int

    def waited(self, peer: Peer, what: str, missing: Iterable[int], began_s: float) -> None:
        """Take note that a timeout has ended a wait."""

    def guard(self, peer: Peer, process: Process) -> Process:
        """Let an error say at which node, when and in which round it happened."""

    def finish(self, peer: Peer, round: int, model: Deferred, updates: int = 1) -> None:
        """Take note that a node has finished a round."""

    def conclude(self, round: int, model: Deferred, updates: int) -> None:
        """Take note that a round with one model is over."""


class Peer:
    """A node as a peer strategy sees it: it trains, sends models, receives models, and finishes rounds.

    Args:
        node: the node in the simulated world.
        run: the run it belongs to.
    """

    def __init__(self, node: Node, run: Host) -> None:
        self.node, self.id = node, node.id
        self._graph = talk(run.world.network.graph)
        self._changes = rounds(self._graph) != (self._graph,)
        self.neighbours = sorted(self._graph[node.id])
        self.finished = self.sleeping = 0
        self.round = 1
        """The latest round of :meth:`rounds`, which is the one that the node is in."""
        self.was_away = False
        self.kept: dict[str, Deferred] = {}
        self._visits = self._visited = self._visit = 0
        self.waiting_for: Callable[[], str] = node.waiting_for
        self._run = run

    @property
    def initial_model(self) -> Deferred:
        """The weights that everybody starts from."""
        return self._run.learner.initial

    @property
    def zeros(self) -> Deferred:
        """A vector of zeros, as long as the model."""
        return self._run.learner.zeros

    @property
    def founders(self) -> list[int]:
        """The nodes that are online at the start, in the order of ids."""
        return self._run.founders

    def mbps(self, other: int) -> float:
        """Return what a node can both send and receive, in Mbit/s; infinite where it is not limited."""
        access = self._run.world.network.access[other]
        return min(bps / 1e6 if bps else math.inf for bps in (access.up_bps, access.down_bps))

    @property
    def samples(self) -> int:
        """The number of samples that its data has."""
        return self._run.learner.sizes[self.id]

    @property
    def parameters(self) -> int:
        """The number of weights of the model."""
        return self._run.learner.engine.task.trained

    @property
    def dtype(self) -> str:
        """The type of a number in a message."""
        return str(self._run.learner.engine.task.dtype).removeprefix("torch.")

    @property
    def model_bytes(self) -> int:
        """The size of a model in a message."""
        return self._run.model_bytes

    def receivers(self, round: int) -> list[int]:
        """Return whom this node sends to in a round, in the order of ids."""
        return receivers(self._graph, self.id, round) if self._changes else self.neighbours

    def senders(self, round: int) -> list[int]:
        """Return who sends to this node in a round, in the order of ids."""
        return senders(self._graph, self.id, round) if self._changes else self.neighbours

    def rounds(self, every: bool | None = None) -> Iterator[int]:
        """Count rounds from 1; a node that was away goes on with the latest round it has heard of.

        Args:
            every: take no round but after an absence as missed; where the nodes that a node hears from do not wait
                for it, those may be ahead of it by several rounds. By default so where links are directed or change.
        """
        every = self._changes if every is None else every
        last = self._run.rounds
        while last is None or self.finished < last:
            heard = self.node.heard if last is None else min(self.node.heard, last)
            skips, self.was_away = self.was_away or not every, False
            self.round = max(self.finished + 1, heard if skips else 0)
            yield self.round

    def train(self, update: LocalUpdate, model: Deferred, round: int) -> Process:
        """Train on the node's own data; work that is interrupted is done again when the node is back.

        Each training draws batches of its own, also where a node trains several times in one round.

        Returns:
            The trained model.
        """
        result = yield from self.visit(update, {"arrays": model}, round)
        return result.pick("arrays")

    def visit(
        self,
        update: LocalUpdate,
        given: Mapping[str, Deferred],
        round: int,
        numbers: Mapping[str, float] | None = None,
    ) -> Process:
        """Do a local update that takes or gives more than a model, as :meth:`train` does.

        Args:
            update: what the node does.
            given: the vectors that it takes; what the node keeps for it is added.
            round: which streams it draws from.
            numbers: what stands in the place of the update's scalars of these names.

        Returns:
            What the update sends, as a deferred dictionary.
        """
        learner, node, update = self._run.learner, self.node, update.at(round)
        while True:
            if not node.online:
                yield node.back()
            began_s = node.clock.now_s
            job = node.compute(update.work(self.samples), round)
            try:
                finished = yield job
            except simpy.Interrupt:
                job.cancel()
                raise
            if finished:
                names = (*update.keeps, *learner.keeps)
                kept = {name: self.kept.get(name, self.zeros) for name in names if name not in given}
                result = learner.train(
                    update, self.id, {**kept, **given}, self._place(round, began_s), numbers
                )
                self.kept.update((name, result.pick(name)) for name in kept)
                return result

    def _place(self, round: int, began_s: float) -> Place:
        """Name a visit that is done: no two have the same round and number, whatever the order of rounds."""
        self._visits += 1
        if round >= self._visited:
            self._visit = 1 if round > self._visited else self._visit + 1
            self._visited = round
            return Place(self.id, round, began_s, self._visit)
        return Place(self.id, round, began_s, self._visits)

    def send_model(self, to: Iterable[int], model: Deferred, round: int) -> None:
        """Send a model to several nodes; one that a fault corrupts sends something else."""
        place = Place(self.id, round, self.node.clock.now_s)
        model = corrupted(model, self.node.corruptions, place)
        message = Message("model", model, self._run.model_bytes, round, self.id)
        self.node.send_all(map(self._run.world.nodes.__getitem__, to), message)

    def send(
        self,
        to: Collection[int],
        payload: tuple[Any, ...],
        size_bytes: int,
        round: int,
        kind: str = "model",
        on_end: Callable[[int, bool], None] | None = None,
    ) -> None:
        """Send more or less than a model; faults corrupt the deferred vectors of the payload.

        What a node sends to itself is handed over at once and costs nothing. ``on_end`` is told the receiver and
        whether the message was delivered.
        """
        place, faults = Place(self.id, round, self.node.clock.now_s), self.node.corruptions
        sent = tuple(
            corrupted(one, faults, place, f"{kind}/{i}") if isinstance(one, Deferred) else one
            for i, one in enumerate(payload)
        )
        message = Message(kind, sent, size_bytes, round, self.id)
        nodes, others = self._run.world.nodes, [other for other in to if other != self.id]
        if on_end is None:
            self.node.send_all(map(nodes.__getitem__, others), message)
        else:
            for other in others:
                self.node.send(nodes[other], message, partial(on_end, other))
        if len(others) < len(to):
            self.node.deliver(message)

    def receive_models(
        self, senders: Iterable[int], round: int, timeout_s: float | None = None, kind: str = "model"
    ) -> Process:
        """Wait for the models of a round.

        Returns:
            The models (or what else was sent) that came in time, by sender, in the order of ids.
        """
        timeout_us = None if timeout_s is None else micros(timeout_s)
        wanted, began_s = frozenset(senders), self.node.clock.now_s
        heard = yield self.node.gather(kind, round, wanted, timeout_us)
        if len(heard) < len(wanted):
            self._run.waited(self, f"{kind} of round {round}", wanted - heard.keys(), began_s)
        return {sender: message.payload for sender, message in heard.items()}

    def receive(self, kind: str = "model") -> Process:
        """Wait for the next message of a kind, from whomever, and return it."""
        message: Message = yield self.node.receive(lambda message: message.kind == kind)
        return message

    def sleep(self, time_s: float) -> Process:
        """Let simulated time pass."""
        self.sleeping += 1
        try:
            yield self.node.clock.timeout(micros(time_s))
        finally:
            self.sleeping -= 1

    def start(self, process: Process) -> simpy.Process:
        """Do something else beside :meth:`PeerStrategy.run`; a mistake in it stops the run, too.

        Returns:
            The SimPy process; interrupting it ends it, and the training that it is in is wasted.
        """
        return self.node.clock.process(self._run.guard(self, process))

    def after(self, delay_s: float, call: Callable[..., Any], *args: Any) -> None:
        """Call a function later; until then, the node counts as one that has something to do."""
        self.sleeping += 1
        self.node.clock.after(micros(delay_s), self._wake, call, args)

    def _wake(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.sleeping -= 1
        call(*args)

    def on_retire(self, goodbye: Callable[[], Process]) -> None:
        """Let a process run before the node leaves for good by its own choice, while it is still online."""
        self.node.goodbye = goodbye

    def finish(self, round: int, model: Deferred, updates: int = 1) -> None:
        """Declare a round finished, with the model that the node has now and how often it was trained."""
        self._run.finish(self, round, model, updates)

    def count(self, updates: int) -> None:
        """Count trainings that belong to no round that the node finishes, as soon as what came of them is in use."""
        self._run.updates += updates

    def conclude(self, round: int, model: Deferred, updates: int) -> None:
        """Declare a round finished for everybody, with its one model; of several such declarations the first counts.

        Args:
            round: the round.
            model: what came out of it.
            updates: how many trained models it is made of.
        """
        self._run.conclude(round, model, updates)
