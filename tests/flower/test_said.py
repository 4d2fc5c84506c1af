"""What an app says is recorded: its strategy's own numbers, lists, rounds, models of workflows, and its log."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from fedsim.flower import run_app
from fedsim.flower.apps.applog import FILE, kept
from fedsim.flower.apps.replies import scalars
from fedsim.record.store import read
from fedsim.world.clock import Clock

CALM = {"network.latency_ms": 5, "record.report": False}

CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def answer(message, context):
    node = context.node_id
    metrics = MetricRecord({numbers})
    arrays = ArrayRecord(
        {{name: Array(array.numpy() + {step}) for name, array in message.content["arrays"].items()}}
    )
    return Message(RecordDict({{"arrays": arrays, "metrics": metrics}}), reply_to=message)


app.train()(answer)
app.evaluate()(answer)
"""

SERVER = """
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Krum

app = ServerApp()


def model(value):
    return ArrayRecord({{"w": Array(np.full(4, value, dtype=np.float32))}})


def ask(nodes, value=0.0, group="", kind="train", **config):
    content = RecordDict({{"arrays": model(value), "config": ConfigRecord(config)}})
    return [Message(content, node, kind, group_id=group) for node in nodes]


@app.main()
def main(grid, context):
{lines}
"""


@pytest.fixture
def lab(app, tmp_path):
    """Run an app whose clients report ``numbers`` (an expression of node) to a server of a few lines."""

    def run(lines, numbers='{"num-examples": 1, "loss": float(node)}', nodes=3, step="0", **more):
        folder = app("plain")
        text = "\n".join(f"    {line}" for line in lines.strip().splitlines())
        (folder / "plain_app" / "client.py").write_text(CLIENT.format(numbers=numbers, step=step))
        (folder / "plain_app" / "server.py").write_text(SERVER.format(lines=text))
        return run_app(folder, nodes=nodes, overrides=CALM, out=tmp_path / "runs", **more)

    return run


def recorded(result, name):
    """Return the values of a metric by round."""
    table = read(result.path, "metrics")
    rows = zip(table["name"], table["round"], table["value"], strict=True)
    return {int(round): float(value) for given, round, value in rows if given == name}


# the strategy's own numbers


def test_krum_speaks_for_the_client_that_it_has_chosen(lab):
    """Its two nearest are 0.1 and 0.2 from client 0, which has a loss of 7; the mean is 17 / 5 = 3.4."""
    result = lab(
        "Krum(num_malicious_nodes=1, fraction_evaluate=0).start(grid, model(0), num_rounds=1)",
        '{"num-examples": 1, "loss": float(node or 7)}',
        nodes=5,
        step="np.float32([0, 0.1, -0.2, 9, -9][node])",
    )
    assert result.summary["metrics"] == {"train_loss": 7.0}


FORMER = """
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp import ServerApp


def evaluate(server_round, arrays, config):
    return np.float32(arrays[0].mean()), {"accuracy": server_round / 8, "by-class": [0.5, 0.25]}


def largest(results):
    return {"shift": max(metrics["shift"] for _, metrics in results)}


start = ndarrays_to_parameters([np.zeros(4, dtype=np.float32)])
strategy = FedAvg(initial_parameters=start, evaluate_fn=evaluate, fit_metrics_aggregation_fn=largest)
config = ServerConfig(num_rounds=2)
"""
COMPONENTS = """
def server_fn(context):
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
"""
WORKFLOW = """
app = ServerApp()


@app.main()
def main(grid, context):
    DefaultWorkflow()(grid, LegacyContext(context=context, config=config, strategy=strategy))
"""


@pytest.mark.parametrize("how", [COMPONENTS, WORKFLOW])
def test_central_evaluation_of_the_former_api(how, app, tmp_path):
    """Clients go halfway to 0, 1, 2: mean 1 after w = 0, so 0.5, then 0.75; an evaluation is |w - target|."""
    folder = app("legacy")
    (folder / "legacy_app" / "server.py").write_text(FORMER + how)
    result = run_app(folder, nodes=3, overrides=CALM, out=tmp_path / "runs")
    assert recorded(result, "loss") == pytest.approx({0: 0.0, 1: 0.5, 2: 0.75}, rel=1e-6)
    assert recorded(result, "accuracy") == {0: 0.0, 1: 0.125, 2: 0.25}
    assert recorded(result, "by-class_1") == {0: 0.25, 1: 0.25, 2: 0.25}
    assert recorded(result, "train_shift") == {1: 2.0, 2: 2.0}  # the mean is 1
    assert recorded(result, "eval_loss") == pytest.approx({1: 2.5 / 3, 2: 2.25 / 3}, rel=1e-6)
    assert result.summary["rounds"] == 2
    (weights,) = result.weights().values()
    np.testing.assert_allclose(weights, np.full(4, 0.75), rtol=1e-6)


