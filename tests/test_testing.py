"""The fixtures that users test their own apps with, used as the guide says."""

from __future__ import annotations

import time

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedsim.testing import flower_grid, flower_run  # noqa: F401

CALM = {"network": {"latency_ms": 10, "header_bytes": 0, "detect_s": 0.5}, "record": {"report": False}}


@pytest.fixture
def echo():
    app = ClientApp()

    @app.query()
    def answer(message, context):
        return Message(RecordDict({"m": MetricRecord({"num-examples": 0})}), reply_to=message)

    return app


def ask(nodes):
    return [Message(RecordDict(), node, "query") for node in nodes]


def codes(replies):
    return [reply.error.code if reply.has_error() else 0 for reply in replies]


def test_an_app_under_faults(flower_grid, echo):  # noqa: F811
    """Client 2 is down from 1 s to 2 s; messages take 10 ms each way, and a loss is noticed half a second later."""
    faults = [{"name": "crash_recover", "nodes": [2], "at_s": 1.0, "down_s": 1.0}]
    grid = flower_grid({**CALM, "faults": faults}, echo, nodes=3)
    assert codes(grid.send_and_receive(ask(range(3)))) == [0, 0, 0]
    assert grid.world.clock.now_s == pytest.approx(0.020)
    time.sleep(1.0)
    assert grid.get_node_ids() == [0, 1]
    assert codes(grid.send_and_receive(ask(range(3)))) == [0, 0, 5]
    time.sleep(1.0)
    assert codes(grid.send_and_receive(ask(range(3)))) == [0, 0, 0]


def test_a_whole_app(flower_run, echo, tmp_path):  # noqa: F811
    server = ServerApp()

    @server.main()
    def main(grid, context):
        for _ in range(context.run_config["times"]):
            grid.send_and_receive(ask(grid.get_node_ids()))

    result = flower_run(server, echo, nodes=4, world=CALM, run_config={"times": 3})
    assert result.summary["sim_time_s"] == pytest.approx(3 * 0.020)
    assert result.path.parent == tmp_path / "runs"
