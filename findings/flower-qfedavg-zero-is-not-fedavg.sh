#!/usr/bin/env bash
# flwr 1.41.0: QFedAvg(q=0) is not FedAvg: it gives every client the same weight, whatever its number of examples.
#
# Seen: one client with 1 example and the model 0, one with 99 examples and the model 1. FedAvg gives 0.99, QFedAvg
# with q = 0 gives 0.50.
# Expected: the same model. The documentation of q says "When set to 0, q-FedAvg is equivalent to FedAvg". In the
# paper (arXiv 1905.10497, section 3) the objective is weighted by p_k, for which it takes n_k / n, and algorithm 2
# averages evenly because its devices are sampled with the probabilities p_k; Flower samples nodes evenly and
# averages evenly, so that p_k is nowhere. weighted_by_key is used for the metrics only.
# Why it matters: q = 0 is the baseline of every curve over q. Part of what is plotted as fairness is the change
# from weights by examples to equal weights, and on data of unequal sizes that can be the larger part.
# Right value: take FedAvg with equal weights for the baseline (have clients report 1 under weighted_by_key), or
# scale each client's loss ** q by its share of the examples in a subclass.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.41.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import logging
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, QFedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # what "flwr run" sets
EXAMPLES = {1: 1, 2: 99}
MODELS = {1: 0.0, 2: 1.0}


class TwoClients(Grid):
    """A grid with two clients, which answer with the same models in every round."""

    run = property(lambda self: None)

    def set_run(self, run): ...
    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None): ...
    def push_messages(self, messages): ...
    def pull_messages(self, message_ids): ...
    def get_nodes(self): ...

    def get_node_ids(self):
        return list(EXAMPLES)

    def send_and_receive(self, messages, *, timeout=None):
        for message in messages:
            node = message.metadata.dst_node_id
            metrics = MetricRecord({"num-examples": EXAMPLES[node], "train_loss": 1.0})
            model = ArrayRecord({"w": Array(np.array([MODELS[node]]))})
            yield Message(RecordDict({"arrays": model, "metrics": metrics}), reply_to=message)


def one_round(strategy):
    grid, start = TwoClients(), ArrayRecord({"w": Array(np.zeros(1))})
    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, list(grid.send_and_receive(messages)))
    return float(arrays["w"].numpy()[0])


fedavg, qfedavg = one_round(FedAvg()), one_round(QFedAvg(client_learning_rate=0.1, q=0.0))
print("flwr", version("flwr"))
print(f"FedAvg {fedavg:.2f}, QFedAvg(q=0) {qfedavg:.2f}, expected {MODELS[2] * 99 / 100:.2f} for both")
assert "When set to 0, q-FedAvg is equivalent to FedAvg" in " ".join(QFedAvg.__doc__.split())
assert abs(fedavg - 0.99) < 1e-9
assert abs(qfedavg - 0.5) < 1e-9, "QFedAvg now weights by examples"
PYTHON
