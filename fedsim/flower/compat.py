"""Everything that touches Flower's private parts, in one place.

Flower's messages need to know which task they belong to, its strategies draw cohorts from the global ``random``
and sleep while they wait for nodes. A session binds all of that to a simulated run, and puts it back afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MessageType, Metadata, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import Strategy
from flwr.supercore.run import Run
from numpy.random import mtrand

from fedsim import rng
from fedsim.flower.moment import iso
from fedsim.learn.engines.own import belongs
from fedsim.logs import quiet
from fedsim.running.garbage import settled

try:
    TaskIdentity: Any = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
except ImportError:  # older than 1.38: messages need no identity
    TaskIdentity = None

time_s = time.time  # a server's own code sees another one
RUN_ID, TASK_ID = 1, 1
AWAIT_PROCESSES = ("subprocess", "multiprocessing", "concurrent")
"""Modules of Python that sleep between two looks at another process."""
NODE_UNAVAILABLE = int(ErrorCode.NODE_UNAVAILABLE)
UNAVAILABLE = int(ErrorCode.MESSAGE_UNAVAILABLE)
GONE = (NODE_UNAVAILABLE, UNAVAILABLE, int(ErrorCode.REPLY_MESSAGE_UNAVAILABLE))
"""What a SuperLink says in the place of a client."""
RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
DEFAULT_TTL_S = 43_200.0

_IN_CLIENT = ContextVar("in_client", default=False)
_AWAITED = ContextVar("awaited", default=False)


def make_run() -> Run:
    """Return the description of a simulated run."""
    return Run.create_empty(run_id=RUN_ID)


def name_message(message: Message, message_id: str, src_node_id: int) -> None:
    """Give a message its id and its sender, as a SuperLink does when it takes a message in."""
    message.metadata.__dict__.update(_message_id=message_id, _src_node_id=src_node_id, _run_id=RUN_ID)


def delivered(message: Message, content: RecordDict) -> Message:
    """Return a message as its receiver gets it, with content of its own.

    Flower's constructor checks what has been checked when the message was made, which takes longer than all of this.
    """
    about = message.metadata.__dict__
    copy = _made(about, content)
    copy.__dict__["_metadata"].__dict__["_delivered_at"] = iso(about["_created_at"])
    return copy


def answered(message: Message, message_id: str, src_node_id: int, content: RecordDict) -> Message:
    """Return the reply to a message, as :class:`Message` makes it, with its id and its sender."""
    asked, now_s = message.metadata.__dict__, time_s()
    reply = _made(asked, content)
    about = reply.__dict__["_metadata"].__dict__
    about["_run_id"], about["_message_id"], about["_src_node_id"] = RUN_ID, message_id, src_node_id
    about["_dst_node_id"], about["_reply_to_message_id"] = asked["_src_node_id"], asked["_message_id"]
    about["_created_at"], about["_ttl"] = now_s, asked["_created_at"] + asked["_ttl"] - now_s
    if "_dst_task_id" in asked:  # not in all versions
        about["_src_task_id"], about["_dst_task_id"] = asked["_dst_task_id"], asked["_src_task_id"]
    about["_delivered_at"] = ""
    return reply


def _made(about: Mapping[str, Any], content: RecordDict) -> Message:
    message, metadata = Message.__new__(Message), Metadata.__new__(Metadata)
    metadata.__dict__.update(about)
    message.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return message


def lost_reply(message_id: str, server_id: int, code: int, reason: str) -> Message:
    """Return what a SuperLink replies to a message by itself."""
    asked = Message(RecordDict(), server_id, "query")
    name_message(asked, message_id, server_id)
    reply = Message(Error(code, reason), reply_to=asked)
    name_message(reply, f"{message_id}-reply", server_id)
    return reply


def make_context(
    node_id: int, node_config: dict[str, Any], run_config: dict[str, Any], state: RecordDict | None = None
) -> Context:
    """Return the context of a ServerApp or of one client's ClientApp; None is an empty state."""
    state = RecordDict() if state is None else state
    return Context(
        run_id=RUN_ID, node_id=node_id, node_config=node_config, state=state, run_config=run_config
    )


def set_receiver(message: Message, node_id: int) -> None:
    """Let a message go to another node."""
    message.metadata.__dict__["_dst_node_id"] = node_id


