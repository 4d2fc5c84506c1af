"""Servers of Flower's former API in simulated time; like :mod:`fedsim.flower.compat`, it touches private parts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.common import Code
from flwr.compat.common import recorddict_compat as convert
from flwr.server import server
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat import app, app_utils
from flwr.server.workflow import default_workflows
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from flwr.server.workflow.default_workflows import DefaultWorkflow
from flwr.serverapp import Grid

from fedsim.flower.compat import replaced


@contextlib.contextmanager
def together(
    grid: Grid,
    sleep: Callable[[float], None],
    on_arrays: Callable[[ArrayRecord], None],
    on_metrics: Callable[[int, Mapping[str, Any]], None],
    on_aggregate: Callable[[str, Mapping[str, Any]], None],
) -> Iterator[None]:
    """Let servers of the former API ask all clients of a round at once, and watch what they learn.

    They ask each client in a thread of its own, and wait for clients in real time; in simulated time one message
    would follow the other.

    Args:
        grid: the grid that they use.
        sleep: lets time pass while too few clients are online.
        on_arrays: called with the model that a server or a workflow ends with.
        on_metrics: called with what the strategy's own evaluation of a round's model gives.
        on_aggregate: called with ``train`` or ``evaluate`` and what the strategy makes of the clients' metrics.
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
            with _heard(self.strategy, on_metrics, on_aggregate):
                return learn(self, *args, **kwargs)
        finally:
            if self.parameters.tensors:
                on_arrays(convert.parameters_to_arrayrecord(self.parameters, keep_input=True))

    flow = DefaultWorkflow.__call__

    def flow_and_show(self: DefaultWorkflow, grid: Grid, context: Any) -> None:
        try:
            with _heard(context.strategy, on_metrics, on_aggregate):
                flow(self, grid, context)
        finally:
            if MAIN_PARAMS_RECORD in context.state:
                on_arrays(context.state.array_records[MAIN_PARAMS_RECORD])

    fit = _asker(grid, MessageType.TRAIN, convert.fitins_to_recorddict, fit_result)
    evaluate = _asker(
        grid, MessageType.EVALUATE, convert.evaluateins_to_recorddict, convert.recorddict_to_evaluateres
    )
    changes: list[tuple[Any, str, Any]] = [
        (server.Server, "fit", learn_and_show),
        (DefaultWorkflow, "__call__", flow_and_show),
        (default_workflows, "start_update_client_manager_thread", register),
        (server, "fit_clients", fit),
        (server, "evaluate_clients", evaluate),
        (app, "start_update_client_manager_thread", register),
        (SimpleClientManager, "wait_for", wait_for),
    ]
    before = [getattr(owner, name) for owner, name, _ in changes]
    try:
        for owner, name, new in changes:
            setattr(owner, name, new)
        yield
    finally:
        for (owner, name, _), old in zip(changes, before, strict=True):
            setattr(owner, name, old)


@contextlib.contextmanager
def _heard(
    strategy: Any,
    on_metrics: Callable[[int, Mapping[str, Any]], None],
    on_aggregate: Callable[[str, Mapping[str, Any]], None],
) -> Iterator[None]:
    """Listen to what a strategy finds out."""
    evaluate, aggregate, judge = strategy.evaluate, strategy.aggregate_fit, strategy.aggregate_evaluate

    def measure(server_round: int, parameters: Any) -> Any:
        found = evaluate(server_round, parameters=parameters)
        if found is not None:
            on_metrics(server_round, {"loss": found[0], **found[1]})
        return found

    def combine(*args: Any, **more: Any) -> Any:
        parameters, metrics = aggregate(*args, **more)
        on_aggregate(MessageType.TRAIN, metrics)
        return parameters, metrics

    def conclude(*args: Any, **more: Any) -> Any:
        loss, metrics = judge(*args, **more)
        on_aggregate(MessageType.EVALUATE, metrics if loss is None else {"loss": loss, **metrics})
        return loss, metrics

    with replaced(strategy, evaluate=measure, aggregate_fit=combine, aggregate_evaluate=conclude):
        yield


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
