"""A client for vectors and a client for boosters, which are JSON as XGBoost's own; a tree of it is a mean."""

import json

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod

app = ClientApp()


def mods(message, context, call_next):
    name = context.run_config["mod"]
    chosen = {"fixed": fixedclipping_mod, "adaptive": adaptiveclipping_mod}.get(name)
    return chosen(message, context, call_next) if chosen else call_next(message, context)


@app.train(mods=[mods])
def train(message, context):
    node = 1 + context.node_config["partition-id"]  # no update is zero: Flower divides by its norm
    arrays = message.content["arrays"]
    trained = boosted(arrays, node) if "0" in arrays else pulled(arrays, node)
    metrics = MetricRecord({"num-examples": 10, "train_loss": float(node)})
    return Message(RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 10, "loss": 1.0})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def pulled(arrays, node):
    weights = arrays["w"].numpy()
    return ArrayRecord({"w": Array((weights + 0.5 * (node - weights)).astype(np.float32))})


def boosted(arrays, node):
    booster = json.loads(arrays["0"].numpy().tobytes())
    model = booster["learner"]["gradient_booster"]["model"]
    model["gbtree_model_param"]["num_trees"] = "1"
    model["trees"] = [{"id": 0, "leaf": float(node)}]
    return ArrayRecord([np.frombuffer(json.dumps(booster).encode(), dtype=np.uint8)])