def set_sender(message: Message, node_id: int) -> None:
    """Let a message come from another node."""
    message.metadata.__dict__["_src_node_id"] = node_id


@contextlib.contextmanager
def session(
    seed: int, server_id: int, sleep: Callable[[float], None], level: int = logging.ERROR
) -> Iterator[None]:
    """Run Flower code inside a simulation.

    Args:
        seed: the experiment's seed; the global generators follow from it while the session lasts.
        server_id: the node id that the server's messages carry.
        sleep: what a strategy that waits for nodes calls instead of ``time.sleep``.
        level: of what Flower's logger lets through.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(identity(server_id))
        stack.enter_context(seeded_server(seed))
        stack.enter_context(_sleep(sleep))
        stack.enter_context(quiet("flwr", level))
        stack.enter_context(settled())  # some of Flower's strategies collect after every reply
        yield


def seeded_server(seed: int) -> contextlib.AbstractContextManager[None]:
    """Let what a server draws follow from the experiment's seed."""
    return seeded(rng.key(seed, "flower"), rng.key(seed, "flower numpy"))


@contextlib.contextmanager
def identity(node_id: int) -> Iterator[None]:
    """Let messages that are made in this process belong to the simulated run, and come from this node."""
    before = _identify((TASK_ID, RUN_ID, node_id))
    try:
        yield
    finally:
        _identify(before)


def _identify(whose: tuple[Any, ...]) -> tuple[Any, ...]:
    """Set the task, the run and the node that messages of this process come from, and return the former ones."""
    if TaskIdentity is None:
        return whose
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    if before[:2] != whose[:2]:  # every change makes Python look the class's attributes up anew
        TaskIdentity._task_id, TaskIdentity._run_id = whose[:2]
    TaskIdentity._node_id = whose[2]
    return before


def _belong() -> None:
    """Let each of several runs that advance together have its own of what a session puts in place."""
    strategy: Any = importlib.import_module("flwr.serverapp.strategy.strategy")
    waiting: Any = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    belongs(lambda: strategy.Result, lambda result: setattr(strategy, "Result", result))
    belongs(lambda: waiting.sleep, lambda sleep: setattr(waiting, "sleep", sleep))
    logger = logging.getLogger("flwr")
    belongs(lambda: logger.level, logger.setLevel)
    with contextlib.suppress(ImportError):  # as in identity
        task: Any = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        for name in ("_task_id", "_run_id", "_node_id"):
            belongs(partial(getattr, task, name), partial(setattr, task, name))


_belong()


@contextlib.contextmanager
def seeded(key: int, numpy_key: int | None = None) -> Iterator[None]:
    """Seed the global generators, which code that is not ours draws from, and restore them."""
    numpy = np.random.get_state()
    with _restored():
        try:
            _seed(key, numpy_key)
            yield
        finally:
            np.random.set_state(numpy)


@contextlib.contextmanager
def undisturbed(spare: np.random.BitGenerator) -> Iterator[None]:
    """Let clients work while a server waits, and restore its global generators when it goes on.

    NumPy's is exchanged: to save and restore its state takes half as long as all the rest of a message. That makes it
    forget the second of two normal numbers, where a server has drawn the first alone. It does so in every wait, even
    if nobody works in this process, so that a run is the same with and without other processes.

    Args:
        spare: NumPy's meanwhile, an MT19937 that nothing else uses.
    """
    numpy, mark = mtrand.get_bit_generator(), _AWAITED.set(True)
    with _restored():
        try:
            mtrand.set_bit_generator(spare)
            yield
        finally:
            mtrand.set_bit_generator(numpy)
            _AWAITED.reset(mark)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore the global generators of Python and PyTorch."""
    python, pytorch = random.getstate(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(pytorch)


def _seed(key: int, numpy_key: int | None = None) -> None:
    random.seed(key)
    np.random.seed((key if numpy_key is None else numpy_key) & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


@contextlib.contextmanager
def _sleep(sleep: Callable[[float], None]) -> Iterator[None]:
    module: Any = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    before = module.sleep
    try:
        module.sleep = sleep
        yield
    finally:
        module.sleep = before


class _Latest(dict[int, MetricRecord]):
    """Keeps its latest entry alone."""

    def __setitem__(self, round: int, metrics: MetricRecord) -> None:
        self.clear()
        super().__setitem__(round, metrics)


@contextlib.contextmanager
def forgetful() -> Iterator[None]:
    """Let Flower's loop keep only the latest metrics, and not those of all rounds, which nobody will read."""
    module: Any = importlib.import_module("flwr.serverapp.strategy.strategy")
    before, names = module.Result, [f"{kind}_metrics_clientapp" for kind in ("train", "evaluate")]
    names.append("evaluate_metrics_serverapp")
    try:
        module.Result = lambda: before(**{name: _Latest() for name in names})
        yield
    finally:
        module.Result = before


