"""What users' apps do unlike others: odd replies, odd rounds, draws at import, errors in other processes."""

from __future__ import annotations

import json
import re
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from typer.testing import CliRunner

import fedsim
from fedsim.cli.app import app as cli
from fedsim.errors import RunError, ValueNeeded
from fedsim.flower import compat, run_app
from fedsim.flower.apps.project import importable
from fedsim.flower.apps.visit import said
from fedsim.flower.apps.workers import Task, Workers
from fedsim.record.store import read

ALL = "fraction-train=1.0 num-server-rounds=1"


def run(folder, out, config=ALL, nodes=2, **world):
    given = {"network.latency_ms": 5, "network.header_bytes": 0, "record.report": False}
    given |= {key.replace("__", "."): value for key, value in world.items()}
    return run_app(folder, nodes=nodes, run_config=config, overrides=given, out=out)


def serve(folder, lines):
    """Give an app another server, which begins with ``w`` and has ``ask(node, **config)`` for a message to train."""
    text = "\n".join(f"    {line}" for line in lines.strip().splitlines())
    (folder / "plain_app" / "server.py").write_text(f"""
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()
w = ArrayRecord({{"w": Array(np.zeros(4, dtype=np.float32))}})


def ask(node, group=None, **config):
    content = RecordDict({{"arrays": w, "config": ConfigRecord(config)}})
    return Message(content, node, "train", group_id=group)


@app.main()
def main(grid, context):
{text}
""")
    return folder


# the number of examples


@pytest.mark.parametrize(("count", "work"), [(12.0, 12), (11.2, 12), (0, 0), (-3, 0)])
def test_examples_need_not_be_whole(count, work, app, tmp_path):
    change = {
        "client.py": (
            '{"num-examples": 10 + context.node_config["partition-id"]',
            f'{{"num-examples": {count}',
        )
    }
    folder = serve(app("plain", change), "assert len(list(grid.send_and_receive([ask(0)]))) == 1")
    assert run(folder, tmp_path).summary["work_samples"] == work


@pytest.mark.parametrize(("count", "shown"), [("np.nan", "nan"), ("np.inf", "inf"), ("[1, 2]", "1, 2")])
def test_examples_that_are_no_number_name_the_client(count, shown, app, tmp_path):
    change = {
        "client.py": (
            '{"num-examples": 10 + context.node_config["partition-id"]',
            f'{{"num-examples": 5 if context.node_id == 0 else {count}',
        )
    }
    with pytest.raises(RunError, match=rf"num-examples must be a finite number, not \[?{shown}") as caught:
        run(app("plain", change), tmp_path, app__on_failure="stop")
    assert (caught.value.node, caught.value.round, caught.value.phase) == (1, 1, "train")


def test_examples_keep_their_fraction_as_weights():
    assert said(RecordDict({"m": MetricRecord({"num-examples": 0.5})})) == 0.5


def test_all_clients_without_examples_are_named(app, tmp_path):
    change = {
        "client.py": ('{"num-examples": 10 + context.node_config["partition-id"]', '{"num-examples": 0')
    }
    told = r"ZeroDivision.*; clients \[0, 1\] have replied that they have used 0 examples"
    with pytest.raises(RunError, match=told):
        run(app("plain", change), tmp_path)


@pytest.mark.parametrize(
    ("nodes", "who"),
    [(1, "client 0 has"), (3, "clients [0, 1, 2] have"), (9, "clients [0, 1, 2] and 6 more have")],
)
def test_all_clients_without_arrays_are_named(nodes, who, app, tmp_path):
    change = {"client.py": ('RecordDict({"arrays": arrays, "metrics"', 'RecordDict({"metrics"')}
    world = {"config": f"{ALL}", "nodes": nodes}
    folder = app(
        "plain", {**change, "server.py": ("FedAvg(", "FedAvg(min_available_nodes=1, min_train_nodes=1, ")}
    )
    with pytest.raises(RunError, match=f"exactly one ArrayRecord.*; {re.escape(who)} replied without arrays"):
        run(folder, tmp_path, **world)


