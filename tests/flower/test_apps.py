"""Users' apps in simulated time: unmodified, repeatable, and what goes wrong says where.

The app ``plain`` averages vectors that clients pull towards their partition's number; ``legacy`` does the same with
Flower's former API. All times are derived by hand.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsim.errors import ConfigError, RunError, StalledError
from fedsim.flower import run_app
from fedsim.flower.apps.visit import said
from fedsim.record.report import KEYS
from fedsim.record.store import read

RAISES = """    if context.node_config["partition-id"] == 1:
        raise ZeroDivisionError("no data")
    target = float"""
CALM = {"network.latency_ms": 5, "network.header_bytes": 0, "record.report": False}


def run(folder, nodes, out, config="", **world):
    given = {**CALM, **{key.replace("__", "."): value for key, value in world.items()}}
    return run_app(folder, nodes=nodes, run_config=config, overrides=given, out=out)


def test_an_unmodified_app_learns_what_it_should(app, tmp_path):
    """Weighted mean of the targets 0 to 3 with weights 10 to 13 is 74/46; each round goes a tenth of the way."""
    result = run(app("plain"), 4, tmp_path, "fraction-train=1.0 num-server-rounds=2")
    goal = sum(node * (10 + node) for node in range(4)) / 46
    expected = goal * (1 - 0.9**2)
    np.testing.assert_allclose(result.weights()["w"], np.full(4, expected), rtol=1e-6)
    assert result.summary["rounds"] == 2
    assert result.summary["loss"] == pytest.approx(expected, rel=1e-6)
    assert result.summary["accuracy"] == result.summary["best_accuracy"] == 0.5


def test_times_are_latencies_and_the_work_that_replies_name(app, tmp_path):
    """Training waits for 13 samples at 1 ms and evaluation for ceil(10/3), each with 5 ms both ways."""
    result = run(app("plain"), 4, tmp_path, "fraction-train=1.0 num-server-rounds=2")
    assert result.summary["sim_time_s"] == pytest.approx(2 * (0.010 + 0.013 + 0.010 + 0.004))
    rounds = read(result.path, "rounds")
    assert rounds["round"].tolist() == [1, 2]
    assert rounds["time_us"].tolist() == [37_000, 74_000]
    assert rounds["clients"].tolist() == [4, 8]  # evaluations are no updates
    assert result.summary["work_samples"] == 2 * (46 + 4 * 4)


ACTIONS = """
@app.{kind}("own")
def own(message, context):
    return Message(RecordDict({{"m": MetricRecord({{"num-examples": 600}})}}), reply_to=message)
