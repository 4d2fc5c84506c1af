"""The simulation's strategies in a real deployment: the same local updates, on the same data, from the same streams."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from safetensors.numpy import save_file

from fedsim.errors import BadValue
from fedsim.flower.around_strategy import Decoded, written
from fedsim.flower.deploy.bypartition import KEY, WHO
from fedsim.flower.deploy.client_state import keep_in, kept_in
from fedsim.flower.records import pack, solid, unpack
from fedsim.flower.simulate.clients import BuiltinClients
from fedsim.learn import build as learning
from fedsim.learn.deferred import Deferred
from fedsim.learn.learner import Learner
from fedsim.learn.staying import shared
from fedsim.methods.peer import PeerStrategy
from fedsim.methods.rounds import Rounds
from fedsim.methods.traits import Traits
from fedsim.running.build import make_strategy
from fedsim.running.held import check_deployed
from fedsim.running.threads import limited
from fedsim.running.updates import updates_of
from fedsim.spec.experiment import Experiment, load

Block = str | Mapping[str, Any]
"""A block of an experiment: a part's name, or a mapping with ``name`` and its parameters."""

VISITS = "fedsim.visits"
NEVER = MetricRecord({"total": 0, "round": -1, "again": 0})


def client_app(
    *, model: Block, data: Block, strategy: Block, seed: int = 0, expert: Mapping[str, Any] | None = None
) -> ClientApp:
    """Return a ClientApp that answers a strategy with the local updates of the simulation.

    It knows the message types of the strategy (``train``, ``train.anchor`` …), ``evaluate``, and
    ``query.partition``, with which :class:`fedsim.flower.ByPartition` learns who is who. Batches come from the same
    streams as in a simulation, named by seed, partition and round, and one thread computes in float32: so the
    weights are equal, bit for bit. Functions that are registered with the app answer every other message type.

    Args:
        model: the model, as in an experiment.
        data: the data, as in an experiment; the number of clients is the node's ``num-partitions``.
        strategy: the strategy, as in an experiment.
        seed: the experiment's seed.
        expert: how the expert is trained, as in an experiment, where samples are scored by one. Every client process
            trains it on the data of all, or finds it in the cache.

    Returns:
        The app; a node needs ``partition-id`` and ``num-partitions`` in its configuration.

    >>> app = client_app(model="softmax", data="digits", strategy="fedavg")
    >>> type(app).__mro__[1].__name__
    'ClientApp'
    """
    return BuiltinApp(_Blocks(model, data, strategy, seed, expert or {}))


@dataclass(frozen=True)
class _Blocks:
    """What a deployment needs of an experiment."""

    model: Block
    data: Block
    strategy: Block
    seed: int
    expert: Mapping[str, Any]
    beside: str | None = None

    def __hash__(self) -> int:
        """Return a number that follows from all that is written in the blocks."""
        return hash(repr(self))

    def experiment(self, clients: int) -> Experiment:
        """Return the experiment with so many clients, computed as a deployed client computes."""
        data = {"name": self.data} if isinstance(self.data, str) else dict(self.data)
        return load(
            {
                "seed": self.seed,
                "beside": self.beside,
                "data": {**data, "clients": clients},
                "model": self.model,
                "expert": dict(self.expert),
                "strategy": self.strategy,
                "compute": {"engine": "sequential", "device": "cpu"},
                "stop": {"rounds": 1},
            }
        )


class BuiltinApp(ClientApp):
    """See :func:`client_app`."""

    def __init__(self, blocks: _Blocks) -> None:
        super().__init__()
        self._blocks = blocks

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message."""
        kind = message.metadata.message_type
        partition, partitions = _place(context)
        if kind == WHO:
            return Message(RecordDict({"node": ConfigRecord({KEY: partition})}), reply_to=message)
        clients = _make(self._blocks, partitions)
        if kind not in {MessageType.EVALUATE, *clients.local.queries, *clients.local.updates}:
            return super().__call__(message, context)
        with limited(1):
            return Message(_answer(clients, partition, message, context.state), reply_to=message)


@functools.lru_cache(maxsize=2)
def _make(blocks: _Blocks, partitions: int) -> BuiltinClients:
    """Make what answers, once in a process: Flower's simulation sends the app to it with every message."""
    experiment = blocks.experiment(partitions)
    strategy = make_strategy(experiment)
    with limited(1):
        learner, _, _ = learning.build(experiment, kept=Traits.of(strategy).kept)
    check_deployed(experiment, strategy, learner.engine.task)
    return BuiltinClients(learner, updates_of(strategy, experiment), Traits.of(strategy).queries)


