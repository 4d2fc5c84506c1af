"""A server's threads: one runs at a time, time passes while all of them wait, and every run is the same."""

from __future__ import annotations

import sys
import threading
import time

import numpy as np
import pytest

from fedsim.errors import RunError
from fedsim.flower import run_app

WORLD = {
    "network": {"latency_ms": 5},
    "devices": {"seconds_per_sample": 0.001},
    "record": {"report": False},
}

HEAD = """
import asyncio
import concurrent.futures
import queue
import random
import threading
import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def ask(grid, node, weights=None):
    weights = np.zeros(4, dtype=np.float32) if weights is None else weights
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "config": ConfigRecord({"server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, node, "train")])
    return reply.content["arrays"]["w"].numpy()


def told(*numbers):
    # what is told ends up in the record, by way of a strategy without rounds
    FedAvg().start(GRID, ArrayRecord({"w": Array(np.array(numbers, dtype=np.float64))}), num_rounds=0)


@app.main()
def main(grid, context):
    global GRID
    GRID = grid
    begun = time.monotonic()
    now = lambda: round(time.monotonic() - begun, 6)
"""


@pytest.fixture
def server(app, tmp_path):
    """Run a server whose main has these lines, and return its result and what it has told."""
    folder = app("plain")

    def run(lines, nodes=3, **world):
        text = HEAD + "".join(f"    {line}\n" for line in lines.strip("\n").split("\n"))
        (folder / "plain_app" / "server.py").write_text(text)
        result = run_app(folder, nodes=nodes, world=WORLD, overrides=world, out=tmp_path / "runs")
        return result, result.weights()["w"].tolist() if result.summary["weights_hash"] else None

    return run


# time: client k has 10 + k examples of 1 ms and two latencies of 5 ms, so it replies after 20 + k ms

POOL = """
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    futures = [pool.submit(lambda node: (ask(grid, node), now())[1], node) for node in range(3)]
    told(*[one.result() for one in futures], now())
"""
AS_COMPLETED = """
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    futures = [pool.submit(lambda node: (ask(grid, node), now())[1], node) for node in (2, 1, 0)]
    told(*[one.result() for one in concurrent.futures.as_completed(futures)], now())
"""
WAIT_FIRST = """
pool = concurrent.futures.ThreadPoolExecutor(3)
futures = [pool.submit(ask, grid, node) for node in (2, 1, 0)]
done, rest = concurrent.futures.wait(futures, return_when="FIRST_COMPLETED")
told(len(done), len(rest), futures.index(done.pop()), now())
"""
WAIT_TIMEOUT = """
pool = concurrent.futures.ThreadPoolExecutor(3)
futures = [pool.submit(ask, grid, node) for node in (2, 1, 0)]
done, rest = concurrent.futures.wait(futures, timeout=0.0215)
told(len(done), len(rest), now())
"""
JOIN = """
found = {}
def work(node):
    ask(grid, node)
    found[node] = now()
threads = [threading.Thread(target=work, args=(node,)) for node in range(3)]
for one in threads:
    one.start()
for one in threads:
    one.join()
told(*found.values(), now())
"""
QUEUE = """
waiting, found = queue.Queue(2), []
def produce():
    for node in (2, 0, 1):
        ask(grid, node)
        waiting.put(now())
    waiting.put(None)
threading.Thread(target=produce).start()
while (one := waiting.get()) is not None:
    found.append(one)
told(*found, now())
"""
QUEUE_TIMEOUT = """
waiting, empty = queue.Queue(), 0
threading.Timer(2.5, waiting.put, [7]).start()
while True:
    try:
        one = waiting.get(timeout=1.0)
        break
    except queue.Empty:
        empty += 1
told(one, empty, now())
"""
EVENT = """
ready = threading.Event()
def late():
    time.sleep(3)
    ready.set()
threading.Thread(target=late, daemon=True).start()
told(ready.wait(1.0), now(), ready.wait(), now())
"""
ASYNC = """
async def both():
    found = await asyncio.gather(*[asyncio.to_thread(lambda n=node: (ask(grid, n), now())[1]) for node in range(3)])
    await asyncio.sleep(1.5)
    return found
told(*asyncio.run(both()), now())
"""
ASYNC_TIMEOUT = """
async def late():
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 2.0)
    except TimeoutError:
        return now()
told(asyncio.run(late()))
"""
POLL = """
thread = threading.Thread(target=ask, args=(grid, 0))
thread.start()
polls = 0
while thread.is_alive():
    time.sleep(0.008)
    polls += 1
told(polls, now())
"""
LOCK = """
lock, found = threading.Lock(), []
def work(node):
    with lock:
        ask(grid, node)
        found.append(now())
threads = [threading.Thread(target=work, args=(node,)) for node in range(3)]
[one.start() for one in threads]
[one.join() for one in threads]
told(*found)
"""
PUSHED = """
ids, found = [], []
def push():
    for node in range(3):
        content = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(4, dtype=np.float32))})})
        ids.extend(grid.push_messages([Message(content, node, "train")]))
        time.sleep(0.001)
def pull():
    while len(found) < 3:
        found.extend(one for one in grid.pull_messages(ids) if not one.has_error())
        time.sleep(0.01)
threads = [threading.Thread(target=one) for one in (push, pull)]
[one.start() for one in threads]
[one.join() for one in threads]
told(len(found), now())
"""


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (POOL, [0.02, 0.021, 0.022, 0.022]),
        (AS_COMPLETED, [0.02, 0.021, 0.022, 0.022]),
        (WAIT_FIRST, [1, 2, 2, 0.02]),
        (WAIT_TIMEOUT, [2, 1, 0.0215]),
        (JOIN, [0.02, 0.021, 0.022, 0.022]),
        (QUEUE, [0.022, 0.042, 0.063, 0.063]),
        (QUEUE_TIMEOUT, [7, 2, 2.5]),
        (EVENT, [0, 1.0, 1, 3.0]),
        (ASYNC, [0.02, 0.021, 0.022, 1.522]),
        (ASYNC_TIMEOUT, [2.0]),
        (POLL, [3, 0.024]),
        (LOCK, [0.02, 0.041, 0.063]),
        (PUSHED, [3, 0.04]),
    ],
)
def test_whatever_threads_wait_with_is_simulated_time(lines, expected, server):
    assert server(lines)[1] == expected


