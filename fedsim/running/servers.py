"""Runs a method with a server in the simulated world."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from fedsim.errors import RunError, StalledError, ValueNeeded, at_round
from fedsim.learn.book import Mismatch
from fedsim.learn.buffers import judged, merged
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner, Place
from fedsim.learn.local import LocalUpdate
from fedsim.learn.task import Task
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.metrics import SYSTEM
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Answer, Ask, Reply, Server, trains, weighing
from fedsim.running.clients import EXAMPLES, LocalClients, Numbers, Order, faults, together
from fedsim.running.exchange import Exchange, TimeUp
from fedsim.running.instruction import Instruction, Wait
from fedsim.running.notes import Notes
from fedsim.running.observer import Observer
from fedsim.running.wire import instruction_bytes
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

POLL_S = 1.0
LOSS = "train_loss"

Method = Rounds | Arrivals

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class Dropped:
    """An update that the server has not used.

    Args:
        node: whose it was.
        round: the round that it belonged to, or -1.
        sim_time_s: when it reached the server.
        reason: what was wrong.
    """

    node: int
    round: int
    sim_time_s: float
    reason: str


class SimServer(Server):
    """A server in the simulated world.

    Args:
        exchange: carries the messages.
        clients: answer; they know how large a message is.
        drop: leave out a reply that cannot be computed, or has NaN in it, instead of raising.

    Attributes:
        dropped: what was left out.
    """

    def __init__(self, exchange: Exchange, clients: LocalClients, drop: bool = False) -> None:
        self.line, self._local, self._drop = exchange, clients, drop
        self.clients = len(exchange.world.members)
        self.dropped: list[Dropped] = []
        self._sent: list[Instruction] = []

    def online(self, at_least: int = 1) -> list[int]:
        """Return the clients that are online, sorted; wait until there are enough of them."""
        while len(here := self.line.online()) < at_least:
            self.line.sleep(POLL_S)
        return here

    def exchange(
        self, round: int, asks: Iterable[Ask], timeout_s: float | None = None, share: float | None = None
    ) -> list[Reply]:
        """Send messages and wait for the replies."""
        taken = self.line.all([self._instruction(round, ask) for ask in asks], timeout_s, share)
        return sorted(self._read(taken), key=lambda reply: reply.node)

    def send(self, round: int, asks: Iterable[Ask], timeout_s: float | None = None) -> None:
        """Send messages and go on."""
        made = [self._instruction(round, ask, timeout_s) for ask in asks]
        self.line.push(made)
        self._sent += made

    def receive(self) -> list[Answer]:
        """Wait for the next end of something sent."""
        ended = self.line.next(self._sent) if self._sent else []
        if not ended:
            self.line.sleep(POLL_S)
        gone = set(ended)
        self._sent = [one for one in self._sent if one not in gone]
        self._read(ended)
        return [
            Answer(one.round, one.payload.ask, one.content if one.end == "answered" else None)
            for one in ended
        ]

    def train_here(self, round: int, model: Deferred) -> Reply:
        """Train on the data of all clients; work that is interrupted is done again when the server is back."""
        learner, update = self._local.learner, self._local.updates["train"].at(round)
        node, pool = self.line.server, len(learner.sizes) - 1
        while True:
            began_s = node.clock.now_s
            job = node.compute(update.work(learner.sizes[pool]), round)
            self.line.wait(Wait(set(), job))
            if job.value:
                break
            if node.crashed:
                raise RunError("the server has crashed", node.id, round, node.clock.now_s, "train")
        self.line.updates += 1
        result = learner.train(update, pool, {"arrays": model}, Place(node.id, round, began_s))
        numbers = Numbers({EXAMPLES: learner.sizes[pool]}, result, update.metrics)
        return Reply(node.id, "train", {"arrays": result.pick("arrays")}, numbers, learner.sizes[pool])

    def _instruction(self, round: int, ask: Ask, ttl_s: float | None = None) -> Instruction:
        size = instruction_bytes(ask.vectors, ask.numbers, self._local.vector_bytes())
        node = self.line.node(ask.node, round)
        return Instruction(node, Order(round, ask), size, round, trains(ask.action), ttl_s)

    def _read(self, ended: Sequence[Instruction]) -> list[Reply]:
        """Return the replies that can be used."""
        for one, reason in (faults(ended) if self._drop else {}).items():
            now_s = self.line.world.clock.now_s
            self.dropped.append(Dropped(one.node.id, one.round, now_s, reason))
            self.line.discard(one)
            one.end = "refused"
        replies = [one.content for one in ended if one.end == "answered"]
        together(replies)
        return replies


def run_method(
    experiment: Experiment,
    method: Method,
    updates: dict[str, LocalUpdate],
    world: World,
    learner: Learner,
    observer: Observer,
) -> None:
    """Run a method until the experiment's stop condition.

    Args:
        experiment: says when to stop.
        method: what the server does.
        updates: what clients do, by message type.
        world: the event plane, with a server.
        learner: the compute plane.
        observer: told of every round.
    """
    policy, stop = experiment.strategy, experiment.stop
    drop = policy.on_failure == "drop"
    clients = LocalClients(replace(learner, drop=drop), updates, method.queries)
    limits = experiment.network.detect_s, stop.sim_time_s
    line = Exchange(world, clients, *limits, policy.quorum, policy.retries)
    server = SimServer(line, clients, drop)
    model, round, task = learner.initial, 0, learner.engine.task
    notes = Notes(observer)
    observer.own = lambda shown, client: judged(task, shown, [clients.kept.of(client)])
    observer.kept = clients.kept.held
    if isinstance(method, Rounds):
        observer.personal = method.personal
    observer.record.fact("weighting", method.weighting if method.weighted else "uniform")
    try:
        while not observer.on_round(round, {SYSTEM: judged(task, model, clients.kept.all())}, line.updates):
            if round == stop.rounds:
                break
            round += 1
            former, model = model, method.step(server, round, model, policy.timeout_s)
            share = method.share_taken() if isinstance(method, Arrivals) else 1.0
            model = with_buffers(task, former, model, method.came, share)
            tell(notes, observer, method, round, former)
    except TimeUp:
        pass
    except StalledError as error:
        if error.round is None:
            raise at_round(error, round) from error
        raise
    except (RunError, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        name = type(method).__name__
        raise RunError(reason, None, round, world.clock.now_s, name) from error
    finally:
        report(server.dropped, observer)


def with_buffers(
    task: Task, former: Deferred, model: Deferred, came: Sequence[Reply], share: float = 1.0
) -> Deferred:
    """Return a model with the average of the buffers that have come, whatever the method has done to its weights.

    Where none have come they are those of the former model: some methods move without replies, by what they remember.

    Args:
        task: says whose they are.
        former: the model before the round [P].
        model: the model after it, with any buffers [P].
        came: the replies.
        share: what part of the new buffers is theirs; the rest is the former model's.
    """
    replies = [reply for reply in came if "arrays" in reply.vectors]
    if not task.buffers:
        return model
    if not replies:
        return merged(task, model, [former], [1.0])
    heavy = weighing(replies)
    sent, weights = [one.vectors["arrays"] for one in heavy], [one.weight for one in heavy]
    if share == 1:
        return merged(task, model, sent, weights)
    total = sum(weights)
    return merged(task, model, [former, *sent], [1 - share, *(share * weight / total for weight in weights)])


def tell(notes: Notes, observer: Observer, method: Method, round: int, model: Deferred) -> None:
    """Record what a method and its selector have to say of a round, and whom it has learned from.

    Where only time is kept, what a method makes of numbers that nobody has computed is left out.
    """
    read = [reply.metrics for reply in method.came if isinstance(reply.metrics, Numbers)]
    for numbers in read:
        numbers.invented = False
    with suppress(ValueNeeded):
        told = list(method.metrics(round))
        notes.tell(round, [] if any(numbers.invented for numbers in read) else told)
    if observer.cohorts is not None:
        with suppress(*(Mismatch,) if observer.learner.book.lenient else ()):
            notes.tell(round, observer.cohorts.told(model, method.came))
    if observer.learner.dry or not observer.due(round):
        return
    for name, value, node in method.select.metrics(round):
        observer.record.metric(round, observer.world.clock.now, name, value, node)
    with suppress(*(Mismatch,) if observer.learner.book.lenient else ()):
        _tell_loss(notes, method, round)


def _tell_loss(notes: Notes, method: Method, round: int) -> None:
    """Record the clients' mean loss in training."""
    losses = [reply.metrics[LOSS] for reply in method.came if LOSS in reply.metrics]
    if losses:
        weights = [reply.examples for reply in method.came if LOSS in reply.metrics]
        total = sum(weights)
        notes.write(round, LOSS, sum(one * weight for one, weight in zip(losses, weights)) / total)


def report(dropped: Sequence[Dropped], observer: Observer) -> None:
    """Say which updates were not used, in the log and in the record."""
    observer.dropped = len(dropped)
    if dropped:
        observer.record.fact("dropped_updates", [asdict(one) for one in dropped])
    warn(dropped, "updates failed and were dropped")


def warn(failed: Sequence[Dropped], text: str) -> None:
    """Say in the log how many have failed and why the first did.

    Args:
        failed: which ones; of none there is nothing to say.
        text: what is wrong with them, in the plural.
    """
    if failed:
        first = failed[0]
        where = "%d %s; the first is of client %d in round %d (%s)"
        log.warning(where, len(failed), text, first.node, first.round, first.reason)
