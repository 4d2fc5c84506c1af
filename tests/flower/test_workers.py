"""Processes that share the messages of an app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedsim.errors import RunError
from fedsim.flower import compat, run_app
from fedsim.flower.apps import workers as module
from fedsim.flower.apps.project import importable, read_project
from fedsim.flower.apps.workers import Died, Raised, Task, Unfit, Workers, workers_of

SHARED = Path("/dev/shm")

CLIENT = """
import os, signal, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("sleep")
def sleep(message, context):
    time.sleep(3600)


@app.query("die")
def die(message, context):
    os.kill(os.getpid(), signal.SIGKILL)


@app.query("who")
def who(message, context):
    return Message(RecordDict({"c": ConfigRecord({"pid": os.getpid()})}), reply_to=message)


@app.query("odd")
def odd(message, context):
    reply = Message(RecordDict({"c": ConfigRecord({})}), reply_to=message)
    reply.content["c"].__dict__["_data"]["odd"] = (one for one in ())
    return reply
"""

PIDS = """
import os as _os, pathlib as _pathlib, time as _time
PIDS = _pathlib.Path(__file__).with_name("pids")
with PIDS.open("a") as _file:
    _file.write(f"import {_os.getpid()}\\n")


def here():
    end = _time.monotonic() + 60
    while len(PIDS.read_text().split("import")) < 3 and _time.monotonic() < end:
        _time.sleep(0.01)
    _time.sleep(0.05)
    with PIDS.open("a") as file:
        file.write(f"visit {_os.getpid()}\\n")


