"""A user's own ClientApp as the clients of a simulation."""

from __future__ import annotations

import functools
import logging
import math
import pickle
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim import rng
from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.apps.project import Project, resolve
from fedsim.flower.apps.workers import Workers
from fedsim.flower.records import isolate
from fedsim.flower.simulate.instruction import Watch, named_round
from fedsim.logs import quiet
from fedsim.methods.server import trains
from fedsim.world.clock import Clock

log = logging.getLogger("fedsim")

EXAMPLES = ("num-examples", "num_examples")


@dataclass(frozen=True)
class Done:
    """What a ClientApp made of a message: content or an error, and its state afterwards."""

    content: RecordDict | None
    error: Error | None
    state: RecordDict


@dataclass(frozen=True)
class Broken:
    """What a ClientApp raised in another process, as text: not every exception can be sent."""

    reason: str
    trace: str


@dataclass
class Visit:
    """One message at one client.

    Args:
        key: of everything random.
        context: what the ClientApp sees; a copy, so that an interrupted visit leaves no trace.
        before: the state that it begins with.
        future: the result, if another process is at work on it.
    """

    key: int
    context: Context
    before: RecordDict
    future: Future[bytes] | None = None


class AppClients(Watch):
    """Lets a Flower ClientApp answer, as it is.

    Each client has a Context of its own, whose state lasts; it moves on when a visit is finished, so a client that
    goes offline in the middle has not done it. The global generators are seeded for every visit and restored after
    it: what one client draws changes nothing elsewhere. The work is the number of examples that the reply names (a
    third of it for an evaluation or a query, which has no backward pass), unless the app says how much a message
    costs.

    Args:
        app: the ClientApp.
        project: where it comes from.
        nodes: the number of clients.
        seed: the experiment's seed.
        clock: for the place of an error.
        pool: other processes that may do the work, or None.
    """

    def __init__(
        self,
        app: ClientApp,
        project: Project,
        nodes: int,
        seed: int,
        clock: Clock,
        pool: Workers | None = None,
    ) -> None:
        self._app, self._project, self._seed, self._clock, self._pool = app, project, seed, clock, pool
        self._contexts = [
            compat.make_context(node, _node_config(project, node, nodes), dict(project.run_config))
            for node in range(nodes)
        ]
        self._visits: Counter[int] = Counter()
        self._begun: dict[str, Visit] = {}
        self._done: dict[int, dict[str, Done]] = {node: {} for node in range(nodes)}

    def sent(self, messages: Sequence[Message]) -> None:
        """Let other processes begin before the messages arrive; most will, and nothing changes in between."""
        if self._pool is None:
            return
        self._begun = {id: visit for id, visit in self._begun.items() if self._is_valid(visit)}
        for message in messages:
            self._begun[message.metadata.message_id] = self._begin(message)

    def aborted(self, message: Message) -> None:
        """Forget an interrupted visit."""
        self._done[message.metadata.dst_node_id].pop(message.metadata.message_id, None)

    def work(self, client: int, message: Message) -> int:
        """Run the ClientApp, and return what it costs in per-sample gradients."""
        done = self._done[client][message.metadata.message_id] = self._run(client, message)
        self._visits[client] += 1
        fixed = self._project.settings.samples_per_message
        if fixed is not None:
            return fixed
        samples = 0 if done.content is None else math.ceil(examples(done.content))
        return samples if trains(message.metadata.message_type) else -(-samples // 3)

    def answer(self, client: int, message: Message, sim_time_s: float) -> RecordDict | Error:
        """Return what the ClientApp has made, and keep its state."""
        done = self._done[client].pop(message.metadata.message_id)
        self._contexts[client].state = done.state
        if done.error is not None:
            return done.error
        assert done.content is not None  # it has either
        return done.content

    def _state(self, client: int) -> RecordDict:
        """Return the state that the next visit begins with: that after the last one, even if it is under way."""
        under_way = list(self._done[client].values())
        return under_way[-1].state if under_way else self._contexts[client].state

    def _key(self, client: int) -> int:
        return rng.key(self._seed, "client app", client, self._visits[client])

    def _begin(self, message: Message) -> Visit:
        client = message.metadata.dst_node_id
        before, own = self._state(client), self._contexts[client]
        context = compat.make_context(client, dict(own.node_config), dict(own.run_config))
        context.state = isolate(before)
        visit = Visit(self._key(client), context, before)
        if self._pool is not None:
            # A message whose ids have been read cannot be pickled, so this comes before anything else.
            given = pickle.dumps((message, context, visit.key))
            try:
                whose = client, named_round(message)
                visit.future = self._pool.submit(*whose, _work, self._project.clientapp, self._seed, given)
            except BrokenProcessPool as error:
                raise self._died(client, message) from error
        return visit

    def _is_valid(self, visit: Visit) -> bool:
        """Tell whether a client still is where a visit began: it may have worked on another message since."""
        client = visit.context.node_id
        return visit.key == self._key(client) and visit.before is self._state(client)

    def _run(self, client: int, message: Message) -> Done:
        visit = self._begun.pop(message.metadata.message_id, None)
        if visit is None or not self._is_valid(visit):
            visit = self._begin(message)
        try:
            if visit.future is None:
                return run_client(self._app, message, visit.context, visit.key)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit, or a task of asyncio's that was cancelled
            return self._failed(client, message, _reason(error), error)
        return self._fetch(client, message, visit.future)

    def _fetch(self, client: int, message: Message, future: Future[bytes]) -> Done:
        """Wait for what another process makes of a message."""
        assert self._pool is not None  # it has made the future
        try:
            done: Done | Broken = pickle.loads(self._pool.result(future))
        except BrokenProcessPool as error:
            raise self._died(client, message) from error
        if isinstance(done, Broken):
            cause = RuntimeError(f"in a worker process\n\n{done.trace}")
            return self._failed(client, message, done.reason, cause)
        return done

    def _failed(self, client: int, message: Message, reason: str, cause: BaseException) -> Done:
        if self._project.settings.on_failure == "drop":
            log.info("client %d: %s", client, reason, exc_info=cause)
            return Done(None, Error(compat.RAISED, reason), self._state(client))
        raise self._error(reason, client, message) from cause

    def _died(self, client: int, message: Message) -> RunError:
        """Say for whom the worker was at work that has died; the others' results are lost as well."""
        assert self._pool is not None  # it has died
        death = self._pool.death()
        if death is None:
            how = self._pool.deaths()
            reason = f"a worker process died before client {client} had answered, at work for it or another ({how})"
            return self._error(reason, client, message)
        reason = f"a worker process died before client {death.node} had answered ({death.how})"
        return self._error(reason, death.node, message, death.round)

    def _error(self, reason: str, client: int, message: Message, round: int | None = None) -> RunError:
        round = named_round(message) if round is None else round
        phase = message.metadata.message_type
        return RunError(reason, client, round if round >= 0 else None, self._clock.now_s, phase)


def _node_config(project: Project, node: int, nodes: int) -> dict[str, Any]:
    return {"partition-id": node, "num-partitions": nodes, **project.settings.of_node(node)}


def _reason(error: BaseException) -> str:
    return f"the ClientApp raised {type(error).__name__}: {error}"


def run_client(app: ClientApp, message: Message, context: Context, key: int) -> Done:
    """Let a ClientApp answer one message.

    Args:
        app: the ClientApp.
        message: the message.
        context: what it sees; its state may be changed.
        key: of everything that it draws.

    Raises:
        TypeError: if what it returns is not a message.
        ValueError: if the message names an impossible number of examples.
    """
    with compat.client(context.node_id, key):
        reply: Any = app(message, context)
    if not isinstance(reply, Message):
        raise TypeError(f"a ClientApp must return a Message, not {type(reply).__name__}")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("a ClientApp must reply to its own message: Message(content, reply_to=message)")
    if reply.has_error():
        return Done(None, reply.error, isolate(context.state))
    examples(reply.content)  # an impossible number is a mistake of this client's
    return Done(isolate(reply.content), None, isolate(context.state))


def examples(content: RecordDict) -> float:
    """Return how many examples a reply says it has used, 0 if it does not say; see :func:`said`.

    >>> examples(RecordDict({"metrics": MetricRecord({"num-examples": 60, "loss": 0.5})}))
    60
    """
    return said(content) or 0


def said(content: RecordDict) -> float | None:
    """Return how many examples a reply says it has used, at least 0, or None if it does not say.

    Raises:
        ValueError: if what it says is no finite number.
    """
    for record in content.values():
        for name in EXAMPLES if isinstance(record, MetricRecord) else ():
            if name in record:
                count = record[name]
                if isinstance(count, int | float) and math.isfinite(count):
                    return max(0, count)
                raise ValueError(f"{name} must be a finite number, not {count!r}")
    return None


def _work(reference: str, seed: int, given: bytes) -> bytes:
    """Answer a message in a worker process."""
    message, context, key = pickle.loads(given)
    try:
        with quiet("flwr", logging.WARNING):
            return pickle.dumps(run_client(_load(reference, seed), message, context, key))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return pickle.dumps(Broken(_reason(error), traceback.format_exc().rstrip()))


@functools.cache
def _load(reference: str, seed: int) -> Any:
    with import_seeded(seed):
        return resolve(reference)


def import_seeded(seed: int) -> AbstractContextManager[None]:
    """Let what modules draw while a ClientApp is imported follow from the experiment's seed, in every process."""
    return compat.seeded(rng.key(seed, "client app import"))