def test_numpys_numbers_are_numbers_and_truth_is_none():
    assert dict(
        scalars({"a": np.float32(0.5), "b": np.int64(2), "c": True, "d": "1", "e": None, "f": b"1"})
    ) == {
        "a": 0.5,
        "b": 2.0,
    }


# rounds


def test_a_client_that_is_asked_again_begins_a_round(lab):
    """Even if the model has not changed."""
    result = lab("for node in (0, 1, 0, 2):\n    grid.send_and_receive(ask([node]))")
    assert recorded(result, "train_loss") == {1: 0.5, 2: 1.0}


def test_messages_without_a_model_begin_a_round_after_every_reply(lab):
    lines = """
for node in range(2):
    grid.send_and_receive([Message(RecordDict({"arrays": ArrayRecord()}), node, "train")])"""
    assert recorded(lab(lines), "train_loss") == {1: 0.0, 2: 1.0}


@pytest.mark.parametrize("name", ["group=str({0} - 1)", '**{{"server-round": {0} - 1}}'])
def test_rounds_that_are_counted_from_0_are_recorded_from_1(name, lab):
    given = name.format("round")
    lines = f"for round in (1, 2, 3):\n    grid.send_and_receive(ask([round - 1], {given}))"
    result = lab(lines)
    assert recorded(result, "train_loss") == {1: 0.0, 2: 1.0, 3: 2.0}
    assert read(result.path, "rounds")["round"].tolist() == [1, 2, 3]


def test_asking_in_round_0_without_training_shifts_nothing(lab):
    lines = """
grid.send_and_receive(ask([0], group="0", kind="evaluate"))
grid.send_and_receive(ask([1], group="1"))"""
    assert recorded(lab(lines), "train_loss") == {1: 1.0}


# the log

TALK = """
import logging
from flwr.common.logger import log
log(logging.INFO, "the accuracy is %s", 0.5)
log(logging.DEBUG, "this is nothing")
logging.getLogger("mine").info("an answer")
logging.getLogger("mine").warning("take care")
"""
LINES = ["INFO flwr: the accuracy is 0.5", "INFO mine: an answer", "WARNING mine: take care"]


def test_what_is_logged_is_in_the_runs_folder_once(lab):
    lines = lab(TALK).path.joinpath("app.log").read_text().splitlines()
    assert [line.removeprefix("t = 0.000000 s ") for line in lines] == LINES


@pytest.mark.parametrize(("verbose", "shown"), [(False, ["care"]), (True, ["news", "care"])])
def test_where_nobody_has_set_up_logging_it_is_shown_as_python_does(
    verbose, shown, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with kept(tmp_path, Clock(), verbose):
        logging.getLogger("mine").info("news")
        logging.getLogger("mine").warning("care")
        logging.getLogger("flwr.of").warning("what Flower's own handler shows")
    assert [line for line in capsys.readouterr().err.splitlines() if "Flower" not in line] == shown
    assert logging.getLogger().handlers == []
    assert len((tmp_path / FILE).read_text().splitlines()) == 3


SECURE = """
DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2))(
    grid, LegacyContext(context=context, config=config, strategy=strategy)
)
"""


def test_the_model_of_secure_aggregation_is_kept(app, tmp_path):
    """Sums are of whole numbers in place of the models, so the average is nearly that without it."""
    change = {"client.py": ("ClientApp(client_fn=client_fn)", "ClientApp(client_fn, mods=[secaggplus_mod])")}
    folder = app("legacy", change)
    client = folder / "legacy_app" / "client.py"
    imports = "from flwr.client.mod import secaggplus_mod\nfrom flwr.clientapp"
    client.write_text(client.read_text().replace("from flwr.clientapp", imports))
    text = (FORMER + WORKFLOW).replace("import DefaultWorkflow", "import DefaultWorkflow, SecAggPlusWorkflow")
    start = text.index("    DefaultWorkflow()(")
    lines = "".join(f"    {line}\n" for line in SECURE.strip().splitlines())
    (folder / "legacy_app" / "server.py").write_text(text[:start] + lines)
    result = run_app(folder, nodes=3, overrides=CALM, out=tmp_path / "runs")
    (weights,) = result.weights().values()
    np.testing.assert_allclose(weights, np.full(4, 0.75), atol=1e-4)
    assert recorded(result, "loss")[2] == pytest.approx(0.75, abs=1e-4)
