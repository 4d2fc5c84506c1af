"""A client whose optimum is its partition's number."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    weights = message.content["arrays"]["w"].numpy()
    weights += np.float32(0.5) * (np.float32(context.node_config["partition-id"]) - weights)
    content = {"arrays": ArrayRecord({"w": Array(weights)}), "metrics": MetricRecord({"num-examples": 10})}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    weights = message.content["arrays"]["w"].numpy()
    loss = float(np.abs(weights - context.node_config["partition-id"]).mean())
    metrics = MetricRecord({"num-examples": 10, "loss": loss})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
