"""Servers of Flower's former API in simulated time; like :mod:`fedsim.flower.compat`, it touches private parts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.common import Code
from flwr.compat.common import recorddict_compat as convert
from flwr.server import server
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat import app, app_utils
from flwr.serverapp import Grid


@contextlib.contextmanager
def together(
    grid: Grid, sleep: Callable[[float], None], on_arrays: Callable[[ArrayRecord], None]
) -> Iterator[None]:
    """Let servers of the former API ask all clients of a round at once, and watch what they learn.

    They ask each client in a thread of its own, and wait for clients in real time; in simulated time one message
    would follow the other.

    Args:
        grid: the grid that they use.
        sleep: lets time pass while too few clients are online.
        on_arrays: called with the model that a server ends with.
    """

    def wait_for(manager: Any, num_clients: int, **_: Any) -> bool:
        while manager.num_available() < num_clients:
            sleep(1.0)
        return True

    def register(grid: Grid, manager: Any) -> tuple[threading.Thread, threading.Event, threading.Event]:
        stop, done = threading.Event(), threading.Event()
        stop.set()  # look once; the manager looks again whenever it is asked
        thread = threading.Thread(target=app_utils._update_client_manager, args=(grid, manager, stop, done))
        thread.start()
        return thread, stop, done

    def fit_result(content: RecordDict) -> Any:
        return convert.recorddict_to_fitres(content, keep_input=False)

    learn = server.Server.fit

    def learn_and_show(self: server.Server, *args: Any, **kwargs: Any) -> Any:
        try:
            return learn(self, *args, **kwargs)
        finally:
            if self.parameters.tensors:
                on_arrays(convert.parameters_to_arrayrecord(self.parameters, keep_input=True))

    fit = _asker(grid, MessageType.TRAIN, convert.fitins_to_recorddict, fit_result)
    evaluate = _asker(
        grid, MessageType.EVALUATE, convert.evaluateins_to_recorddict, convert.recorddict_to_evaluateres
    )
    replaced: list[tuple[Any, str, Any]] = [
        (server.Server, "fit", learn_and_show),
        (server, "fit_clients", fit),
        (server, "evaluate_clients", evaluate),
        (app, "start_update_client_manager_thread", register),
        (SimpleClientManager, "wait_for", wait_for),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, new in replaced:
            setattr(owner, name, new)
        yield
    finally:
        for (owner, name, _), old in zip(replaced, before, strict=True):
            setattr(owner, name, old)


def _asker(grid: Grid, kind: str, to_content: Callable[..., Any], from_content: Callable[..., Any]) -> Any:
    """Return what asks many clients at once, in place of the former API's ``fit_clients``."""

    def ask(client_instructions: Any, *, timeout: float | None, group_id: int, **_: Any) -> Any:
        asked = {proxy.node_id: proxy for proxy, _ in client_instructions}
        messages = [
            Message(to_content(ins, True), proxy.node_id, kind, ttl=timeout, group_id=str(group_id))
            for proxy, ins in client_instructions
        ]
        results: list[Any] = []
        failures: list[Any] = []
        for reply in grid.send_and_receive(messages):
            if reply.has_error():
                failures.append(ValueError(reply.error.reason))
                continue
            answer = from_content(reply.content)
            found = results if answer.status.code == Code.OK else failures
            found.append((asked[reply.metadata.src_node_id], answer))
        return results, failures

    return ask
