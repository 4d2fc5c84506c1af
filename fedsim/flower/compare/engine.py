"""An app in Flower's own simulation engine, with the draws and the order of a simulation here.

By itself that engine gives nodes random ids, seeds nothing, and hands over replies as they come; so not even two runs
of its own are equal.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedsim import rng
from fedsim.flower import compat
from fedsim.flower.apps import legacy
from fedsim.flower.apps.app import build
from fedsim.flower.apps.journal import Journal
from fedsim.flower.apps.project import Project, importable, load_client, load_server, resolve
from fedsim.flower.apps.worker import import_seeded
from fedsim.flower.deploy.bypartition import KEY, WHO, ByPartition
from fedsim.flower.records import isolate
from fedsim.record.store import Record
from fedsim.running.threads import limited
from fedsim.spec.experiment import Experiment, load

VISITS = "fedsim.visits"


def run_engine(project: Project, nodes: int, folder: Path) -> tuple[ArrayRecord | None, dict[str, Any]]:
    """Run an app in Flower's engine, and leave a record in a folder.

    Args:
        project: the app.
        nodes: how many clients.
        folder: where the record goes.

    Returns:
        The final model, and a summary whose ``wall_time_s`` begins when all clients are there.
    """
    from flwr.simulation import run_simulation  # needs Ray, which is an extra

    block = {"data": {"clients": nodes}, "strategy": {"name": project.serverapp}, "stop": {"rounds": 1}}
    experiment = load(block)
    server = _Server(project, experiment, folder)
    app = ServerApp()
    app.main()(server.main)
    client = AsHere(str(project.root), project.clientapp, experiment.seed, project.run_config)
    cores: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(app, client, nodes, backend_config=cores)
    journal = server.journal
    return journal.arrays, journal.summary(True, None, error_replies=len(journal.failed))


class _Server:
    """Runs an app's ServerApp as a simulation here does."""

    journal: Journal

    def __init__(self, project: Project, experiment: Experiment, folder: Path) -> None:
        self._project, self._experiment, self._folder = project, experiment, folder

    def main(self, grid: Grid, context: Context) -> None:
        """Run the ServerApp on a grid that is watched, in whatever thread."""
        project, experiment = self._project, self._experiment
        shown = Ordered(grid, experiment.data.clients)
        context.run_config = dict(project.run_config)
        with Record(self._folder) as record, limited(1), importable(project.root):
            journal = self.journal = shown.journal = Journal(experiment, build(experiment), record)
            journal.grid = shown  # type: ignore[assignment]  # it counts updates
            with import_seeded(experiment.seed):
                load_client(project)  # first, as here: the two may share modules
            heard = journal.take, journal.measure, journal.aggregated
            with (
                compat.seeded_server(experiment.seed),
                compat.observed(*heard),
                legacy.together(shown, time.sleep, *heard),  # for their threads have no order
            ):
                load_server(project)(shown, context)
            journal.end_round()


class Ordered(ByPartition):
    """Shows partitions instead of node ids, and hands over replies in the order in which they were asked for."""

    journal: Journal
    updates = 0

    def __init__(self, grid: Grid, nodes: int) -> None:
        self._spare, self._lock = np.random.MT19937(0), threading.Lock()
        super().__init__(grid, nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages to partitions and return their ids."""
        messages = list(messages)
        ids = super().push_messages(messages)
        self._note(messages)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that have arrived, as coming from partitions."""
        return self._noted(super().pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages to partitions and wait for the replies, at most so many seconds."""
        messages = list(messages)
        self._note(messages)
        place = {message.metadata.dst_node_id: number for number, message in enumerate(messages)}
        with compat.undisturbed(self._spare):
            replies = super().send_and_receive(messages, timeout=timeout)
        return self._noted(sorted(replies, key=lambda reply: place[reply.metadata.src_node_id]))

    def _note(self, messages: list[Message]) -> None:
        with self._lock:  # the server may have threads
            if messages:
                self.journal.sent(messages)

    def _noted(self, replies: list[Message]) -> list[Message]:
        with self._lock:
            if replies:
                self.journal.pulled(replies)
        return replies


class AsHere(ClientApp):
    """An app's ClientApp, seeded for every visit as in a simulation here; it is loaded where it is called.

    Args:
        root: the app's folder.
        reference: where the ClientApp is, as ``module:attribute``.
        seed: the experiment's seed.
        run_config: what it can read.
    """

    def __init__(self, root: str, reference: str, seed: int, run_config: dict[str, Any]) -> None:
        super().__init__()
        self._root, self._reference, self._seed, self._run_config = root, reference, seed, run_config

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, and say which partition the node holds."""
        partition = int(context.node_config[KEY])
        if message.metadata.message_type == WHO:
            return Message(RecordDict({"node": ConfigRecord({KEY: partition})}), reply_to=message)
        past = context.state.pop(VISITS, MetricRecord({"total": 0}))
        visits = int(str(past["total"]))
        own = compat.make_context(partition, dict(context.node_config), dict(self._run_config))
        own.state = isolate(context.state)
        node = message.metadata.dst_node_id
        try:
            compat.set_receiver(message, partition)  # some protocols tell clients each other's ids
            with limited(1), compat.seeded(rng.key(self._seed, "client app", partition, visits)):
                reply = _load(self._root, self._reference, self._seed)(message, own)
            compat.set_sender(reply, node)
            context.state = own.state
        except Exception as error:  # an engine that is told of it forgets that there was a visit
            compat.set_receiver(message, node)
            reply = Message(Error(compat.RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        context.state[VISITS] = MetricRecord({"total": visits + 1})
        return reply


@functools.cache
def _load(root: str, reference: str, seed: int) -> ClientApp:
    sys.path.insert(0, root)
    with import_seeded(seed):
        app: ClientApp = resolve(reference)
    return app
