"""Everything that touches Flower's private parts, in one place.

Flower's messages need to know which task they belong to, its strategies draw cohorts from the global ``random``
and sleep while they wait for nodes. A session binds all of that to a simulated run, and puts it back afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run

from fedsim import rng
from fedsim.logs import quiet

RUN_ID, TASK_ID = 1, 1
NODE_UNAVAILABLE = int(ErrorCode.NODE_UNAVAILABLE)


def make_run() -> Run:
    """Return the description of a simulated run."""
    return Run.create_empty(run_id=RUN_ID)


def name_message(message: Message, message_id: str, src_node_id: int) -> None:
    """Give a message its id and its sender, as a SuperLink does when it takes a message in."""
    message.metadata.__dict__["_message_id"] = message_id
    message.metadata.__dict__["_src_node_id"] = src_node_id
    message.metadata.__dict__["_run_id"] = RUN_ID


@contextlib.contextmanager
def session(seed: int, server_id: int, sleep: Callable[[float], None]) -> Iterator[None]:
    """Run Flower code inside a simulation.

    Args:
        seed: the experiment's seed; the global generators follow from it while the session lasts.
        server_id: the node id that the server's messages carry.
        sleep: what a strategy that waits for nodes calls instead of ``time.sleep``.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_identity(server_id))
        stack.enter_context(_seeded(seed))
        stack.enter_context(_sleep(sleep))
        stack.enter_context(quiet("flwr"))
        stack.enter_context(_frozen())
        yield


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    """Keep what exists out of garbage collection: some of Flower's strategies collect after every reply."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _identity(server_id: int) -> Iterator[None]:
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:  # older than 1.38: messages need no identity
        yield
        return
    names = {"_task_id": TASK_ID, "_run_id": RUN_ID, "_node_id": server_id}
    before = {name: getattr(TaskIdentity, name) for name in names}
    try:
        for name, value in names.items():
            setattr(TaskIdentity, name, value)
        yield
    finally:
        for name, old in before.items():
            setattr(TaskIdentity, name, old)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which strategies that are not ours draw from, and restore them."""
    before: tuple[Any, Any] = (random.getstate(), np.random.get_state())
    try:
        random.seed(rng.key(seed, "flower"))
        np.random.seed(rng.key(seed, "flower numpy") % 2**32)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def _sleep(sleep: Callable[[float], None]) -> Iterator[None]:
    module: Any = importlib.import_module("flwr.serverapp.strategy.strategy_utils")
    before = module.sleep
    try:
        module.sleep = sleep
        yield
    finally:
        module.sleep = before
