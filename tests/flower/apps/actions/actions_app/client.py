"""Two ways to train, with mods, a state that lasts, and a question about it."""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, arrays_size_mod, message_size_mod


def signed(message, context, call_next):
    """Change what the client is told, and what it replies."""
    message.content["config"]["rate"] = message.content["config"]["rates"][0]
    reply = call_next(message, context)
    reply.content["metrics"]["signed"] = float(len(message.content["config"]["key"]))
    return reply


app = ClientApp(mods=[message_size_mod])


def learn(message, context, rate):
    weights = message.content["arrays"]["w"].numpy()
    weights += np.float32(rate) * (1 + context.node_config["partition-id"] - weights)
    past = context.state.setdefault("past", ConfigRecord({"kinds": [], "losses": []}))
    past["kinds"] = [*past["kinds"], message.metadata.message_type]
    metrics = MetricRecord({"num-examples": 10, "mean": float(weights.mean())})
    arrays = ArrayRecord({"w": Array(weights)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.train("anchor", mods=[signed, arrays_size_mod])
def anchor(message, context):
    return learn(message, context, message.content["config"]["rate"])


@app.train("miner", mods=[LocalDpMod(10.0, 0.01, 1.0, 0.1)])
def miner(message, context):
    return learn(message, context, context.run_config["model.rates"])


@app.query("past")
def past(message, context):
    kinds = context.state["past"]["kinds"] if "past" in context.state else []
    counts = {kind: kinds.count(kind) for kind in ("train.anchor", "train.miner")}
    return Message(RecordDict({"counts": MetricRecord(counts)}), reply_to=message)