# rounds


def test_messages_sent_one_by_one_are_one_round(app, tmp_path):
    """Clients 0 to 2 work for 10 to 12 ms and 10 ms are latencies."""
    folder = serve(
        app("plain"),
        """
for _ in range(2):
    ids = [id for node in range(3) for id in grid.push_messages([ask(node)])]
    got = []
    while len(got) < 3:
        came = grid.pull_messages(ids)
        ids = [id for id in ids if id not in {reply.metadata.reply_to_message_id for reply in came}]
        got += came
""",
    )
    result = run(folder, tmp_path, nodes=3)
    assert result.summary["rounds"] == 2
    assert read(result.path, "rounds")["time_us"].tolist() == [22_000, 44_000]


def test_a_group_is_one_round_even_if_time_passes(app, tmp_path):
    folder = serve(
        app("plain"),
        """
import time
for group in ("first", "second"):
    ids = []
    for node in range(2):
        ids += grid.push_messages([ask(node, group)])
        time.sleep(0.001)
    while ids:
        replies = grid.pull_messages(ids)
        ids = [id for id in ids if id not in {reply.metadata.reply_to_message_id for reply in replies}]
""",
    )
    assert run(folder, tmp_path).summary["rounds"] == 2


def test_rounds_that_take_no_time_are_counted_by_their_replies(app, tmp_path):
    """Without any delay or work all happens at one moment, and the run has a report nevertheless."""
    change = {
        "client.py": ('{"num-examples": 10 + context.node_config["partition-id"]', '{"num-examples": 0')
    }
    lines = "for _ in range(3):\n    grid.send_and_receive([ask(node) for node in range(2)])"
    result = run(serve(app("plain", change), lines), tmp_path, network__latency_ms=0, record__report=True)
    assert (result.summary["rounds"], result.summary["sim_time_s"]) == (3, 0.0)
    assert "A typical round" not in (result.path / "report.html").read_text()


def test_a_round_may_have_any_name(app, tmp_path):
    folder = serve(app("plain"), 'grid.send_and_receive([ask(0, **{"server-round": "warm-up"})])')
    assert run(folder, tmp_path).summary["rounds"] == 1


def test_the_former_api_names_the_round_of_a_failure(app, tmp_path):
    change = {
        "client.py": ("        return [(w", "        assert parameters[0].sum() == 0\n        return [(w")
    }
    with pytest.raises(RunError, match="ClientApp raised") as caught:
        run(app("legacy", change), tmp_path, "num-server-rounds=3", app__on_failure="stop")
    assert caught.value.round == 2


# the model


def test_weights_are_saved_row_by_row(app, tmp_path):
    change = {
        "client.py": (
            '{"w": Array(weights)}',
            '{"w": Array(np.asfortranarray(weights)), "n": Array(np.array(3.0))}',
        )
    }
    folder = app("plain", change)
    server = folder / "plain_app" / "server.py"
    start = '{"w": Array(np.arange(6.0).reshape(2, 3)), "n": Array(np.array(3.0))}'
    server.write_text(server.read_text().replace('{"w": Array(np.zeros(4, dtype=np.float32))}', start))
    weights = run(folder, tmp_path, nodes=2).weights()
    goal = 11 / 21  # the mean of the targets 0 and 1 with the weights 10 and 11
    np.testing.assert_allclose(weights["w"], np.arange(6.0).reshape(2, 3) * 0.9 + 0.1 * goal)
    assert weights["n"].shape == ()


def test_a_model_that_cannot_be_saved_does_not_cost_the_run(app, tmp_path, caplog):
    folder = serve(
        app("plain"),
        """
words = ArrayRecord({"words": Array(np.array(["one", "two"]))})
FedAvg(fraction_train=0.0, fraction_evaluate=0.0).start(grid, words, num_rounds=1)
""",
    )
    result = run(folder, tmp_path)
    assert len(result.summary["weights_hash"]) == 64
    assert "its model has arrays that cannot be saved" in caplog.text
    with pytest.raises(ValueNeeded, match="cannot be saved"):
        result.weights()