@app.train()"""


@pytest.fixture
def place(tmp_path):
    """Let a ClientApp be imported, and messages to it be made."""
    (tmp_path / "talk.py").write_text(CLIENT)
    with importable(tmp_path), compat.session(0, 99, lambda _: None):
        yield tmp_path


@pytest.fixture
def make():
    made = []

    def workers(*given, **more):
        made.append(Workers(*given, **more))
        assert made[-1].is_open(lambda: 0) is not made[-1].shares
        return made[-1]

    yield workers
    for one in made:
        one.close()


def task(node, kind, round=-1):
    message = Message(RecordDict(), node, f"query.{kind}")
    compat.name_message(message, str(node), 99)
    return Task(node, round, message, compat.make_context(node, {}, {}), 5)


def never(*_):
    raise AssertionError("it was done in this process")


def ready(workers):
    while workers.processes and not workers.processes[-1].ready:
        workers._hear(*workers._news.get())


def test_who_a_dead_process_was_at_work_for(place, make):
    """Whoever is waited for; and asking for the end of a process takes no simulated time."""
    workers = make(2, "talk:app", 0)
    sleeping, dead = task(0, "sleep", 3), task(1, "die", 4)
    paused = []
    with compat.slow_time(paused.append, lambda: True):  # as in a run of an app
        workers.submit(sleeping)
        workers.submit(dead)
        with pytest.raises(Died) as caught:
            workers.fetch(sleeping, never)
    assert caught.value.task is dead
    assert caught.value.how == "killed by SIGKILL"
    assert not paused


@pytest.mark.slow
def test_nothing_is_left_in_shared_memory(place, make):
    before = {path.name for path in SHARED.glob("fedsim-*")}
    workers = make(1, "talk:app", 0)
    ready(workers)
    assert {path.name for path in SHARED.glob("fedsim-*")} <= before  # though it is in use
    asked = task(0, "who")
    workers.submit(asked)
    found = workers.fetch(asked, never).content["c"]["pid"]
    assert found != os.getpid()


@pytest.mark.slow
def test_this_process_helps_where_it_shares(place, make, monkeypatch):
    """The other one sleeps for an hour over the first message; so the rest is done here, the last one first."""
    monkeypatch.setattr(module, "LATE_S", 0.0)
    monkeypatch.setattr(module, "PIECE_S", 0.0)
    workers, here = make(1, "talk:app", 0, shares=True), []
    ready(workers)
    tasks = [task(node, "sleep" if node == 0 else "who") for node in range(4)]
    for one in tasks:
        workers.submit(one)

    def do(message, *_):
        here.append(message.metadata.dst_node_id)
        return Raised(ValueError("here"))

    assert isinstance(workers.fetch(tasks[2], do), Raised)
    assert here[-1] == 2 or len(here) < 3
    assert 0 not in here


@pytest.mark.slow
@pytest.mark.parametrize(
    ("app", "text", "kind", "rule"),
    [
        ("talk:nothing", "", "who", "it cannot be imported there (TypeError: there is a NoneType)"),
        (
            "talk:app",
            "\nif 'pytest' not in __import__('sys').modules: 1 / 0\n",
            "who",
            "it cannot be imported there (ZeroDivisionError: division by zero)",
        ),
        ("talk:app", "", "odd", "a reply cannot be sent (TypeError: cannot pickle 'generator' object)"),
    ],
)
def test_what_cannot_be_done_elsewhere_is_done_here_unless_others_were_asked_for(
    app, text, kind, rule, place, make, monkeypatch, caplog
):
    (place / "talk.py").write_text(CLIENT + text)
    asked = make(1, app, 0)
    first = task(0, kind)
    asked.submit(first)
    with pytest.raises(Unfit) as caught:
        asked.fetch(first, never)
    assert str(caught.value) == rule
    monkeypatch.setattr(module, "LATE_S", 0.0)
    monkeypatch.setattr(module, "PIECE_S", 0.0)
    shared, second, error = make(1, app, 0, shares=True), task(1, kind), ValueError()
    ready(shared)
    shared.submit(second)
    if kind == "odd":  # the other process is to have it, and this one has nothing else to do
        assert second not in shared._pending
    assert shared.fetch(second, lambda *_: Raised(error)) == Raised(error)
    assert shared.given_up
    assert [record.getMessage() for record in caplog.records] == [f"one process runs all ClientApps: {rule}"]


@pytest.mark.slow
def test_a_message_that_cannot_be_sent(place, make, caplog, monkeypatch):
    monkeypatch.setattr(module, "LATE_S", 0.0)
    monkeypatch.setattr(module, "PIECE_S", 0.0)
    shared, odd = make(1, "talk:app", 0, shares=True), task(0, "who")
    odd.context.state.__dict__["open"] = sys.stdout
    ready(shared)
    shared.submit(odd)
    assert shared.fetch(odd, lambda *_: Raised(ValueError())).error.args == ()
    assert "a message cannot be sent (TypeError: cannot pickle" in caplog.text


@pytest.mark.parametrize(
    ("spent", "visits", "late"), [(1.99, 1, False), (2.0, 400, True), (2.0, 401, False), (3.0, 401, True)]
)
def test_others_start_after_two_seconds_unless_messages_are_short(spent, visits, late, monkeypatch):
    """2 s and 5 ms a message: 400 messages in 2 s are just long enough."""
    begun = []
    monkeypatch.setattr(Workers, "_begin", lambda self, size: begun.append(size))
    workers = Workers(1, "talk:app", 0, shares=True)
    workers.spend(spent)
    for _ in range(visits - 1):
        workers.spend(0.0)
    assert not workers.is_open(lambda: 7)
    assert begun == [7] * late


def test_an_app_on_a_gpu_stays_here(monkeypatch, caplog):
    monkeypatch.setattr(module, "on_gpu", lambda: True)
    workers = Workers(1, "talk:app", 0, shares=True)
    workers.spend(5.0)
    assert not workers.is_open(lambda: 0)
    assert workers.given_up
    assert caplog.messages == ["one process runs all ClientApps: it computes on a GPU"]


@pytest.mark.parametrize(
    ("said", "cores", "nodes", "count"),
    [
        ("", "3", 10, 2),
        ("", "3", 2, 1),
        ("", "1", 10, None),
        ("workers = 0", "3", 10, None),
        ("workers = 4", "1", 2, 4),
    ],
)
def test_how_many(said, cores, nodes, count, app, monkeypatch):
    monkeypatch.setenv("FEDSIM_WORKERS", cores)
    with workers_of(read_project(app("plain", fedsim=said)), nodes, 0) as workers:
        assert (workers and workers.count) == count
        assert workers is None or workers.shares is (not said)


def run(folder, out, **more):
    world = {"network.latency_ms": 5, "record.report": False, **more}
    config = "num-server-rounds=3 fraction-train=1.0"
    return run_app(folder, nodes=4, run_config=config, overrides=world, out=out)


@pytest.mark.slow
def test_no_number_depends_on_the_processes(app, tmp_path, monkeypatch):
    """One process, one beside this, two in its place; a client that fails and one that is interrupted in each."""
    monkeypatch.setattr(module, "LATE_S", 0.0)
    monkeypatch.setattr(module, "PIECE_S", 0.0)
    fails = "    here()\n    if context.node_id == 3:\n        raise ValueError(random.random())\n    target = float"
    folder = app("plain", {"client.py": ("    target = float", fails)})
    client = folder / "plain_app" / "client.py"
    client.write_text(client.read_text().replace("\n@app.train()", PIDS, 1))
    faults = [{"name": "crash_recover", "nodes": [0], "at_s": 0.010, "down_s": 0.020}]
    found = []
    for workers in ("0", "1", "2", "null"):
        monkeypatch.setenv("FEDSIM_WORKERS", "2")
        pids = folder / "plain_app" / "pids"
        pids.write_text("import\n" if workers in "01" else "")  # nobody else to wait for
        more = {} if workers == "null" else {"app.workers": int(workers)}
        result = run(folder, tmp_path / "out", faults=faults, **more)
        found.append((result.summary["run_hash"], result.summary["metrics"], result.summary["error_replies"]))
        told = [line.split() for line in pids.read_text().splitlines() if " " in line]
        imports = [pid for what, pid in told if what == "import"]
        assert len(set(imports)) == len(imports)  # once in each
        visitors = {pid for what, pid in told if what == "visit"}
        assert len(visitors) == {"0": 1, "1": 1, "2": 2, "null": 2}[workers]
        assert (str(os.getpid()) in visitors) == (workers in ("0", "null"))
    assert found[0][2] >= 1
    assert all(one == found[0] for one in found)


def test_an_app_that_asks_for_processes_and_cannot_have_them_is_told(app, tmp_path):
    change = {
        "client.py": (
            "app =",
            "import multiprocessing, sys\nif 'pytest' not in sys.modules:\n    1 / 0\napp =",
        )
    }
    folder = app("plain", change, fedsim="workers = 1")
    with pytest.raises(RunError, match=r"app\.workers: 1: other .* \(ZeroDivisionError: .*set it to 0"):
        run(folder, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_nothing_in_shared_memory(place, tmp_path):
    """SIGKILL, while another process is at work."""
    script = tmp_path / "kill_me.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from flwr.app import Message, RecordDict\n"
        "from fedsim.flower import compat\n"
        "from fedsim.flower.apps.workers import Task, Workers\n"
        "with compat.session(0, 99, lambda _: None):\n"
        "    workers = Workers(1, 'talk:app', 0)\n"
        "    workers.is_open(lambda: 0)\n"
        "    while not workers.processes[0].ready:\n"
        "        workers._hear(*workers._news.get())\n"
        "    message = Message(RecordDict(), 0, 'query.sleep')\n"
        "    compat.name_message(message, '1', 99)\n"
        "    task = Task(0, -1, message, compat.make_context(0, {}, {}), 5)\n"
        "    workers.submit(task)\n"
        "    print(workers.processes[0]._process.pid, flush=True)\n"
        "    workers.fetch(task, None)\n"
    )
    before = {path.name for path in SHARED.glob("fedsim-*")}
    process = subprocess.Popen([sys.executable, str(script), str(place)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert {path.name for path in SHARED.glob("fedsim-*")} <= before
    os.kill(worker, signal.SIGKILL)  # it would notice after its hour
