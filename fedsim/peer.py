"""Peer strategies: algorithms without a server, written as one SimPy process for each node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from fedsim.errors import RunError, StalledError
from fedsim.learn.corrupt import corrupted
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalUpdate
from fedsim.observer import Observer
from fedsim.world.clock import Process, micros
from fedsim.world.graph import Graph
from fedsim.world.network import Message
from fedsim.world.node import Node
from fedsim.world.world import World

WATCH_S = 600.0
"""How often to check that somebody can still make progress, in simulated seconds."""

PATIENCE_S = 10_000_000.0
"""How long to wait while nobody does anything, in simulated seconds."""


class PeerStrategy(ABC):
    """A decentralized algorithm; see ``strategies/dpsgd.py`` for one that reads like its paper."""

    timing_depends_on_values = False

    @abstractmethod
    def run(self, node: Peer) -> Process:
        """One node's life, as a SimPy generator."""

    def setup(self, graph: Graph) -> None:  # noqa: B027 - most strategies have nothing to prepare
        """Prepare what all nodes share, such as mixing weights; called once, before the start."""


class Peer:
    """A node as a peer strategy sees it: it trains, sends models, receives models, and finishes rounds.

    Args:
        node: the node in the simulated world.
        run: the run it belongs to.
    """

    def __init__(self, node: Node, run: PeerRun) -> None:
        self.node, self.id = node, node.id
        self.neighbours = sorted(run.world.network.graph[node.id])
        self.finished = 0
        self._run = run

    @property
    def initial_model(self) -> Deferred:
        """The weights that everybody starts from."""
        return self._run.learner.initial

    def rounds(self) -> Iterator[int]:
        """Count rounds from 1; a node that was away goes on with the latest round it has heard of."""
        last = self._run.rounds
        while last is None or self.finished < last:
            heard = self.node.heard if last is None else min(self.node.heard, last)
            yield max(self.finished + 1, heard)

    def train(self, update: LocalUpdate, model: Deferred, round: int) -> Process:
        """Train on the node's own data; work that is interrupted is done again when the node is back.

        Returns:
            The trained model.
        """
        learner, node = self._run.learner, self.node
        while True:
            yield node.back()
            place = Place(self.id, round, node.clock.now_s)
            finished = yield node.compute(update.work(learner.sizes[self.id]), round)
            if finished:
                return learner.train(update, self.id, {"arrays": model}, place).pick("arrays")

    def send_model(self, to: Iterable[int], model: Deferred, round: int) -> None:
        """Send a model to several nodes; one that a fault corrupts sends something else."""
        place = Place(self.id, round, self.node.clock.now_s)
        model = corrupted(model, self.node.corruptions, place)
        message = Message("model", model, self._run.model_bytes, round, self.id)
        nodes = self._run.world.nodes
        for other in to:
            self.node.send(nodes[other], message)

    def receive_models(self, senders: Iterable[int], round: int, timeout_s: float | None = None) -> Process:
        """Wait for the models of a round.

        Returns:
            The models that came in time, by sender.
        """
        timeout_us = None if timeout_s is None else micros(timeout_s)
        heard = yield self.node.gather("model", round, senders, timeout_us)
        return {sender: message.payload for sender, message in heard.items()}

    def finish(self, round: int, model: Deferred) -> None:
        """Declare a round finished, with the model that the node has now."""
        self._run.finish(self, round, model)