"""
ASKS = """
    from flwr.app import ConfigRecord, Message, RecordDict
    grid.send_and_receive([Message(RecordDict({{"c": ConfigRecord({{}})}}), 0, "{kind}.own")])
    return
    config"""


@pytest.mark.parametrize(("kind", "work"), [("evaluate", 200), ("query", 200), ("train", 600)])
def test_an_action_costs_what_its_kind_costs(kind, work, app, tmp_path):
    """Of 600 samples, at 1 ms: without a backward pass a third; and 5 ms both ways."""
    folder = app("plain", {"server.py": ("\n    config", ASKS.format(kind=kind))})
    with (folder / "plain_app" / "client.py").open("a") as file:
        file.write(ACTIONS.format(kind=kind))
    summary = run(folder, 1, tmp_path).summary
    assert summary["work_samples"] == work
    assert summary["sim_time_s"] == pytest.approx(0.010 + work / 1000)


def test_round_trips_are_halved_and_the_summary_says_so(app, tmp_path):
    """Round trips of 10 ms are 5 ms each way, so the times are those above: 11 samples, and ceil(10/3)."""
    (tmp_path / "trips.csv").write_text("0,10,10\n10,0,10\n10,10,0\n")
    network = {"latency_matrix": str(tmp_path / "trips.csv"), "latency_unit": "round_trip", "header_bytes": 0}
    world = {**{f"network.{key}": value for key, value in network.items()}, "record.report": False}
    config = "fraction-train=1.0 num-server-rounds=1"
    found = run_app(app("plain"), nodes=2, run_config=config, overrides=world, out=tmp_path).summary
    assert found["sim_time_s"] == pytest.approx(0.010 + 0.011 + 0.010 + 0.004)
    assert found["notes"] == [f"latencies are half of the round trips in {tmp_path / 'trips.csv'}"]


def test_a_message_can_cost_what_the_app_says(app, tmp_path):
    folder = app("plain", fedsim="samples_per_message = 100")
    result = run(folder, 4, tmp_path, "fraction-train=1.0 num-server-rounds=1")
    assert result.summary["sim_time_s"] == pytest.approx(2 * (0.010 + 0.100))


def test_each_client_has_a_state_and_a_place_of_its_own(app, tmp_path):
    result = run(app("plain"), 3, tmp_path, "fraction-train=1.0 num-server-rounds=3")
    metrics = result.metrics()
    assert metrics["train_visits"].tolist()[-3:] == [1.0, 2.0, 3.0]
    assert metrics["eval_loss"][-1] < metrics["eval_loss"][1]


def test_the_same_file_gives_the_same_run(app, tmp_path):
    folder = app("plain")
    churn = {"churn": {"name": "exponential", "online_s": 0.05, "offline_s": 0.02}}
    one, two = (run(folder, 8, tmp_path, seed=3, **churn) for _ in range(2))
    other = run(folder, 8, tmp_path, seed=4, **churn)
    assert one.summary["run_hash"] == two.summary["run_hash"] != other.summary["run_hash"]
    assert one.metrics()["train_luck"][1] == two.metrics()["train_luck"][1]


def test_workers_give_the_same_as_this_process(app, tmp_path):
    folder = app("plain")
    here = run(folder, 4, tmp_path / "out")
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n[tool.fedsim]\nworkers = 1\n")
    there = run(folder, 4, tmp_path / "out")
    assert there.summary["run_hash"] == here.summary["run_hash"]
    assert there.summary["metrics"] == here.summary["metrics"]


def test_an_interrupted_visit_has_not_happened(app, tmp_path):
    """The client goes offline in its first visit (5 to 15 ms) and works once more afterwards."""
    faults = [{"name": "crash_recover", "nodes": [0], "at_s": 0.010, "down_s": 0.020}]
    config = "fraction-train=1.0 num-server-rounds=2"
    result = run(app("plain"), 2, tmp_path, config, faults=faults, network__detect_s=0.1)
    expected = [1.0, (1 * 10 + 2 * 11) / 21]  # alone in the first round, one visit behind in the second
    assert result.metrics()["train_visits"].tolist()[-2:] == pytest.approx(expected)


def test_the_former_api_asks_all_clients_at_once(app, tmp_path):
    """Four clients with 100 samples each and ceil(50/3) for an evaluation: in parallel, not one after the other."""
    result = run(app("legacy"), 4, tmp_path, "num-server-rounds=2")
    assert result.summary["sim_time_s"] == pytest.approx(2 * (0.010 + 0.100 + 0.010 + 0.017))
    assert result.summary["rounds"] == 2
    assert result.summary["metrics"] == {
        "train_shift": 1.5,
        "eval_loss": pytest.approx((1.125 + 0.125 + 0.875 + 1.875) / 4),
        "eval_accuracy": 0.25,
    }


def test_the_former_api_waits_in_simulated_time(app, tmp_path):
    change = {"server.py": ("fraction_fit=1.0", "fraction_fit=1.0, min_available_clients=9")}
    began = time.perf_counter()
    with pytest.raises(StalledError, match="nobody else can come"):
        run(app("legacy", change), 4, tmp_path)
    assert time.perf_counter() - began < 10


def test_a_metric_may_be_called_like_a_column_of_the_record(app, tmp_path):
    change = {"server.py": ('"accuracy": 0.5}', '"accuracy": 0.5, "round": server_round, "time_s": 7.5}')}
    result = run(app("plain", change), 2, tmp_path, "num-server-rounds=1")
    assert result.summary["metrics"]["app_round"] == 1.0
    assert result.summary["metrics"]["app_time_s"] == 7.5


def test_a_servers_sleep_is_simulated(app, tmp_path):
    change = {
        "server.py": (
            "    config = context.run_config\n",
            "    import time\n    time.sleep(3600)\n    config = context.run_config\n",
        )
    }
    began = time.perf_counter()
    result = run(app("plain", change), 2, tmp_path, "num-server-rounds=1")
    assert result.summary["sim_time_s"] > 3600
    assert time.perf_counter() - began < 10


ASYNC = """
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(3)
    weights, waiting, heard = np.zeros(4, dtype=np.float32), [], []

    def ask(nodes):
        arrays = ArrayRecord({"w": Array(weights)})
        content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1 + len(heard)})})
        return list(grid.push_messages([Message(content, node, "train") for node in nodes]))

    waiting = ask(grid.get_node_ids())
    while len(heard) < 9:
        replies = list(grid.pull_messages(waiting))
        for reply in replies:
            waiting.remove(reply.metadata.reply_to_message_id)
            heard.append(reply.metadata.src_node_id)
            weights = reply.content["arrays"]["w"].numpy()
            waiting += ask([heard[-1]])
        if not replies:
            time.sleep(0.1)
    assert heard[:3] == [0, 1, 2], heard
