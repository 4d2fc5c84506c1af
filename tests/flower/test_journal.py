"""What an app's record says of its clients: means over all replies of a round, and whose numbers they are."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fedsim.errors import RunError
from fedsim.flower import run_app
from fedsim.record.store import read

CLIENT = """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def answer(message, node):
    kind = message.metadata.message_type
    metrics = MetricRecord({numbers})
    records = {{"arrays": message.content["arrays"]}} if kind.startswith("train") else {{}}
    return Message(RecordDict({{**records, "metrics": metrics}}), reply_to=message)


app.train()(lambda message, context: answer(message, context.node_id))
app.train("second")(lambda message, context: answer(message, context.node_id))
app.evaluate()(lambda message, context: answer(message, context.node_id))
app.evaluate("holdout")(lambda message, context: answer(message, context.node_id))
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
w = ArrayRecord({{"w": Array(np.zeros(4, dtype=np.float32))}})


def ask(kind, nodes, round=1):
    content = RecordDict({{"arrays": w, "config": ConfigRecord({{"server-round": round}})}})
    return [Message(content, node, kind) for node in nodes]


@app.main()
def main(grid, context):
{lines}
"""

FEDAVG = "FedAvg({0}).start(grid, w, num_rounds=2, evaluate_fn={1})"


@pytest.fixture
def lab(app, tmp_path):
    """Run an app whose clients report ``numbers`` (an expression of node and kind) to a server of a few lines."""

    def run(numbers, lines, nodes=3):
        folder = app("plain")
        text = "\n".join(f"    {line}" for line in lines.strip().splitlines())
        (folder / "plain_app" / "client.py").write_text(CLIENT.format(numbers=numbers))
        (folder / "plain_app" / "server.py").write_text(SERVER.format(lines=text))
        calm = {"network.latency_ms": 5, "record.report": False}
        return run_app(folder, nodes=nodes, overrides=calm, out=tmp_path / "runs")

    return run


def numbers_of(counts, values, name="acc"):
    return f'{{"num-examples": {counts}[node], "{name}": {values}[node]}}'


# weights


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_without_examples_weighs_nothing(kind, lab):
    """(900 x 0.9 + 100 x 0.5) / 1000 = 0.86, which Flower's own aggregate says as well."""
    lines = f"""
replies = grid.send_and_receive(ask("{kind}", range(3)))
contents = [reply.content for reply in replies]
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
theirs = aggregate_metricrecords(contents, "num-examples")["acc"]
assert abs(theirs - 0.86) < 1e-12, theirs
"""
    result = lab(numbers_of([0, 900, 100], [0.0, 0.9, 0.5]), lines)
    name = {"train": "train_acc", "evaluate": "eval_acc"}[kind]
    assert result.summary["metrics"] == {name: pytest.approx(0.86, rel=1e-12)}
    assert result.metrics()[name].tolist() == [pytest.approx(0.86, rel=1e-12)]


def test_what_a_client_without_examples_reports_may_be_no_number(lab):
    """A mean over no samples is NaN."""
    result = lab(
        numbers_of([0, 1, 3], "[float('nan'), 2.0, 6.0]"), 'grid.send_and_receive(ask("evaluate", range(3)))'
    )
    assert result.summary["metrics"] == {"eval_acc": 5.0}


