"""Apps that are objects, and a grid to hold on to."""

from __future__ import annotations

import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsim.errors import ConfigError, RunError
from fedsim.flower import grid, simulate

WORLD = {"network": {"latency_ms": 5, "header_bytes": 0}, "record": {"report": False}}
START = {"w": np.zeros(2, dtype=np.float32)}


@pytest.fixture
def clients():
    """Clients who add their number to what they get, with 10 samples each."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        weights = message.content["arrays"]["w"].numpy() + context.node_id * context.run_config.get("lr", 1.0)
        metrics = MetricRecord({"num-examples": 10})
        content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


def arrays():
    return ArrayRecord({name: Array(value) for name, value in START.items()})


def test_objects_run_like_an_app_on_disk(clients, tmp_path):
    """Two rounds, each adding 0.5 x (0 + 1 + 2) / 3, in 5 + 10 + 5 ms each."""
    server, seen = ServerApp(), []

    @server.main()
    def main(grid, context):
        began = time.monotonic()
        FedAvg(fraction_evaluate=0.0).start(grid, arrays(), num_rounds=context.run_config["rounds"])
        seen.append(time.monotonic() - began)

    config = {"rounds": 2, "lr": 0.5}
    result = simulate(server, clients, nodes=3, world=WORLD, run_config=config, out=tmp_path, name="mine")
    np.testing.assert_allclose(result.weights()["w"], [1.0, 1.0])
    assert result.summary["sim_time_s"] == pytest.approx(0.040)
    assert seen == [pytest.approx(0.040)]
    assert result.path.name.startswith("mine")
    assert (result.path / "app.log").exists()
    again = simulate(server, clients, nodes=3, world=WORLD, run_config=config, out=tmp_path)
    assert again.summary["run_hash"] == result.summary["run_hash"]


def test_a_server_that_raises(clients, tmp_path):
    server = ServerApp()

    @server.main()
    def main(grid, context):
        raise KeyError("mine")

    with pytest.raises(RunError, match="the ServerApp raised KeyError: 'mine'") as caught:
        simulate(server, clients, nodes=3, world=WORLD, out=tmp_path)
    assert caught.value.run_path.parent == tmp_path


def test_objects_have_no_workers(clients, tmp_path):
    with pytest.raises(ConfigError, match=r"app\.workers: 2: must be 0: an object cannot be imported"):
        simulate(ServerApp(), clients, nodes=3, world={"app": {"workers": 2}}, out=tmp_path)
    with pytest.raises(ConfigError, match="sede: unknown key; did you mean seed"):
        grid({"sede": 2}, clients, nodes=3)


def test_a_strategy_starts_on_a_grid(clients):
    before = time.sleep, FedAvg.start
    with grid(WORLD, clients, nodes=3) as made:
        result = FedAvg(fraction_evaluate=0.0).start(made, arrays(), num_rounds=2)
        assert made.world.clock.now_s == pytest.approx(0.040)
        time.sleep(2.0)
        assert made.world.clock.now_s == pytest.approx(2.040)
    np.testing.assert_allclose(result.arrays["w"].numpy(), [2.0, 2.0])
    assert before == (time.sleep, FedAvg.start)


def test_a_grid_under_churn_gives_error_replies(clients):
    """Client 1 crashes while it computes, after 5 of its 10 ms; that is noticed a tenth of a second later."""
    faults = [{"name": "crash", "nodes": [1], "at_s": 0.010}]
    network = {"latency_ms": 5, "header_bytes": 0, "detect_s": 0.1}
    with grid({"network": network, "faults": faults}, clients, nodes=3) as made:
        replies = made.send_and_receive(
            [Message(RecordDict({"arrays": arrays()}), n, "train") for n in range(3)]
        )
        assert [one.error.code if one.has_error() else 0 for one in replies] == [0, 0, 5]
        assert made.world.clock.now_s == pytest.approx(0.110)
        assert made.get_node_ids() == [0, 2]


def test_the_worlds_end_leaves_the_block(clients):
    with grid({**WORLD, "stop": {"sim_time_s": 1.0}}, clients, nodes=3) as made:
        time.sleep(5.0)
        raise AssertionError("this is never reached")
    assert made.world.clock.now_s == 1.0


def test_what_breaks_the_run_leaves_it_too(clients):
    with (
        pytest.raises(RunError, match="the ClientApp raised KeyError"),
        grid({**WORLD, "app": {"on_failure": "stop"}}, clients, nodes=3) as made,
    ):
        made.send_and_receive([Message(RecordDict(), 0, "train")])
