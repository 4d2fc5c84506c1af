"""A client whose optimum is its partition's number; its state counts its visits."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    weights = message.content["arrays"]["w"].numpy()
    target = float(context.node_config["partition-id"])
    weights += context.run_config["lr"] * (target - weights)
    visits = context.state.setdefault("visits", MetricRecord({"count": 0}))
    visits["count"] += 1
    numbers = {"num-examples": 10 + context.node_config["partition-id"], "visits": visits["count"]}
    numbers["luck"] = random.random()
    arrays = ArrayRecord({"w": Array(weights)})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(numbers)}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    weights = message.content["arrays"]["w"].numpy()
    target = context.node_config["partition-id"]
    numbers = {"num-examples": 10, "eval_loss": float(np.abs(weights - target).mean())}
    return Message(RecordDict({"metrics": MetricRecord(numbers)}), reply_to=message)