class PeerRun:
    """Runs a peer strategy: one process a node, and a round ends when every node that is online has finished it.

    Args:
        world: the peers.
        learner: model, data and engine.
        strategy: what they do.
        observer: told of every round.
    """

    def __init__(self, world: World, learner: Learner, strategy: PeerStrategy, observer: Observer) -> None:
        self.world, self.learner, self.strategy, self.observer = world, learner, strategy, observer
        self.rounds = observer.experiment.stop.rounds
        self.model_bytes = learner.engine.task.size * learner.engine.task.initial.element_size()
        self.updates = 0
        self.peers = {node.id: Peer(node, self) for node in world.members}
        self.latest = {id: learner.initial for id in self.peers}
        self._round = 0
        self._kept: dict[int, dict[int, Deferred]] = {}
        self._behind = 0
        self._ended: set[int] = set()
        self._over = world.clock.event()
        self._progress = (-1, -1)

    def run(self) -> None:
        """Run until the experiment's stop condition.

        Raises:
            StalledError: if nobody can make progress any more; says who waits for whom.
        """
        clock, limit_s = self.world.clock, self.observer.experiment.stop.sim_time_s
        self.strategy.setup(self.world.network.graph)
        self.observer.on_round(0, self.latest, 0)
        for peer in self.peers.values():
            peer.node.on_change.append(self._changed)
            clock.process(self._life(peer))
        self._count()
        clock.process(self._watch())
        if limit_s is not None:
            clock.after(micros(limit_s), self._end)
        clock.wait(self._over, self.diagnosis)

    def finish(self, peer: Peer, round: int, model: Deferred) -> None:
        """Take note that a node has finished a round."""
        if peer.node.online and peer.finished <= self._round < round:
            self._behind -= 1
        peer.finished = round
        self.updates += 1
        self.latest[peer.id] = model
        if round > self._round and not self.learner.dry:
            self._kept.setdefault(round, {})[peer.id] = model
        self._advance()

    def diagnosis(self) -> str:
        """Say who waits for whom."""
        alive = {id: p for id, p in self.peers.items() if not p.node.crashed and id not in self._ended}
        lines = [
            f"node {id} (round {peer.finished} done) waits for {peer.node.waiting_for()}"
            for id, peer in alive.items()
        ]
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        return "; ".join(lines[:5]) + more or "every node has crashed or come to its end"

    def _life(self, peer: Peer) -> Process:
        try:
            yield from self.strategy.run(peer)
            self._ended.add(peer.id)
        except RunError:
            raise
        except Exception as error:
            now_s = self.world.clock.now_s
            reason = f"{type(error).__name__}: {error}"
            raise RunError(reason, peer.id, peer.finished + 1, now_s, type(self.strategy).__name__) from error

    def _changed(self, node: Node) -> None:
        if self.peers[node.id].finished <= self._round:
            self._behind += 1 if node.online else -1
        self._advance()

    def _count(self) -> None:
        """Count the nodes that are online and have not finished the round that is going on."""
        online = (p for p in self.peers.values() if p.node.online)
        self._behind = sum(peer.finished <= self._round for peer in online)

    def _advance(self) -> None:
        while (
            self._behind == 0 and not self._over.triggered and any(p.node.online for p in self.peers.values())
        ):
            self._round += 1
            kept = self._kept.pop(self._round, {})
            alive = [id for id, peer in self.peers.items() if not peer.node.crashed]
            models = {id: kept.get(id, self.latest[id]) for id in alive}
            if self.observer.on_round(self._round, models, self.updates) or self._round == self.rounds:
                self._end()
            self._count()

    def _end(self) -> None:
        if not self._over.triggered:
            self._over.succeed()

    def _watch(self) -> Process:
        """Stop a run in which nobody computes, sends, or waits for anything that time alone could bring."""
        since_s = 0.0
        while True:
            yield self.world.clock.timeout(micros(WATCH_S))
            totals = self.world.totals()
            progress = (totals["work"], totals["bytes_up"])
            idle = (id in self._ended or peer.node.stuck for id, peer in self.peers.items())
            if progress != self._progress:
                since_s = self.world.clock.now_s
            elif all(idle) or self.world.clock.now_s - since_s > PATIENCE_S:
                now_s = self.world.clock.now_s
                raise StalledError(
                    f"nobody can make progress: {self.diagnosis()}", None, self._round + 1, now_s
                )
            self._progress = progress
