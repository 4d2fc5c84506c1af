"""A user's own ClientApp as the clients of a simulation."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim import rng
from fedsim.errors import RunError
from fedsim.flower import compat
from fedsim.flower.apps.applog import Line, heard
from fedsim.flower.apps.past import Past
from fedsim.flower.apps.project import Project
from fedsim.flower.apps.visit import Broken, Done, reason, run_client
from fedsim.flower.apps.workers import Died, Raised, Task, Unfit, Workers
from fedsim.flower.records import isolate, wire_bytes
from fedsim.flower.simulate.instruction import Watch, named_round
from fedsim.methods.server import trains
from fedsim.world.clock import Clock

log = logging.getLogger("fedsim")


@dataclass
class Visit:
    """One message at one client.

    Args:
        key: of everything random.
        context: what the ClientApp sees; a copy, so that an interrupted visit leaves no trace.
        before: the state that it begins with.
        task: the result, if other processes may be at work on it.
    """

    key: int
    context: Context
    before: RecordDict
    task: Task | None = None


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
        past: what was replied before the run was stopped, and what is replied now; None keeps nothing.
    """

    def __init__(
        self,
        app: ClientApp,
        project: Project,
        nodes: int,
        seed: int,
        clock: Clock,
        pool: Workers | None = None,
        past: Past | None = None,
    ) -> None:
        self._past = past
        self._app, self._project, self._seed, self._clock, self._pool = app, project, seed, clock, pool
        self._contexts = [
            compat.make_context(node, _node_config(project, node, nodes), dict(project.run_config))
            for node in range(nodes)
        ]
        self._visits: Counter[int] = Counter()
        self._waiting: dict[str, tuple[Message, int]] = {}  # with how often its client had been visited then
        self._begun: dict[str, Visit] = {}
        self._done: dict[int, dict[str, Done]] = {node: {} for node in range(nodes)}

    def sent(self, messages: Sequence[Message]) -> None:
        """Let other processes begin before the messages arrive; most will, and nothing changes in between."""
        if self._past is not None:
            self._past.sent(messages)
        if self._pool is None or self._pool.given_up:
            return
        for id, visit in list(self._begun.items()):
            if not self._is_valid(visit):
                self._drop(self._begun.pop(id))
        for id, (message, visits) in list(self._waiting.items()):
            if visits != self._visits[message.metadata.dst_node_id]:  # it was lost on its way
                del self._waiting[id]
        for message in messages:
            visits = self._visits[message.metadata.dst_node_id]
            self._waiting[message.metadata.message_id] = message, visits
        if not self._repeats:
            self._hand_over(messages[0])

    @property
    def _repeats(self) -> bool:
        """Whether what is asked for is known."""
        return self._past is not None and self._past.repeats

    def _hand_over(self, message: Message) -> None:
        """Hand over what waits, if there are processes."""
        assert self._pool is not None  # something waits for it
        if not self._is_open(message):
            return
        waiting, self._waiting = self._waiting, {}
        for id, (one, _) in waiting.items():
            visit = self._begun[id] = self._begin(one)
            self._submit(visit, one)

    def _is_open(self, message: Message) -> bool:
        """Tell whether other processes make visits; they start when it is time for that."""
        assert self._pool is not None  # or there are none
        with self._named(message):
            return self._pool.is_open(lambda: wire_bytes(message.content))

    def _submit(self, visit: Visit, message: Message) -> None:
        assert self._pool is not None  # it is open
        whose = visit.context.node_id, named_round(message)
        visit.task = Task(*whose, message, visit.context, visit.key)
        with self._named(message):
            self._pool.submit(visit.task)

    def _drop(self, visit: Visit) -> None:
        if self._pool is not None and visit.task is not None:
            self._pool.drop(visit.task)

    def aborted(self, message: Message) -> None:
        """Forget an interrupted visit."""
        self._done[message.metadata.dst_node_id].pop(message.metadata.message_id, None)

    def work(self, client: int, message: Message) -> int:
        """Run the ClientApp, and return what it costs in per-sample gradients."""
        about = message.metadata
        done = self._done[client][about.message_id] = self._run(client, message)
        self._visits[client] += 1
        fixed = self._project.settings.samples_per_message
        if fixed is not None:
            return fixed
        samples = math.ceil(done.examples)
        return samples if trains(about.message_type) else -(-samples // 3)

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
        under_way = self._done[client]
        return next(reversed(under_way.values())).state if under_way else self._contexts[client].state

    def _key(self, client: int) -> int:
        return rng.key(self._seed, "client app", client, self._visits[client])

    def _begin(self, message: Message) -> Visit:
        client = message.metadata.dst_node_id
        before, own = self._state(client), self._contexts[client]
        context = compat.make_context(client, dict(own.node_config), dict(own.run_config), isolate(before))
        return Visit(self._key(client), context, before)

    def _is_valid(self, visit: Visit) -> bool:
        """Tell whether a client still is where a visit began: it may have worked on another message since."""
        client = visit.context.node_id
        return visit.key == self._key(client) and visit.before is self._state(client)

    def _run(self, client: int, message: Message) -> Done:
        """Return what comes of a message: what is known of it, or what the ClientApp makes of it."""
        past = self._past
        if past is None:
            return self._made(client, message)
        before, first = self._state(client), not past.told
        done = past.reply(message, before)
        if done is None:
            said: list[Line] = []
            with heard(said):
                done = self._made(client, message)
            past.keep(message, before, done, said)
        elif first:
            with heard([], through=False):
                now = self._made(client, message)
            past.compare(message, done, now)
        self._waiting.pop(message.metadata.message_id, None)
        return done

    def _made(self, client: int, message: Message) -> Done:
        done = self._visited(message)
        if isinstance(done, Broken):
            cause = RuntimeError(f"in a worker process\n\n{done.trace}")
            return self._failed(client, message, done.reason, cause)
        if isinstance(done, Raised):
            return self._failed(client, message, reason(done.error), done.error)
        return done

    def _visited(self, message: Message) -> Done | Broken | Raised:
        """Return what comes of a message, from this process or another one."""
        id = message.metadata.message_id
        if self._waiting and not self._repeats:
            self._hand_over(message)
            self._waiting.pop(id, None)
        visit = self._begun.pop(id, None)
        if visit is not None and not self._is_valid(visit):
            self._drop(visit)
            visit = None
        if visit is None:
            visit = self._begin(message)
            if self._pool is not None and not self._pool.shares and self._is_open(message):
                self._submit(visit, message)
        if visit.task is None or self._pool is None:
            return self._here(message, visit.context, visit.key)
        with self._named(message):
            return self._pool.fetch(visit.task, self._here)

    def _here(self, message: Message, context: Context, key: int) -> Done | Raised:
        """Make a visit in this process."""
        began = time.perf_counter()
        try:
            return run_client(self._app, message, context, key)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # such as SystemExit, or a task of asyncio's that was cancelled
            return Raised(error)
        finally:
            if self._pool is not None:
                self._pool.spend(time.perf_counter() - began)

    @contextmanager
    def _named(self, message: Message) -> Iterator[None]:
        """Say for whom a worker was at work that has died; the others' results are lost as well."""
        client = message.metadata.dst_node_id
        try:
            yield
        except Unfit as error:
            ask = f"app.workers: {self._project.settings.workers}: other processes cannot run the ClientApp: {error}"
            raise self._error(f"{ask}; set it to 0", client, message) from None
        except Died as error:
            if error.task is None:
                text = f"a worker process died before client {client} had answered, at work for it or another"
                raise self._error(f"{text} ({error.how})", client, message) from None
            text = f"a worker process died before client {error.task.node} had answered ({error.how})"
            raise self._error(text, error.task.node, message, error.task.round) from None

    def _failed(self, client: int, message: Message, why: str, cause: BaseException) -> Done:
        if self._project.settings.on_failure == "drop":
            log.info("client %d: %s", client, why, exc_info=cause)
            return Done(None, Error(compat.RAISED, why), self._state(client))
        raise self._error(why, client, message) from cause

    def _error(self, why: str, client: int, message: Message, round: int | None = None) -> RunError:
        round = named_round(message) if round is None else round
        phase = message.metadata.message_type
        return RunError(why, client, round if round >= 0 else None, self._clock.now_s, phase)


def _node_config(project: Project, node: int, nodes: int) -> dict[str, Any]:
    return {"partition-id": node, "num-partitions": nodes, **project.settings.of_node(node)}
