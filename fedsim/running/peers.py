"""Runs a peer strategy, says when a round is over, and notices when nobody can go on."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable

import simpy

from fedsim.errors import FedsimError, RunError, StalledError, at_round, few
from fedsim.learn.buffers import judged
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.methods.metrics import SYSTEM
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.running.observer import Observer
from fedsim.world import scene
from fedsim.world.clock import Process, micros
from fedsim.world.graph import talk
from fedsim.world.node import Node
from fedsim.world.world import World

WATCH_S = 600.0
"""How often to check that somebody can still make progress, in simulated seconds."""

PATIENCE_S = 10_000_000.0
"""How long to wait while nobody does anything, in simulated seconds."""

QUIET_S = 200_000.0
"""How long to wait while nobody trains where a round has one model, in simulated seconds."""

SESSIONS = 2000
"""How often each node may come, and all of them together fifty times as often, while none gets anything done."""

LONG_S = 600.0
"""A wait in vain for so many simulated seconds is warned of."""

MOST_TOLD = 5
"""Of so many nodes a diagnosis says what they wait for."""

log = logging.getLogger("fedsim")


class PeerRun:
    """Runs a peer strategy: one process a node, and a round ends when every node that is online has finished it.

    Where there are servers, only theirs are the rounds and the models.

    Args:
        world: the peers, and servers if the strategy has any.
        learner: model, data and engine.
        strategy: what they do.
        observer: told of every round.
    """

    def __init__(self, world: World, learner: Learner, strategy: PeerStrategy, observer: Observer) -> None:
        self.world, self.learner, self.strategy, self.observer = world, learner, strategy, observer
        self.rounds = observer.experiment.stop.rounds
        task = learner.engine.task
        numbers = sum(math.prod(shape) for _, shape in task.sent)
        self.model_bytes = numbers * task.initial.element_size()
        self.updates = 0
        self.peers = {node.id: Peer(node, self) for node in world.nodes}
        leading = world.servers if strategy.has_servers else world.nodes
        self.leaders = {node.id: self.peers[node.id] for node in leading}
        self.founders = [id for id, peer in self.peers.items() if peer.node.online]
        self.latest = {id: learner.initial for id in self.leaders}
        self._round = 0
        # by node, of rounds that are not over, the next first
        self._ahead: dict[int, dict[int, Deferred]] = {}
        self._behind = 0
        self._ended: set[int] = set()
        self._over = world.clock.event()
        self._progress = (-1, -1, -1)
        self._sessions = 0
        self._warned = False

    def run(self) -> None:
        """Run until the experiment's stop condition; one that has nobody left to go on by then warns of it.

        Raises:
            StalledError: if nobody can make progress any more; says who waits for whom.
        """
        try:
            self._run()
        except StalledError as error:
            if error.round is None:
                raise self._placed(error) from error
            raise
        except (FedsimError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._failure(error) from error

    def _run(self) -> None:
        clock, limit_s = self.world.clock, self.observer.experiment.stop.sim_time_s
        self.strategy.setup(talk(self.world.network.graph))
        for name, value in self.strategy.facts().items():
            self.observer.record.fact(name, value)
        models = self.latest
        if self.strategy.one_model:
            self.observer.subject, models = "aggregate", {SYSTEM: self.learner.initial}
            self.observer.own = self._own
        elif self.strategy.has_servers:
            self.observer.own = self._own
            self.observer.homes = {id: self.peers[id].server for id in range(len(self.learner.sizes))}
        if self.observer.on_round(0, models, 0):
            return
        for peer in self.peers.values():
            peer.node.on_change += (self._changed,)
            clock.process(self._life(peer))
        self._count()
        clock.process(self._watch())
        if limit_s is not None:
            clock.after(micros(limit_s), self._end, True)
        out_of_time = clock.wait(self._over, self.diagnosis)
        # What is due at this very moment could still set somebody to work.
        if out_of_time and self._idle() and clock.peek() > clock.now:
            self.observer.stalled = self.diagnosis()
            log.warning("nobody could make progress when the time was up: %s", self.observer.stalled)

    def _own(self, model: Deferred, client: int) -> Deferred:
        """Return a model of several as one client has it."""
        return judged(self.learner.engine.task, model, [self.peers[client].kept])

    def _held(self, peer: Peer) -> list[dict[str, Deferred]]:
        """Return what is kept beside a node's model: its own, or what a server's clients keep."""
        return [self.peers[id].kept for id in (peer.clients if self.strategy.has_servers else [peer.id])]

    def finish(self, peer: Peer, round: int, model: Deferred, updates: int = 1) -> None:
        """Take note that a node has finished a round."""
        if peer.node.online and peer.finished <= self._round < round:
            self._behind -= 1
        peer.finished = round
        self.updates += updates
        model = judged(self.learner.engine.task, model, self._held(peer))
        self.latest[peer.id] = model
        if round > self._round and not self.learner.dry:
            self._ahead.setdefault(peer.id, {})[round] = model
        self._advance()

    def conclude(self, round: int, model: Deferred, updates: int) -> None:
        """Take note that a round with one model is over."""
        if round <= self._round or self._over.triggered:
            return
        self._round = round
        self.updates += updates
        self._measure()
        model = judged(self.learner.engine.task, model, (peer.kept for peer in self.peers.values()))
        if self.observer.on_round(round, {SYSTEM: model}, self.updates) or round == self.rounds:
            self._end()

    def waited(self, peer: Peer, what: str, missing: Iterable[int], began_s: float) -> None:
        """Take note that a timeout has ended a wait; the first long one is warned of: there may be many."""
        for_s = self.world.clock.now_s - began_s
        if for_s < LONG_S or self._warned:
            return
        self._warned = True
        text = "node %d has waited %g s in vain for %s from %s, because strategy.timeout_s says so"
        more = "; where messages get lost or nodes go while they are sent, every round may last that long"
        log.warning(text + more, peer.id, for_s, what, few(sorted(missing)))

    def diagnosis(self) -> str:
        """Say who waits for whom, and who is away; nodes that nothing can be said about come last."""
        here = {id: p for id, p in self.peers.items() if p.node.online and id not in self._ended}
        waits = {id: peer.waiting_for() for id, peer in here.items()}
        said = [] if self.founders or self._round else ["nobody was online to begin"]
        for id in sorted(here, key=lambda id: not waits[id])[:MOST_TOLD]:
            done = "" if self.strategy.one_model else f" (round {here[id].finished} done)"
            said.append(f"node {id}{done} waits for {waits[id] or 'a message'}")
        if len(here) > MOST_TOLD:
            said.append(f"and {len(here) - MOST_TOLD} more")
        if all(peer.node.crashed or id in self._ended for id, peer in self.peers.items()):
            said.append("every node has crashed or come to its end")
        away = [id for id, peer in self.peers.items() if not peer.node.online and not peer.node.crashed]
        gone = [id for id, peer in self.peers.items() if peer.node.crashed]
        said += [f"{what}: {few(ids)}" for what, ids in (("offline", away), ("gone for good", gone)) if ids]
        return "; ".join(said)

    def _life(self, peer: Peer) -> Process:
        yield from self.guard(peer, self.strategy.run(peer))
        self._ended.add(peer.id)

    def guard(self, peer: Peer, process: Process) -> Process:
        """Let an error say at which node, when and in which round it happened."""
        try:
            yield from process
        except simpy.Interrupt:
            return
        except (RunError, GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise self._failure(error, peer.id) from error

    def _failure(self, error: BaseException, node: int | None = None) -> RunError:
        """Say where an error happened, also one that SimPy raises because of what a process yields."""
        reason, yields = (
            f"{type(error).__name__}: {error}",
            re.search('Invalid yield value "(.*)"', str(error)),
        )
        process = self.world.clock.active_process
        if isinstance(error, RuntimeError) and yields and isinstance(process, simpy.Process):
            node, line = scene.of_process(process)
            reason = (
                f"yields {yields[1]} at {line}, which is no event; write yield from node.sleep(…) or the like"
            )
        round = self._round + 1 if node is None else self.peers[node].finished + 1
        return RunError(reason, node, round, self.world.clock.now_s, type(self.strategy).__name__)

    def _placed(self, error: StalledError) -> StalledError:
        """Return an error with the round that its node is in."""
        peer = self.peers.get(-1 if error.node is None else error.node)
        return at_round(error, (self._round if peer is None else peer.finished) + 1)

    def _changed(self, node: Node) -> None:
        self.peers[node.id].was_away |= not node.online
        self._sessions += node.online
        if node.id in self.leaders and self.peers[node.id].finished <= self._round:
            self._behind += 1 if node.online else -1
        self._advance()

    def _count(self) -> None:
        """Count the nodes that are online and have not finished the round that is going on."""
        online = (p for p in self.leaders.values() if p.node.online)
        self._behind = sum(peer.finished <= self._round for peer in online)

    def _advance(self) -> None:
        while (
            self._behind == 0
            and not self._over.triggered
            and any(p.node.online for p in self.leaders.values())
        ):
            self._round += 1
            alive = [id for id, peer in self.leaders.items() if not peer.node.crashed]
            holders = self.strategy.holders(self._round)
            chosen = [id for id in alive if holders is None or id in holders] or alive
            models = {id: self._model(id) for id in chosen}
            for ahead in self._ahead.values():
                ahead.pop(self._round, None)
            self._measure()
            if self.observer.on_round(self._round, models, self.updates) or self._round == self.rounds:
                self._end()
            self._count()

    def _model(self, id: int) -> Deferred:
        """Return a node's model of the round that ends; where it has skipped that, of the next one it has finished."""
        return next(iter(self._ahead.get(id, {}).values()), self.latest[id])

    def _measure(self) -> None:
        """Record what the strategy says of a round that has ended, if it is one of those that are evaluated."""
        if self._round % self.observer.experiment.evaluate.every == 0:
            for name, value, node in self.strategy.metrics(self._round):
                self.observer.record.metric(self._round, self.world.clock.now, name, value, node)

    def _end(self, out_of_time: bool = False) -> None:
        if not self._over.triggered:
            self._over.succeed(out_of_time)

    def _idle(self) -> bool:
        """Tell whether nobody does anything, or waits for anything that time alone could bring."""
        return all(
            id in self._ended or (peer.node.stuck and not peer.sleeping) for id, peer in self.peers.items()
        )

    def _watch(self) -> Process:
        """Stop a run in which nobody computes, sends, or waits for anything that time alone could bring."""
        since_s, patience_s = 0.0, QUIET_S if self.strategy.one_model else PATIENCE_S
        while True:
            yield self.world.clock.timeout(micros(WATCH_S))
            totals = self.world.totals()
            # What is begun and never finished, sent and never delivered is no progress. Nodes that come and go, or
            # insist, talk for ever; where a round has one model, that is none, either.
            talk = 0 if self.strategy.one_model else totals["bytes_down"]
            progress = (totals["work"] - totals["wasted"], talk, self._round)
            if progress != self._progress:
                since_s, self._sessions = self.world.clock.now_s, 0
            elif self._sessions > SESSIONS * max(50, len(self.peers)):
                raise self._stalled(self._in_vain())
            elif self._idle() or self.world.clock.now_s - since_s > patience_s:
                raise self._stalled(f"nobody can make progress: {self.diagnosis()}")
            self._progress = progress

    def _stalled(self, reason: str) -> StalledError:
        return StalledError(reason, None, self._round + 1, self.world.clock.now_s)

    def _in_vain(self) -> str:
        """Say why nothing is ever finished."""
        sizes, update = self.learner.sizes, self.strategy.update
        reason = (
            f"no training was finished and no message delivered while nodes came back {self._sessions} times"
        )
        if update is not None:
            picos = [update.work(size) * self.peers[id].node.ps_per_sample for id, size in enumerate(sizes)]
            least_s, most_s = min(picos) / 1e12, max(picos) / 1e12
            reason += (
                f"; a training takes {least_s:.3g} to {most_s:.3g} s, and no session seems to be that long"
            )
        return f"{reason}; {self.diagnosis()}"