def _answer(clients: BuiltinClients, partition: int, message: Message, state: RecordDict) -> RecordDict:
    """Do what a simulated client does; what it keeps between visits is in the state, which outlives the process."""
    local, task = clients.local, clients.learner.engine.task
    update = local.updates.get(message.metadata.message_type)
    past = state.metric_records.get(VISITS, NEVER)
    total, round, again = (int(str(past[name])) for name in NEVER)
    local.recall(partition, (total, round, again))
    names = (*(() if update is None else update.keeps), *clients.learner.keeps)
    if names:
        local.kept.put(partition, update, Deferred.known(kept_in(state, names, task.initial)))
    content = clients.answer(partition, message, 0.0)
    total, round, again = local.visits(partition)
    state[VISITS] = MetricRecord({"total": total, "round": round, "again": again})
    metrics = MetricRecord(dict(content.metric_records["metrics"].items()))
    if update is None:
        return RecordDict(
            {**{name: solid(r) for name, r in content.array_records.items()}, "metrics": metrics}
        )
    now = {name: vector.value() for name, vector in local.kept.of(partition, update).items()}
    keep_in(state, now, task.layout)
    received = unpack(next(iter(message.content.array_records.values())), dtype=task.dtype)
    dtype, layout = str(task.dtype).removeprefix("torch."), task.sent if task.kept else task.layout
    reply = RecordDict(
        {
            name: written(update, name, unpack(content.array_records[name]), received, layout, dtype)
            for name in update.sends
        }
    )
    reply["metrics"] = metrics
    return reply


def _place(context: Context) -> tuple[int, int]:
    config = context.node_config
    partition, partitions = int(config.get(KEY, -1)), int(config.get("num-partitions", -1))
    if not 0 <= partition < partitions:
        rule = f"must be at least 0 and less than num-partitions ({partitions})"
        hint = f'start the SuperNode with --node-config "{KEY}=0 num-partitions=2"'
        raise BadValue(KEY, partition, rule, hint)
    return partition, partitions


@dataclass(frozen=True)
class ServerSide:
    """The server's half of a deployment.

    Args:
        strategy: the strategy, checked against the number of clients.
        arrays: the model that everybody starts from.
        learner: evaluates.
    """

    strategy: Strategy
    arrays: ArrayRecord
    learner: Learner

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Return loss and accuracy of a model on the test data; Flower calls it after every round.

        Where a part of the model stays with the clients, there is nothing that a server could judge.
        """
        task = self.learner.engine.task
        if task.kept:
            return MetricRecord({})
        model = unpack(arrays, task.device, task.dtype)  # some of Flower's strategies turn it into float64
        with limited(1):
            return MetricRecord(dict(self.learner.evaluate(model).value()))

    def save(self, arrays: ArrayRecord, path: str | Path) -> None:
        """Write a model as a safetensors file, with what is frozen or constant in it.

        What stays with the clients is left out: nobody here knows it.
        """
        # A file holds rows one after the other, whatever the order in memory.
        trained = {name: np.asarray(array.numpy(), order="C") for name, array in arrays.items()}
        task = self.learner.engine.task
        own = task.mine if task.kept else ()
        save_file({name: one for name, one in task.state(trained).items() if name not in own}, path)


def server_side(
    *,
    model: Block,
    data: Block,
    strategy: Block,
    clients: int,
    seed: int = 0,
    expert: Mapping[str, Any] | None = None,
    beside: str | None = None,
) -> ServerSide:
    """Return the server's half of a deployment, made of the same blocks as :func:`client_app`.

    Args:
        model: the model, as in an experiment.
        data: the data, as in an experiment; the server needs their test samples alone.
        strategy: the strategy, as in an experiment.
        clients: how many partitions the data are divided into.
        seed: the experiment's seed.
        expert: how the expert is trained, as in an experiment; the server needs it for its checks alone.
        beside: as in an experiment; an app's own modules are found without it.

    Raises:
        ConfigError: if a part refuses its parameters.

    >>> made = server_side(model="softmax", data="digits", strategy="fedavg", clients=2)
    >>> list(made.arrays), type(made.strategy).__name__
    (['1.weight', '1.bias'], 'FedAvg')
    """
    experiment = _Blocks(model, data, strategy, seed, expert or {}, beside).experiment(clients)
    name = experiment.strategy.name
    with experiment.blame("strategy"):
        part = experiment.find("strategies", name)
    # That comes before its parameters: no value of theirs would help.
    if isinstance(part, type) and issubclass(part, Rounds) and part.pooled:
        rule = "trains in one place and asks no client, so there is nothing for Flower to run"
        raise BadValue("strategy", name, rule)
    has_peers = isinstance(part, type) and issubclass(part, PeerStrategy)
    made = None if has_peers else make_strategy(experiment)
    if not isinstance(made, Strategy):
        raise BadValue("strategy", name, "has peers and no server, so Flower cannot run it")
    updates = updates_of(made, experiment)
    with limited(1):
        learner, _, _ = learning.build(experiment, kept=Traits.of(made).kept)
    check_deployed(experiment, made, learner.engine.task)
    task = learner.engine.task
    start = (
        pack(shared(task, learner.initial), task.sent) if task.kept else pack(learner.initial, task.layout)
    )
    compressed = any(update.codec is not None for update in updates.values())
    return ServerSide(Decoded(made, updates) if compressed else made, solid(start), learner)