# every run is the same

RACE = """
total, lock, order = np.zeros(4), threading.Lock(), queue.Queue()
def work(node):
    for turn in range(3):
        weights = ask(grid, node, np.float32(random.random()) * np.ones(4, dtype=np.float32))
        np.random.normal()
        with lock:
            global TOTAL
            TOTAL = 0.9 * TOTAL + weights
        order.put(node)
        time.sleep(random.choice([0.0, 0.001, 0.01]))
global TOTAL
TOTAL = np.zeros(4)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    done = list(concurrent.futures.as_completed([pool.submit(work, node) for node in range(8)]))
    [one.result() for one in done]
told(*TOTAL, *order.queue, random.random(), np.random.normal())
"""


@pytest.fixture
def restless():
    """Let Python change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_twenty_runs_of_threads_that_race_are_equal(restless, server):
    hashes = {server(RACE, nodes=8)[0].summary["run_hash"] for _ in range(20)}
    assert len(hashes) == 1
    assert server(RACE, nodes=8, seed=2)[0].summary["run_hash"] not in hashes


LEGACY_THREADS = '''
import concurrent.futures

import numpy as np
from flwr.app import Message
from flwr.common import ndarrays_to_parameters
from flwr.compat.common import recorddict_compat as convert
from flwr.server import Server, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


class Threaded(Server):
    """Asks each client in a thread of its own, as servers of the former API do."""

    def fit_round(self, server_round, timeout):
        asked = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        with concurrent.futures.ThreadPoolExecutor(self.max_workers) as pool:
            futures = [pool.submit(proxy.fit, ins, timeout, server_round) for proxy, ins in asked]
            results = [(proxy, one.result()) for (proxy, _), one in zip(asked, futures)]
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, [])
        return parameters, metrics, (results, [])


def server_fn(context):
    start = ndarrays_to_parameters([np.zeros(4, dtype=np.float32)])
    strategy = FedAvg(initial_parameters=start, fraction_fit=1.0, fraction_evaluate=1.0)
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    if context.run_config.get("plain"):
        return ServerAppComponents(strategy=strategy, config=config)
    server = Threaded(client_manager=SimpleClientManager(), strategy=strategy)
    return ServerAppComponents(server=server, config=config)


app = ServerApp(server_fn=server_fn)
'''


def test_a_thread_for_each_client_gives_the_same_as_one_for_all(app, restless, tmp_path):
    results = [run_app(app("legacy"), nodes=5, world=WORLD, out=tmp_path / "runs")]
    (tmp_path / "legacy" / "legacy_app" / "server.py").write_text(LEGACY_THREADS)
    results.append(run_app(tmp_path / "legacy", nodes=5, world=WORLD, out=tmp_path / "runs"))
    for key in ("weights_hash", "sim_time_s", "rounds", "loss"):
        assert results[0].summary[key] == results[1].summary[key], key
    np.testing.assert_array_equal(*[next(iter(result.weights().values())) for result in results])


# how threads end

LEFT = """
def beat():
    while True:
        time.sleep(1)
threading.Thread(target=beat).start()
concurrent.futures.ThreadPoolExecutor(2).submit(ask, grid, 0)
kept = queue.Queue()
threading.Thread(target=kept.get).start()
threading.Thread(target=told, args=(5, now())).start()
"""


def test_what_is_left_is_ended_and_may_do_first_what_takes_no_time(server):
    before = set(threading.enumerate())
    began = time.monotonic()
    assert server(LEFT)[1] == [5.0, 0.0]
    assert time.monotonic() - began < 5
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


def test_the_worlds_end_comes_through_a_pool(server):
    lines = """
with concurrent.futures.ThreadPoolExecutor(3) as pool:
    while True:
        try:
            list(pool.map(lambda node: ask(grid, node), range(3)))
        except Exception:
            pass
"""
    result, _ = server(lines, **{"stop.sim_time_s": 1.0})
    assert result.summary["sim_time_s"] == 1.0


def test_what_a_thread_raises_comes_with_its_future(server):
    lines = "concurrent.futures.ThreadPoolExecutor(1).submit(lambda: 1 / 0).result()"
    with pytest.raises(RunError, match="ServerApp raised ZeroDivisionError"):
        server(lines)


def test_a_client_that_stops_the_run_stops_all_threads(server, tmp_path):
    lines = """
def work(node):
    while True:
        ask(grid, node % 3)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(work, range(4)))
"""
    client = tmp_path / "plain" / "plain_app" / "client.py"
    broken = "    1 / (2 - context.node_id)\n    target = float"
    client.write_text(client.read_text().replace("    target = float", broken, 1))
    with pytest.raises(RunError, match="ZeroDivisionError") as caught:
        server(lines, **{"app.on_failure": "stop"})
    assert caught.value.node == 2
