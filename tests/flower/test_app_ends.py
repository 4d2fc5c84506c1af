"""How an app's run ends, whatever its code catches or raises, and what is told of it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from fedsim.errors import RunError, StalledError
from fedsim.flower import run_app
from fedsim.record.store import facts

CALM = {"network.latency_ms": 5, "network.header_bytes": 0, "record.report": False}
HEAD = """
import sys
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


def ask(nodes, round=1):
    content = {"arrays": ArrayRecord({"w": Array(np.zeros(4))}), "config": ConfigRecord({"server-round": round})}
    return [Message(RecordDict(content), node, "train") for node in nodes]


@app.main()
def main(grid, context):
"""
RAISES = ("    target = float", '    raise ZeroDivisionError("no data")\n    target = float')


def serve(folder, lines):
    """Let an app's server consist of these lines."""
    body = "".join(f"    {line}\n" for line in lines.strip("\n").splitlines())
    (folder / "plain_app" / "server.py").write_text(HEAD + body)
    return folder


def run(folder, nodes, out, config="", **world):
    given = {**CALM, **{key.replace("__", "."): value for key, value in world.items()}}
    return run_app(folder, nodes=nodes, run_config=config, overrides=given, out=out)


# whatever is caught

SWALLOW = """
for n in range(1, 10_000):
    try:
        grid.send_and_receive(ask(grid.get_node_ids(), n))
    except Exception:
        pass
"""


def test_the_worlds_end_cannot_be_caught(app, tmp_path):
    result = run(serve(app("plain"), SWALLOW), 2, tmp_path, stop__sim_time_s=0.5)
    assert result.summary["sim_time_s"] == 0.5


@pytest.mark.parametrize("kind", ["Exception", "BaseException"])
def test_a_client_that_raises_cannot_be_caught(kind, app, tmp_path):
    folder = serve(app("plain", {"client.py": RAISES}), SWALLOW.replace("Exception", kind))
    with pytest.raises(RunError, match="the ClientApp raised ZeroDivisionError: no data") as caught:
        run(folder, 2, tmp_path, app__on_failure="stop")
    assert (caught.value.node, caught.value.round) == (0, 1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_another_error_does_not_hide_the_first(app, tmp_path):
    lines = "try:\n    grid.send_and_receive(ask([0]))\nfinally:\n    missing_name"
    with pytest.raises(RunError, match="the ClientApp raised ZeroDivisionError"):
        run(serve(app("plain", {"client.py": RAISES}), lines), 2, tmp_path, app__on_failure="stop")


# sys.exit


@pytest.mark.parametrize("workers", [0, 1])
def test_a_client_that_exits_stops_the_run(workers, app, tmp_path):
    change = {"client.py": ("    target = float", "    import sys\n    sys.exit(7)\n    target = float")}
    folder = app("plain", change, fedsim=f"workers = {workers}")
    with pytest.raises(RunError, match="the ClientApp raised SystemExit: 7") as caught:
        run(serve(folder, "grid.send_and_receive(ask([1], 4))"), 2, tmp_path, app__on_failure="stop")
    assert (caught.value.node, caught.value.round) == (1, 4)


def test_a_server_that_exits_with_a_code_has_failed(app, tmp_path):
    lines = "grid.send_and_receive(ask([0], 3))\nsys.exit(1)"
    with pytest.raises(RunError, match="the ServerApp raised SystemExit: 1") as caught:
        run(serve(app("plain"), lines), 2, tmp_path)
    assert (caught.value.node, caught.value.round) == (2, 3)


@pytest.mark.parametrize("code", ["", "0"])
def test_a_server_that_exits_without_one_is_done(code, app, tmp_path):
    change = {
        "server.py": ("evaluate_fn=score)", f"evaluate_fn=score)\n    import sys\n    sys.exit({code})")
    }
    result = run(app("plain", change), 2, tmp_path, "num-server-rounds=1")
    assert "w" in result.weights()
    assert json.loads((result.path / "summary.json").read_text())["rounds"] == 1


def test_who_presses_ctrl_c_is_told_where_the_record_is(app, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        run(serve(app("plain"), "raise KeyboardInterrupt"), 2, tmp_path)
    (folder,) = tmp_path.glob("plain-*")
    assert caught.value.__notes__ == [f"what was recorded is kept in {folder}"]


# time


def test_looking_who_is_online_before_a_pause_is_no_stall(app, tmp_path):
    lines = """
while len(list(grid.get_node_ids())) < 2:
    time.sleep(1)
print(len(list(grid.get_node_ids())), len(list(grid.get_node_ids())))
time.sleep(3)
assert len(grid.send_and_receive(ask(grid.get_node_ids()))) == 2
"""
    result = run(serve(app("plain"), lines), 2, tmp_path)
    assert result.summary["sim_time_s"] == pytest.approx(3 + 0.010 + 0.011)


def test_waiting_for_nodes_that_do_not_exist_is_one(app, tmp_path):
    with pytest.raises(StalledError, match="nobody else can come: 2 are online"):
        run(serve(app("plain"), "while len(grid.get_node_ids()) < 9:\n    time.sleep(3)"), 2, tmp_path)


def test_clients_that_fail_at_once_take_no_time(app, tmp_path):
    folder = app("plain", {"client.py": RAISES}, fedsim='on_failure = "drop"')
    result = run(folder, 4, tmp_path, "num-server-rounds=3", network__latency_ms=0)
    assert result.summary["rounds"] == 3
    assert result.summary["sim_time_s"] < 0.1  # the evaluations


BUDGET = """
began, ids, count = time.time(), grid.push_messages(ask([0, 1])), 0
while time.time() - began < 0.5:
    for reply in grid.pull_messages(ids):
        count += 1
        ids.remove(reply.metadata.reply_to_message_id)
        ids += grid.push_messages(ask([reply.metadata.src_node_id]))
    time.sleep(0.01)
assert count > 20, count
"""


def test_a_time_budget_is_simulated_and_gives_the_same_run_again(app, tmp_path):
    folder = serve(app("plain"), BUDGET)
    one, two = (run(folder, 2, tmp_path).summary for _ in range(2))
    assert one["event_hash"] == two["event_hash"]
    assert 0.5 <= one["sim_time_s"] == two["sim_time_s"] < 0.6


def test_a_deadline_ends_a_wait_for_slow_clients(app, tmp_path):
    """Clients take 20 s, and the server has 5 s: it gets nothing."""
    lines = """
ids, got, end = grid.push_messages(ask(grid.get_node_ids())), [], time.monotonic() + 5
while time.monotonic() < end and len(got) < 4:
    got += grid.pull_messages(ids)
    time.sleep(1)
assert got == []
"""
    result = run(serve(app("plain"), lines), 4, tmp_path, devices__seconds_per_sample=2.0)
    assert result.summary["sim_time_s"] == pytest.approx(5.0)


def test_flowers_own_messages_keep_their_dates(app, tmp_path):
    lines = """
time.sleep(50_000)
(reply,) = grid.send_and_receive(ask([0]))
assert reply.metadata.ttl > 43_000 and time.time() - reply.metadata.created_at > 49_000
"""
    assert run(serve(app("plain"), lines), 1, tmp_path).summary["sim_time_s"] > 50_000


# what is told


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))