def test_an_app_that_keeps_its_model_to_itself_is_told_so(app, tmp_path):
    result = run(serve(app("plain"), "grid.send_and_receive([ask(0)])"), tmp_path)
    assert result.summary["weights_hash"] is None
    with pytest.raises(ValueNeeded, match=r"only what strategy\.start aggregates is kept here"):
        result.weights()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("grid.send_and_receive([ask(0)])", "Last measurements"),
        ("import time\ntime.sleep(3)", "Neither the app's server nor its clients have reported any numbers"),
    ],
)
def test_the_report_of_an_app_without_an_accuracy_is_no_timing(lines, told, app, tmp_path):
    page = (run(serve(app("plain"), lines), tmp_path, record__report=True).path / "report.html").read_text()
    assert told in page
    assert "unfinished" not in page
    assert "Timing only" not in page


# imports


DRAWS = "NOISE = np.random.rand() + random.random()\napp ="


def test_what_an_import_draws_follows_from_the_seed(app, tmp_path):
    folder = app("plain", {"client.py": ("app =", DRAWS)})
    file = folder / "plain_app" / "client.py"
    file.write_text(file.read_text().replace('numbers["luck"] = random.random()', 'numbers["luck"] = NOISE'))
    lucky = [run(folder, tmp_path / "runs", seed=seed).summary["metrics"]["train_luck"] for seed in (1, 1, 2)]
    assert lucky[0] == lucky[1] != lucky[2]
    with (folder / "pyproject.toml").open("a") as table:
        table.write("\n[tool.fedsim]\nworkers = 1\n")
    assert run(folder, tmp_path / "runs", seed=1).summary["metrics"]["train_luck"] == lucky[0]


def test_a_module_that_the_client_imports_first_has_a_simulated_sleep(app, tmp_path):
    folder = serve(app("plain", {"client.py": ("app =", "from time import sleep\napp =")}), "nap(3600)")
    server = folder / "plain_app" / "server.py"
    server.write_text("from plain_app.client import sleep as nap\n" + server.read_text())
    began = time.perf_counter()
    assert run(folder, tmp_path).summary["sim_time_s"] == 3600
    assert time.perf_counter() - began < 10


# other processes


WORKERS = """
    class Local(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    if context.node_id == 1:
        raise Local("no data", 2)
    if context.node_id == 2:
        raise SystemExit(7)
    target = float"""


@pytest.mark.parametrize(("client", "reason"), [(1, "Local: no data"), (2, "SystemExit: 7")])
def test_what_is_raised_in_a_worker_is_sent_as_text(client, reason, app):
    """An exception may be of a class that exists nowhere else, and one that ends the process says nothing."""
    folder = app("plain", {"client.py": ("    target = float", WORKERS.lstrip("\n"))})
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(4))})})
    with importable(folder), compat.session(0, 99, lambda _: None):
        context = compat.make_context(client, {"partition-id": client, "num-partitions": 3}, {"lr": 0.1})
        task = Task(client, 1, Message(content, client, "train"), context, 5)
        workers = Workers(1, "plain_app.client:app", 0)
        assert workers.is_open(lambda: 0)
        workers.submit(task)
        broken = workers.fetch(task, lambda *_: pytest.fail("it was made in this process"))
        workers.close()
    assert broken.reason == f"the ClientApp raised {reason}"
    assert 'plain_app/client.py", line' in broken.trace