"""


def test_an_asynchronous_server(app, tmp_path):
    """Clients 0, 1 and 2 take 20, 21 and 22 ms for an answer, and the server looks every 100 ms."""
    folder = app("plain")
    (folder / "plain_app" / "server.py").write_text(ASYNC)
    result = run(folder, 3, tmp_path)
    assert result.summary["sim_time_s"] == pytest.approx(0.3)
    assert result.summary["rounds"] == 10
    assert read(result.path, "rounds")["clients"][-1] == 9


def test_the_world_ends_the_run(app, tmp_path):
    result = run(app("plain"), 4, tmp_path, "num-server-rounds=1000", stop__sim_time_s=0.5)
    assert result.summary["sim_time_s"] == 0.5
    assert 10 < result.summary["rounds"] < 20
    assert "w" in result.weights()


def test_a_report_is_written(app, tmp_path):
    result = run(app("plain"), 3, tmp_path, record__report=True)
    page = (result.path / "report.html").read_text()
    assert "plain" in page
    assert "unfinished" not in page
    assert "Timing only" not in page
    assert set(KEYS) <= set(result.summary)
    assert json.loads((result.path / "summary.json").read_text())["weights_hash"]


def test_nothing_of_flower_stays_changed(app, tmp_path):
    before = Strategy.start, time.sleep
    run(app("plain"), 2, tmp_path, "num-server-rounds=1")
    assert (Strategy.start, time.sleep) == before


# what goes wrong


def test_a_client_that_raises_says_where(app, tmp_path):
    change = {"client.py": ("    target = float", RAISES)}
    with pytest.raises(RunError, match="ClientApp raised ZeroDivisionError: no data") as caught:
        run(app("plain", change), 2, tmp_path, "fraction-train=1.0", app__on_failure="stop")
    error = caught.value
    assert (error.node, error.round, error.sim_time_s, error.phase) == (1, 1, 0.005, "train")
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert "what was recorded is kept in" in error.__notes__[0]


def test_a_client_that_raises_sends_an_error_reply(app, tmp_path):
    change = {"client.py": ("    target = float", RAISES)}
    result = run(app("plain", change), 3, tmp_path, "fraction-train=1.0 num-server-rounds=1")
    assert result.summary["error_replies"] == 1
    expected = 0.1 * (2 * 12) / 22
    np.testing.assert_allclose(result.weights()["w"], np.full(4, expected), rtol=1e-6)


def test_a_reply_without_arrays_stops_the_run(app, tmp_path):
    change = {"client.py": ('RecordDict({"arrays": arrays, "metrics"', 'RecordDict({"metrics"')}
    with pytest.raises(RunError, match=r"ServerApp raised .*exactly one ArrayRecord"):
        run(app("plain", change), 2, tmp_path, "fraction-train=1.0")


def test_a_misshaped_reply_stops_the_run(app, tmp_path):
    change = {"client.py": ("Array(weights)", 'Array(weights[: 2 + context.node_config["partition-id"]])')}
    with pytest.raises(RunError, match=r"ServerApp raised ValueError.*broadcast") as caught:
        run(app("plain", change), 2, tmp_path, "fraction-train=1.0")
    assert "client 1 has replied with the arrays {'arrays.w': (3,)}, others with" in str(caught.value)


def test_a_reply_with_an_array_too_few_says_whose(app, tmp_path):
    change = {
        "client.py": (
            'ArrayRecord({"w": Array(weights)})',
            'ArrayRecord({"w": Array(weights)} if context.node_id else {})',
        )
    }
    with pytest.raises(
        RunError, match=r"client 0 has replied with the arrays {}, others with {'arrays.w': \(4,\)}"
    ):
        run(app("plain", change), 3, tmp_path, "fraction-train=1.0")


def test_a_client_that_returns_no_message(app, tmp_path):
    change = {"client.py": ("    arrays = ArrayRecord", "    return None\n    arrays = ArrayRecord")}
    with pytest.raises(RunError, match="must return a Message, not NoneType"):
        run(app("plain", change), 2, tmp_path, "fraction-train=1.0", app__on_failure="stop")


def test_more_nodes_than_there_are(app, tmp_path):
    change = {"server.py": ("FedAvg(", "FedAvg(min_available_nodes=9, ")}
    with pytest.raises(StalledError, match="nobody else can come: 2 are online"):
        run(app("plain", change), 2, tmp_path)


def test_a_module_that_is_not_there(app, tmp_path):
    change = {"pyproject.toml": ("plain_app.client", "plain_app.clint")}
    with pytest.raises(ConfigError, match=r"plain_app.clint:app: cannot be imported"):
        run(app("plain", change), 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_attribute_that_is_something_else(app, tmp_path):
    change = {"pyproject.toml": ("plain_app.client:app", "plain_app.client:train")}
    with pytest.raises(ConfigError, match=r"must be a flwr\.clientapp\.ClientApp; there is a function"):
        run(app("plain", change), 2, tmp_path)


@pytest.mark.parametrize("key", ["data.name", "model", "strategy", "stop.rounds", "evaluate.every"])
def test_a_world_chooses_nothing_that_the_app_brings(key, app, tmp_path):
    with pytest.raises(ConfigError, match="an app brings this itself"):
        run(app("plain"), 2, tmp_path, **{key: 1})


def test_a_world_file_with_a_strategy_names_the_line(app, tmp_path):
    world = tmp_path / "world.yaml"
    world.write_text("seed: 1\nstrategy: fedavg\nnetwork: {latency_ms: 1}\n")
    with pytest.raises(ConfigError, match=r"world.yaml:2: strategy: an app brings this itself"):
        run_app(app("plain"), nodes=2, world=world, out=tmp_path)


def test_a_world_without_clients(app, tmp_path):
    with pytest.raises(ConfigError, match="--nodes: 0: must be at least 1"):
        run(app("plain"), 0, tmp_path)


# helpers


def test_examples_are_found_under_both_names():
    assert said(RecordDict({"m": MetricRecord({"num_examples": 7})})) == 7
    assert said(RecordDict({"c": ConfigRecord({"num-examples": 7}), "a": ArrayRecord()})) is None
