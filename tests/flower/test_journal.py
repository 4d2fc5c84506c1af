"""What an app's record says of its clients: means over all replies of a round, and whose numbers they are."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedsim.errors import RunError
from fedsim.flower import run_app
from fedsim.flower.apps.names import Names
from fedsim.flower.apps.replies import Report, means, numbers
from fedsim.record.store import Record, read

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
from fedsim.spec.experiment import Local
from strategies.server.{module} import {name}
more = {{"mu": 0.1}} if "{name}" == "FedProx" else {{}}
{name}(participants=3, local=Local(epochs=1, batch_size=4), **more).start(grid, w, num_rounds=1)
"""


@pytest.mark.parametrize(
    ("module", "name"), [("fedprox", "FedProx"), ("fedavgm", "FedAvgM"), ("fednova", "FedNova")]
)
def test_our_own_strategies_say_so_as_well(module, name, lab):
    with pytest.raises(RunError) as caught:
        lab(numbers_of([0, 0, 0], [0.1, 0.2, 0.3]), OWN.format(module=module, name=name))
    told = "clients [0, 1, 2] have replied that they have used 0 examples, so there is no mean by examples"
    assert caught.value.reason == told
    assert (caught.value.node, caught.value.round, caught.value.phase) == (3, 1, "aggregate")
    assert caught.value.sim_time_s == pytest.approx(0.010, abs=1e-3)


@given(st.permutations(range(5)), st.sets(st.integers(1, 4)))
def test_means_depend_neither_on_order_nor_on_groups(order, cuts):
    reports = [Report(i, [0, 7, 1e-3, 900, 12][i], {"x": [1e9, 0.1, -0.7, 0.3, 1e-9][i]}) for i in range(5)]
    shuffled = [reports[i] for i in order]
    bounds = [0, *sorted(cuts), 5]
    groups = [shuffled[a:b] for a, b in itertools.pairwise(bounds)]
    exact = means(reports)
    assert means(itertools.chain(*groups)) == exact
    weighted = np.average([0.1, -0.7, 0.3, 1e-9], weights=[7, 1e-3, 900, 12])
    assert exact["x"] == pytest.approx(weighted, rel=1e-12)


def test_means_of_what_is_infinite():
    reports = [Report(i, 1, {"a": value, "b": 1e308}) for i, value in enumerate((math.inf, -math.inf))]
    found = means(reports)
    assert math.isnan(found["a"])
    assert found["b"] == math.inf


def test_means_without_examples_count_all_alike():
    assert means(Report(0, None, {"loss": value}) for value in (1.0, 2.0, 6.0)) == {"loss": 3.0}
    assert means([]) == {}


def test_numbers_leave_out_what_is_none():
    record = MetricRecord({"num-examples": 2, "list": [1.0, 2.0], "loss": 1.0})
    former = ConfigRecord({"accuracy": 0.5, "text": "x", "flag": True})
    assert numbers(RecordDict({"m": record, "fitres.metrics": former})) == {"loss": 1.0, "accuracy": 0.5}


# names


def test_the_server_and_its_clients_may_use_one_name(lab):
    """The server's evaluation of rounds 0 to 2 says 0.1 x round, the clients say (1 x 0.2 + 3 x 0.6) / 4."""
    score = 'lambda round, arrays: MetricRecord({"eval_acc": 0.1 * round, "acc": 1.0})'
    result = lab(numbers_of([1, 3], [0.2, 0.6]), FEDAVG.format("", score), nodes=2)
    assert result.summary["metrics"] == {
        "acc": 1.0,
        "train_acc": pytest.approx(0.5),
        "server/eval_acc": pytest.approx(0.2),
        "clients/evaluate/acc": pytest.approx(0.5),
    }
    columns = result.metrics()
    assert "eval_acc" not in columns
    assert columns["server/eval_acc"].tolist() == pytest.approx([0.0, 0.1, 0.2])
    assert columns["clients/evaluate/acc"][1:].tolist() == pytest.approx([0.5, 0.5])


def test_one_client_may_send_a_name_with_and_without_its_prefix(lab):
    result = lab(
        '{"loss": 1.0 + node, "train_loss": 5.0}',
        'for round in (1, 2):\n    grid.send_and_receive(ask("train", [0, 1], round))',
    )
    assert result.summary["metrics"] == {"clients/train/loss": 1.5, "clients/train/train_loss": 5.0}
    assert sorted(set(read(result.path, "metrics")["name"].tolist())) == sorted(result.summary["metrics"])


def test_two_actions_are_two_sources(lab):
    lines = """
grid.send_and_receive(ask("evaluate", [0]))
grid.send_and_receive(ask("evaluate.holdout", [0, 1]))
"""
    found = lab('{"acc": float(len(kind) + node), "only": 1.0}', lines).summary["metrics"]
    assert found["clients/evaluate/acc"] == len("evaluate")
    assert found["clients/evaluate.holdout/acc"] == len("evaluate.holdout") + 0.5
    assert "eval_acc" not in found


def test_nothing_is_renamed_where_nothing_collides(lab):
    score = 'lambda round, arrays: MetricRecord({"acc": 1.0, "loss": 0.5})'
    found = lab(numbers_of([1, 3], [0.2, 0.6]), FEDAVG.format("", score), nodes=2).summary["metrics"]
    assert sorted(found) == ["acc", "eval_acc", "loss", "train_acc"]


NAMES = st.sampled_from(
    ["acc", "eval_acc", "train_acc", "eval_eval_acc", "round", "app_round", "server/acc", "holdout/acc"]
)
WHOSE = st.sampled_from(["server", "clients/train", "clients/evaluate", "clients/evaluate.holdout"])


@given(st.lists(st.tuples(WHOSE, NAMES), max_size=20))
def test_no_two_numbers_ever_share_a_name(given_names):
    called = {}  # what each number is called by now

    def rename(old, new):
        (source,) = [source for source, name in called.items() if name == old]
        called[source] = new

    names = Names(rename)
    for source in given_names:
        called[source] = names.of(*source)
    assert len(set(called.values())) == len(called)


def test_a_metric_that_is_renamed_is_so_everywhere(tmp_path):
    with Record(tmp_path) as record:
        record.metric(1, 0, "a", 1.0)
        record.round(1, 0, 0, 0, 0, 0, 0, 0)
        record.metric(2, 0, "a", 2.0)
        record.metric(2, 0, "b", 3.0)
        record.rename("a", "c")
        record.metric(3, 0, "a", 4.0)
    assert read(tmp_path, "metrics")["name"].tolist() == ["c", "c", "b", "a"]