@pytest.fixture
def heard():
    handler, logger = Heard(), logging.getLogger("flwr")
    logger.addHandler(handler)
    yield handler.lines
    logger.removeHandler(handler)


def test_the_apps_own_warnings_are_shown(heard, app, tmp_path):
    lines = """
from logging import INFO, WARNING
from flwr.common.logger import log
log(INFO, "by the way")
log(WARNING, "take care")
"""
    run(serve(app("plain"), lines), 2, tmp_path)
    assert heard == [("WARNING", "take care")]


def test_error_replies_are_counted_and_the_first_is_told(app, tmp_path, caplog):
    folder = app("plain", {"client.py": RAISES}, fedsim='on_failure = "drop"')
    lines = "for n in (1, 2):\n    grid.send_and_receive(ask([0, 1], n))"
    result = run(serve(folder, lines), 2, tmp_path)
    assert result.summary["error_replies"] == 4
    first = "the first is of client 0 in round 1 (the ClientApp raised ZeroDivisionError: no data)"
    assert f"4 replies were errors; {first}" in caplog.text
    found = facts(result.path)["error_replies"]
    assert [(one["node"], one["round"]) for one in found] == [(0, 1), (1, 1), (0, 2), (1, 2)]


def test_clients_that_are_offline_are_no_errors(app, tmp_path, caplog):
    faults = [{"name": "crash", "nodes": [0], "at_s": 0.001}]
    result = run(app("plain"), 3, tmp_path, "fraction-train=1.0 num-server-rounds=2", faults=faults)
    assert result.summary["error_replies"] == 0
    assert "errors" not in caplog.text


def test_the_former_api_leaves_its_model(app, tmp_path):
    """Each round takes the mean of (w + target) / 2 over the targets 0 to 3, so 0.75 and then 1.125."""
    result = run(app("legacy"), 4, tmp_path, "num-server-rounds=2")
    (weights,) = result.weights().values()
    np.testing.assert_allclose(weights, np.full(4, 1.125))
    assert result.summary["weights_hash"]


def test_the_former_api_leaves_its_model_when_the_world_ends(app, tmp_path):
    """A round takes 0.137 s."""
    result = run(app("legacy"), 4, tmp_path, "num-server-rounds=9", stop__sim_time_s=0.2)
    (weights,) = result.weights().values()
    np.testing.assert_allclose(weights, np.full(4, 0.75))