def test_what_a_worker_raises_stops_the_run_with_its_traceback(app, tmp_path):
    change = {"client.py": ("    target = float", WORKERS.lstrip("\n"))}
    with pytest.raises(RunError, match="ClientApp raised Local: no data") as caught:
        run(app("plain", change, fedsim="workers = 1"), tmp_path / "runs", app__on_failure="stop")
    assert caught.value.node == 1
    assert "in a worker process" in str(caught.value.__cause__)
    assert 'raise Local("no data", 2)' in str(caught.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("sys.exit(0)", "the ClientApp raised SystemExit: 0"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "a worker process died before client 1 had answered (killed by SIGKILL)",
        ),
    ],
)
def test_the_end_of_one_client_waits_for_no_other(end, reason, app, tmp_path):
    """Client 0 takes an hour of real time, and client 1 is asked first."""
    ends = f"    if context.node_id == 1:\n        {end}\n    time.sleep(3600)\n    target = float"
    folder = app("plain", {"client.py": ("    target = float", ends)}, fedsim="workers = 2")
    client = folder / "plain_app" / "client.py"
    client.write_text("import os\nimport signal\nimport sys\nimport time\n" + client.read_text())
    serve(folder, "grid.send_and_receive([ask(node, **{'server-round': 4}) for node in (1, 0)])")
    began = time.perf_counter()
    with pytest.raises(RunError) as caught:
        run(folder, tmp_path, app__on_failure="stop")
    error = caught.value
    assert (error.reason, error.node, error.round, error.phase) == (reason, 1, 4, "train")
    assert error.sim_time_s == 0.005
    assert time.perf_counter() - began < 120


@pytest.mark.slow
def test_the_client_that_died_is_named_and_not_the_one_that_was_heard_first(app, tmp_path):
    """Client 0 sleeps, and the server is waiting for it, when client 1 dies."""
    ends = "    if context.node_id == 1:\n        import os\n        os._exit(3)\n    import time\n"
    ends += "    time.sleep(3600)\n    target = float"
    table = 'workers = 2\non_failure = "drop"'
    folder = app("plain", {"client.py": ("    target = float", ends)}, fedsim=table)
    serve(folder, "grid.send_and_receive([ask(node, **{'server-round': 2 + node}) for node in (0, 1)])")
    with pytest.raises(RunError, match=r"died before client 1 had answered \(exit code 3\)") as caught:
        run(folder, tmp_path)
    assert (caught.value.node, caught.value.round) == (1, 3)


def test_a_client_whose_task_was_cancelled_stops_the_run(app, tmp_path):
    """That is no Exception in Python."""
    change = {"client.py": ("    target = float", "    import asyncio\n    raise asyncio.CancelledError")}
    with pytest.raises(RunError, match="the ClientApp raised CancelledError") as caught:
        run(app("plain", change), tmp_path, app__on_failure="stop")
    assert caught.value.round == 1


# the report


def test_a_report_that_fails_does_not_cost_a_run(tmp_path, caplog):
    """A file where the figures should be stands for whatever can go wrong."""
    experiment = {
        "data": {"clients": 2},
        "model": "softmax",
        "strategy": {"name": "fedavg", "fraction_evaluate": 0.0},
        "stop": {"rounds": 1},
    }
    result = fedsim.run(experiment, out=tmp_path, progress=lambda _: _spoil(tmp_path))
    assert json.loads((result.path / "summary.json").read_text()) == result.summary
    assert not (result.path / "report.html").exists()
    (warning,) = [one.getMessage() for one in caplog.records if one.name == "fedsim"]
    assert warning.startswith("the run is done, but its report failed (run: ")
    assert "its figures is a file, not a folder" in warning
    assert f"fedsim report {result.path}" in warning


def test_nor_does_it_cost_the_run_of_an_app(app, tmp_path):
    out = tmp_path / "runs"
    lines = f"import pathlib\n(next(pathlib.Path({str(out)!r}).iterdir()) / 'figures').touch()"
    folder = serve(app("plain"), f"{lines}\ngrid.send_and_receive([ask(0)])")
    done = CliRunner().invoke(
        cli, ["flower", "run", str(folder), "--nodes", "2", "--out", str(out), "--quiet"]
    )
    assert done.exit_code == 0, done.output
    assert "run_hash" in done.output
    (path,) = out.iterdir()
    assert f"run: {path}" in done.output
    assert (path / "summary.json").exists()


def _spoil(out):
    for folder in out.iterdir():
        (folder / "figures").touch()