GROUPS = {
    "at once": "grid.send_and_receive(messages)",
    "groups": "grid.send_and_receive(messages[:2])\ngrid.send_and_receive(messages[2:])",
    "one by one": "for message in messages:\n    grid.send_and_receive([message])",
    "pull": """
ids = grid.push_messages(messages)
while ids:
    for reply in grid.pull_messages(ids):
        ids.remove(reply.metadata.reply_to_message_id)""",
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("how", GROUPS)
def test_all_replies_of_a_round_make_its_mean_in_whatever_groups_they_come(kind, how, lab):
    """(300 x 0.9 + 600 x 0.5) / 1000 = 0.57, in both rounds; the clients work for 100, 300 and 600 samples."""
    inner = "\n    ".join(GROUPS[how].strip().splitlines())
    lines = f'for round in (1, 2):\n    messages = ask("{kind}", range(3), round)\n    {inner}'
    result = lab(numbers_of([100, 300, 600], [0.0, 0.9, 0.5]), lines)
    found = read(result.path, "metrics")
    assert found["round"].tolist() == [1, 2]
    assert found["value"].tolist() == [pytest.approx(0.57, rel=1e-12)] * 2


def test_a_mean_is_written_when_the_run_breaks(lab, tmp_path):
    lines = 'grid.send_and_receive(ask("evaluate", [0, 1]))\nraise KeyError("later")'
    with pytest.raises(RunError, match="later"):
        lab(numbers_of([1, 3], [0.0, 1.0]), lines)
    (path,) = (tmp_path / "runs").iterdir()
    assert read(path, "metrics")["value"].tolist() == [0.75]


def test_a_round_that_has_no_number_keeps_its_means_apart(lab):
    """What is evaluated before the first round belongs to round 0."""
    lines = 'grid.send_and_receive(ask("evaluate", [0, 1], 0))\ngrid.send_and_receive(ask("evaluate", [1]))'
    found = read(lab(numbers_of([1, 3], [0.0, 1.0]), lines).path, "metrics")
    assert (found["round"].tolist(), found["value"].tolist()) == ([0, 1], [0.75, 1.0])


def test_clients_that_all_have_no_examples_are_named_once(lab, caplog):
    lines = 'for round in (1, 2):\n    grid.send_and_receive(ask("evaluate", range(3), round))'
    result = lab(numbers_of([0, 0, 0], [0.1, 0.2, 0.3]), lines)
    assert result.summary["metrics"] == {}
    (line,) = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    why = "have used 0 examples, so no mean of what they report is recorded"
    assert line == f"round 1, evaluate: clients [0, 1, 2] {why}"


def test_clients_that_do_not_say_count_alike_and_are_named(lab, caplog):
    counts = '{**({"num-examples": 9} if node else {}), "acc": float(node)}'
    assert lab(counts, 'grid.send_and_receive(ask("train", range(3)))').summary["metrics"] == {
        "train_acc": 1.0
    }
    assert "clients [0] do not say num-examples" in caplog.text


def test_an_evaluation_without_any_examples_stops_flowers_strategy_in_one_line(lab):
    counts = '{"num-examples": 0 if kind == "evaluate" else 5, "acc": 0.5}'
    with pytest.raises(RunError) as caught:
        lab(counts, FEDAVG.format("", None))
    told = "clients [0, 1, 2] have replied that they have used 0 examples"
    assert str(caught.value).endswith(f"the ServerApp raised ZeroDivisionError: division by zero; {told}")
    assert caught.value.round == 1


OWN = """
def largest(contents, key):
    return MetricRecord({"acc": max(one["metrics"]["acc"] for one in contents), "seen": len(contents)})
FedAvg(train_metrics_aggr_fn=largest, fraction_evaluate=0.0).start(grid, w, num_rounds=2)
"""


def test_what_a_strategy_aggregates_takes_the_place_of_the_mean(lab):
    result = lab(numbers_of([0, 900, 100], [0.0, 0.9, 0.5]), OWN)
    assert result.summary["metrics"] == {"train_acc": 0.9, "train_seen": 3.0}
    assert read(result.path, "metrics")["round"].tolist() == [1, 1, 2, 2]


def test_lists_are_recorded_number_by_number(lab):
    """(1 x 0.5 + 3 x 0.25) / 4 and (1 x 1 + 3 x 0) / 4."""
    lists = [[0.5, 1.0], [0.25, 0.0]]
    result = lab(numbers_of([1, 3], lists), 'grid.send_and_receive(ask("evaluate", [0, 1]))')
    assert result.summary["metrics"] == {"eval_acc_0": 0.3125, "eval_acc_1": 0.25}


ONE_BY_ONE = """
for _ in range(2):
    for node in range(3):
        grid.send_and_receive([Message(RecordDict({"arrays": w}), node, "train")])
"""


def test_clients_that_are_asked_one_by_one_are_one_round(lab):
    """(300 x 0.9 + 600 x 0.5) / 1000 = 0.57 in both rounds: the second begins with a client that was asked before."""
    found = read(lab(numbers_of([100, 300, 600], [0.0, 0.9, 0.5]), ONE_BY_ONE).path, "metrics")
    assert found["round"].tolist() == [1, 2]
    assert found["value"].tolist() == [pytest.approx(0.57, rel=1e-12)] * 2


def test_another_model_is_another_round(lab):
    lines = """
for node in range(3):
    w = ArrayRecord({"w": Array(np.full(4, float(node)))})
    grid.send_and_receive([Message(RecordDict({"arrays": w}), node, "train")])
"""
    found = read(lab(numbers_of([100, 300, 600], [0.0, 0.9, 0.5]), lines).path, "metrics")
    assert (found["round"].tolist(), found["value"].tolist()) == ([1, 2, 3], [0.0, 0.9, 0.5])


def test_groups_may_be_counted_from_0_on(lab):
    lines = """
for round in range(3):
    grid.send_and_receive([Message(RecordDict({"arrays": w}), 0, "train", group_id=str(round))])
"""
    result = lab(numbers_of([1], [0.5]), lines, nodes=1)
    assert result.summary["rounds"] == 3
    assert read(result.path, "metrics")["round"].tolist() == [1, 2, 3]


CENTRAL = (
    "FedAvg(initial_parameters=start,",
    "FedAvg(evaluate_fn=lambda n, w, c: (2.0 - n, {'rmse': 0.5 * n}), initial_parameters=start,",
)


def test_the_former_apis_own_evaluation_is_recorded(app, tmp_path):
    folder = app("legacy", {"server.py": CENTRAL})
    quiet = {"record.report": False}
    result = run_app(folder, nodes=2, run_config="num-server-rounds=2", overrides=quiet, out=tmp_path)
    found = result.metrics()
    assert found["loss"].tolist() == [2.0, 1.0, 0.0]
    assert found["rmse"].tolist() == [0.0, 0.5, 1.0]


WORKFLOW = """
from flwr.server import LegacyContext
from flwr.server.workflow import DefaultWorkflow

app = ServerApp()


@app.main()
def main(grid, context):
    made = server_fn(context)
    DefaultWorkflow()(grid, LegacyContext(context, config=made.config, strategy=made.strategy))
"""


def test_a_workflow_leaves_its_weights(app, tmp_path):
    """From 0 halfway to the mean of the targets 0 and 1, as with the former API's own server."""
    folder = app("legacy", {"server.py": ("app = ServerApp(server_fn=server_fn)\n", WORKFLOW)})
    quiet = {"record.report": False}
    result = run_app(folder, nodes=2, run_config="num-server-rounds=1", overrides=quiet, out=tmp_path)
    (weights,) = result.weights().values()
    np.testing.assert_allclose(weights, np.full(4, 0.25), rtol=1e-6)
    assert result.summary["rounds"] == 1
