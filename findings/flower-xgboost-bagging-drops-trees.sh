#!/usr/bin/env bash
# flwr 1.41.0 with xgboost-cpu 3.2.0: FedXgbBagging adds only the first tree of each client's booster to the model
# (the first num_parallel_tree ones) and files it under class 0; only the first reply of round 1 is taken whole.
#
# Seen, four clients, 20 rounds: boosters of three trees each make a model of 82 trees instead of 240. With three
# classes and one tree per class and client, it has 80 trees for class 0 and one for each of the others; its accuracy
# stays at 0.94 from round 3 on, where boosting on the pooled data reaches 0.99.
# Expected: all trees that clients send, each for its own class. The docs of Flower's example xgboost-comprehensive
# say that clients "boost a number of trees" and that the server concatenates them to the global model; the
# quickstart has an option local-epochs and sends the trees of the last local-epochs rounds. XGBoost's tutorial on
# slicing says that the number of trees is num_parallel_tree * num_classes * num_boost_round, and its JSON model has
# the class of each tree in tree_info.
# Why it matters: local-epochs > 1 costs the clients' time and bytes and changes nothing, the order of replies
# decides what is in the model, and federated boosting looks bad on every task with more than two classes.
# Right value: one local round and two classes (or regression) only; otherwise append all trees with their tree_info
# in a strategy of your own, and check len(booster.get_dump()) after each round.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.41.0 xgboost-cpu==3.2.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import json
import logging
from collections import Counter
from importlib.metadata import version

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedXgbBagging
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # what "flwr run" sets
CLIENTS, ROUNDS, SAMPLES = 4, 20, 300
rng = np.random.default_rng(0)
features = rng.normal(size=(CLIENTS, SAMPLES, 3))


class Clients(Grid):
    """A grid with four clients, which boost the model they get and send the new rounds."""

    run = property(lambda self: None)

    def __init__(self, params, labels, local_rounds):
        self.params, self.local_rounds = params | {"nthread": 1, "max_depth": 3}, local_rounds
        self.data = [xgb.DMatrix(x, y) for x, y in zip(features, labels)]

    def set_run(self, run): ...
    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...
    def get_nodes(self): ...

    def get_node_ids(self):
        return list(range(CLIENTS))

    def send_and_receive(self, messages, *, timeout=None):
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            model = message.content["arrays"]["0"].numpy().tobytes()
            start = xgb.Booster(self.params, model_file=bytearray(model)) if model else None
            data = self.data[message.metadata.dst_node_id]
            booster = xgb.train(self.params, data, self.local_rounds, xgb_model=start)
            new = booster[booster.num_boosted_rounds() - self.local_rounds :]
            record = ArrayRecord([np.frombuffer(new.save_raw("json"), dtype=np.uint8)])
            metrics = MetricRecord({"num-examples": SAMPLES})
            yield Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)


def federate(grid):
    strategy, arrays = FedXgbBagging(), ArrayRecord([np.frombuffer(b"", dtype=np.uint8)])
    for server_round in range(1, ROUNDS + 1):
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(server_round, list(grid.send_and_receive(messages)))
    model = arrays["0"].numpy().tobytes()
    classes = Counter(json.loads(model)["learner"]["gradient_booster"]["model"]["tree_info"])
    return xgb.Booster(model_file=bytearray(model)), dict(classes)


def accuracy(booster, grid):
    return np.mean([booster.predict(data) == data.get_label() for data in grid.data])


print("flwr", version("flwr"), "xgboost", xgb.__version__)
labels = (features[:, :, 0] > 0).astype(int)
booster, _ = federate(Clients({"objective": "binary:logistic"}, labels, local_rounds=3))
trees, sent = len(booster.get_dump()), CLIENTS * ROUNDS * 3
print(f"two classes, 3 local rounds: got {trees} trees, expected {sent}")
assert trees == 3 + CLIENTS * ROUNDS - 1, "more than the first tree of a client is kept"

labels = features.argmax(axis=2)
grid = Clients({"objective": "multi:softmax", "num_class": 3}, labels, local_rounds=1)
booster, classes = federate(grid)
pooled = xgb.train(grid.params, xgb.DMatrix(features.reshape(-1, 3), labels.reshape(-1)), ROUNDS)
each = CLIENTS * ROUNDS
print(f"three classes: got trees per class {classes}, expected {dict.fromkeys(range(3), each)}")
print(f"accuracy {accuracy(booster, grid):.2f}; boosting on the pooled data: {accuracy(pooled, grid):.2f}")
assert classes == {0: each, 1: 1, 2: 1}, "trees of other classes are kept"
PYTHON
