"""A thread for each client, which puts what it gets into a queue; and an event loop that has all of them evaluate."""

import asyncio
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    weights, told = np.zeros(4, dtype=np.float32), {"errors": 0, "code_5": 0}
    nodes = sorted(grid.get_node_ids())
    with ThreadPoolExecutor(3) as pool:
        for number in range(1, context.run_config["num-server-rounds"] + 1):
            waiting = queue.Queue()
            collector = Collector(waiting)
            collector.start()
            list(pool.map(partial(fetch, waiting, grid, weights, number), nodes))
            waiting.put(None)
            collector.join()
            note(collector.errors, told)
            weights = sum(arrays for _, arrays in sorted(collector.found.items())) / np.float32(
                max(1, len(collector.found))
            )
            asyncio.run(score(grid, nodes, weights, number, told))
    start = ArrayRecord({"w": Array(weights)})
    FedAvg().start(grid, start, num_rounds=0, evaluate_fn=lambda *_: MetricRecord(told))


def fetch(waiting, grid, weights, number, node):
    waiting.put(ask(grid, node, "train", weights, number))


class Collector(threading.Thread):
    def __init__(self, waiting):
        super().__init__()
        self.waiting, self.found, self.errors = waiting, {}, []

    def run(self):
        while (reply := self.waiting.get()) is not None:
            if reply.has_error():
                self.errors.append(reply.error.code)
            else:
                self.found[reply.metadata.src_node_id] = reply.content["arrays"]["w"].numpy()


async def score(grid, nodes, weights, number, told):
    asked = [asyncio.to_thread(ask, grid, node, "evaluate", weights, number) for node in nodes]
    note([one.error.code for one in await asyncio.gather(*asked) if one.has_error()], told)


def note(codes, told):
    for code in codes:
        told["errors"] += 1
        told[f"code_{code}"] += 1


def ask(grid, node, kind, weights, number):
    config = ConfigRecord({"server-round": number})
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "config": config})
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    return reply
