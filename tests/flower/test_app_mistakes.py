"""What an app can do wrong gives one line each, and nothing hangs."""

from __future__ import annotations

import time

import pytest

from fedsim.errors import RunError
from fedsim.flower import run_app

WORLD = {
    "network": {"latency_ms": 5},
    "devices": {"seconds_per_sample": 0.001},
    "compute": {"patience_s": 1.0},
    "record": {"report": False},
}
LONGEST_S = 12.0

HEAD = """
import concurrent.futures
import ctypes
import os
import queue
import socket
import threading
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def start():
    return ArrayRecord({"w": Array(np.zeros(4, dtype=np.float32))})


@app.main()
def main(grid, context):
"""
LEARN = "FedAvg().start(grid, start(), num_rounds=1)"

CYCLE = """
def first():
    other.join()
def second():
    one.join()
one, other = threading.Thread(target=first, name="one"), threading.Thread(target=second, name="other")
one.start(); other.start()
one.join()
"""
OWN_POOL = """
pool = concurrent.futures.ThreadPoolExecutor(1)
pool.submit(lambda: pool.submit(int).result()).result()
"""
SOCKET = """
with (both := socket.socketpair())[0], both[1]:
    both[0].recv(1)
"""
PIPE_THREAD = """
thread = threading.Thread(target=os.read, args=(os.pipe()[0], 1))
thread.start()
thread.join()
"""
LOCKS = """
a, b = threading.Lock(), threading.Lock()
def take(one, two):
    with one:
        time.sleep(1)
        with two:
            pass
threads = [threading.Thread(target=take, args=both) for both in ((a, b), (b, a))]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
SERVERS = {
    "pulls nothing for ever": (
        "while True:\n        grid.pull_messages([])",
        "the strategy has asked no client for anything 10001 times in a row",
    ),
    "sends to nobody for ever": (
        "while True:\n        grid.send_and_receive([])",
        "the strategy has asked no client for anything 10001 times in a row",
    ),
    "looks for ever": (
        "while True:\n        grid.get_node_ids()",
        "the ServerApp looks again and again who is online, and nothing will change that",
    ),
    "joins in a circle": (
        CYCLE,
        r"the threads of the ServerApp wait for each other: MainThread for the end of one at .*server.py:\d+; one for "
        r"the end of other at .*server.py:\d+; other for the end of one at .*server.py:\d+",
    ),
    "waits for its own pool": (
        OWN_POOL,
        "the threads of the ServerApp wait for each other: MainThread for a lock",
    ),
    "takes two locks crosswise": (LOCKS, r"t = 1.0\d* s: the threads of the ServerApp wait for each other"),
    "waits for what nobody puts": (
        "queue.Queue().get()",
        r"the ServerApp waits for what nobody can bring about: MainThread for a lock or a queue at .*server.py:\d+",
    ),
    "reads a socket": (
        SOCKET,
        r"nothing has happened for 1 s of real time, at .*server.py:\d+; see compute.pat",
    ),
    "reads a pipe in a thread": (
        PIPE_THREAD,
        "nothing has happened for 1 s of real time, at .*; see comp",
    ),
    "sleeps outside of Python": (
        "ctypes.CDLL(None).sleep(3600)",
        r"nothing has happened for 1 s of real time, at .*server.py:\d+; see compute.patience_s",
    ),
    "goes round for ever": (
        "while True:\n        pass",
        r"nothing has happened for 1 s of real time, at .*server.py:\d+; see compute.patience_s",
    ),
}


def run(app, tmp_path, lines, changes=None, settings=None):
    folder = app("plain", changes)
    text = HEAD + "".join(f"    {line}\n" for line in lines.strip("\n").split("\n"))
    (folder / "plain_app" / "server.py").write_text(text)
    return run_app(folder, nodes=3, world=WORLD, overrides=settings or {}, out=tmp_path / "runs")


def fails(app, tmp_path, reason, *given):
    began = time.monotonic()
    with pytest.raises(RunError, match=reason) as caught:
        run(app, tmp_path, *given)
    assert "\n" not in caught.value.reason
    assert time.monotonic() - began < LONGEST_S


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_does_wrong(name, app, tmp_path):
    lines, reason = SERVERS[name]
    fails(app, tmp_path, reason, lines)


@pytest.mark.parametrize(
    "lines", ["pass", "grid.push_messages([])", "grid.send_and_receive([])", "time.sleep(5)"]
)
def test_a_server_that_asks_nobody_is_done(lines, app, tmp_path):
    summary = run(app, tmp_path, lines).summary
    assert (summary["rounds"], summary["weights_hash"], summary["bytes_down"]) == (0, None, 0)


REPLY = '    return Message(RecordDict({"arrays": arrays'
OTHER = '    return Message(RecordDict({"metrics": MetricRecord'
CLIENTS = {
    "returns nothing": (
        ("    return Message(", "    return None\n    return Message("),
        "must return a Message, not NoneType",
    ),
    "returns a record": (
        (REPLY, "    return RecordDict()\n" + REPLY),
        "must return a Message, not RecordDict",
    ),
    "replies to nobody": (
        (REPLY, "    return Message(RecordDict(), 0, 'train')\n" + REPLY),
        "must reply to its own message: Message",
    ),
    "replies without content": (
        ('RecordDict({"arrays": arrays, "metrics": MetricRecord(numbers)})', "None"),
        "the ClientApp raised",
    ),
    "has no such function": (("@app.train()", "@app.query()"), "the ClientApp raised ValueError: .*train"),
    "replies words": (("Array(weights)", "Array(np.array(['a', 'b', 'c', 'd']))"), "ServerApp raised"),
    "names no examples": (
        ('"num-examples": 10 + context.node_config["partition-id"]', '"n": 1'),
        "num-examples",
    ),
    "replies arrays of another name": (
        ('ArrayRecord({"w"', 'ArrayRecord({f"w{target}"'),
        "All ArrayRecords must have the same keys.*client 1 has replied",
    ),
    "replies arrays of another shape": (
        ("Array(weights)", "Array(weights[int(target):])"),
        "client 1 has replied with the arrays",
    ),
}


WORKER = (
    "import multiprocessing\nassert multiprocessing.parent_process() is None, 'here alone'\napp = ClientApp()"
)


def test_a_client_that_a_worker_cannot_import(app, tmp_path):
    settings = {"app.on_failure": "stop", "app.workers": 1, "compute.patience_s": 60.0}
    reason = "the ClientApp raised AssertionError: here alone"
    fails(app, tmp_path, reason, LEARN, {"client.py": ("app = ClientApp()", WORKER)}, settings)


def test_a_client_whose_arrays_have_another_type_is_none_of_our_business(app, tmp_path):
    """Flower averages them; what comes out has the type of the first."""
    change = ("Array(weights)", "Array(weights.astype(np.float64 if target else np.float32))")
    result = run(app, tmp_path, LEARN, {"client.py": change})
    assert str(result.weights()["w"].dtype) == "float32"


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_that_does_wrong(name, app, tmp_path):
    change, reason = CLIENTS[name]
    fails(app, tmp_path, reason, LEARN, {"client.py": change}, {"app.on_failure": "stop"})
