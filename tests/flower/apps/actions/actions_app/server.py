"""A server of its own: it pushes and pulls messages of two kinds, and asks at the end who has done what."""

import time

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    weights, told = np.zeros(4, dtype=np.float32), {"errors": 0, "code_3": 0, "code_5": 0}
    nodes = sorted(grid.get_node_ids())
    for number in range(1, context.run_config["num-server-rounds"] + 1):
        half = len(nodes) // 2
        sent = ask(nodes[:half], "train.anchor", weights, number, 30.0)
        sent += ask(nodes[half:], "train.miner", weights, number, context.run_config["ttl"])
        replies = collect(grid, sent, told)
        if replies:
            arrays = [one.content["arrays"]["w"].numpy() for one in replies]
            weights = (sum(arrays) / np.float32(len(arrays))).astype(np.float32)
    for one in collect(grid, [Message(RecordDict(), node, "query.past") for node in nodes], told):
        for kind, count in one.content["counts"].items():
            told[kind] = told.get(kind, 0) + count
    start = ArrayRecord({"w": Array(weights)})
    FedAvg().start(grid, start, num_rounds=0, evaluate_fn=lambda *_: MetricRecord(told))


def ask(nodes, kind, weights, number, ttl):
    config = ConfigRecord(
        {
            "server-round": number,
            "rates": [0.25, 0.75],
            "names": ["a", "b"],
            "key": b"\x00\x01\x02",
            "on": True,
        }
    )
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "config": config})
    return [Message(content, node, kind, ttl=ttl, group_id=str(number)) for node in nodes]


def collect(grid, messages, told):
    """Return the replies in the order of the nodes."""
    waiting, found = set(grid.push_messages(messages)), []
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                told["errors"] += 1
                told[f"code_{reply.error.code}"] += 1
            else:
                found.append(reply)
        time.sleep(0.1)
    return sorted(found, key=lambda one: one.metadata.src_node_id)