class Client:
    """Runs a client's code inside a simulation, with global generators of its own, as long as a ``with`` block lasts.

    It is a class and no generator, because that is quicker, and every message needs one.

    Args:
        node_id: the node id that its messages carry.
        key: what the global generators follow from.
    """

    __slots__ = ("_before", "_key", "_mark", "_node", "_seeded")

    def __init__(self, node_id: int, key: int) -> None:
        self._node, self._key = node_id, key

    def __enter__(self) -> None:
        self._seeded = None if _AWAITED.get() else seeded(self._key)
        if self._seeded is None:
            _seed(self._key)
        else:
            self._seeded.__enter__()
        self._mark, self._before = _IN_CLIENT.set(True), _identify((TASK_ID, RUN_ID, self._node))

    def __exit__(self, *error: Any) -> None:
        _identify(self._before)
        _IN_CLIENT.reset(self._mark)
        if self._seeded is not None:
            self._seeded.__exit__(*error)


def in_client() -> bool:
    """Tell whether a client's code is running in this thread."""
    return _IN_CLIENT.get()


@contextlib.contextmanager
def slow_time(pause: Callable[[float], None], own: Callable[[], bool]) -> Iterator[None]:
    """Let ``time.sleep`` of a server's own code, where ``own`` holds, pass simulated time; others sleep as before.

    A module that is imported meanwhile may keep the replacement; outside of here it sleeps as usual, and so do a
    client and what Python waits for other processes with: how long they take is no simulated time.
    """
    before, active = time.sleep, True

    def sleep(seconds: Any) -> None:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        simulated = active and own() and caller.partition(".")[0] not in AWAIT_PROCESSES
        (pause if simulated else before)(seconds)

    time.sleep = sleep
    try:
        yield
    finally:
        active = False
        time.sleep = before


@contextlib.contextmanager
def replaced(owner: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Let an object have other methods for a while."""
    before = {name: vars(owner)[name] for name in functions if name in vars(owner)}
    vars(owner).update(functions)
    try:
        yield
    finally:
        for name in functions:
            delattr(owner, name)
        vars(owner).update(before)


@contextlib.contextmanager
def observed(
    on_arrays: Callable[[ArrayRecord], None],
    on_metrics: Callable[[int, Mapping[str, Any]], None],
    on_aggregate: Callable[[str, Mapping[str, Any]], None],
) -> Iterator[None]:
    """Watch strategies that a server's own code starts.

    Args:
        on_arrays: called with the initial model and after every aggregation.
        on_metrics: called with what the server's own evaluation of a round's model gives.
        on_aggregate: called with ``train`` or ``evaluate`` and what the strategy makes of the clients' metrics.
    """
    start, signature = Strategy.start, inspect.signature(Strategy.start)

    def begin(self: Strategy, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        given, aggregate, judge = bound.arguments, self.aggregate_train, self.aggregate_evaluate
        evaluate: Any = given.get("evaluate_fn")

        def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            found: MetricRecord | None = evaluate(server_round, arrays)
            if found is not None:
                on_metrics(server_round, found)
            return found

        def combine(*args: Any, **kwargs: Any) -> Any:
            arrays, metrics = aggregate(*args, **kwargs)
            if arrays is not None:
                on_arrays(arrays)
            on_aggregate(MessageType.TRAIN, metrics or {})
            return arrays, metrics

        def conclude(*args: Any, **kwargs: Any) -> Any:
            metrics = judge(*args, **kwargs)
            on_aggregate(MessageType.EVALUATE, metrics or {})
            return metrics

        if evaluate is not None:
            given["evaluate_fn"] = measure
        on_arrays(given["initial_arrays"])
        with replaced(self, aggregate_train=combine, aggregate_evaluate=conclude):
            return start(*bound.args, **bound.kwargs)

    Strategy.start = begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        Strategy.start = start  # type: ignore[method-assign]
