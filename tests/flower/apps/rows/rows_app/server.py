"""Every one of Flower's strategies, by name."""

import json

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp, strategy

app = ServerApp()

INNER = {"fraction_train": 0.5, "min_train_nodes": 4}
PARAMS = {
    "FedTrimmedAvg": {"beta": 0.2},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1, "fraction_train": 1.0},
    "FedXgbCyclic": {"fraction_train": 1.0},
}
FIXED = {"noise_multiplier": 0.01, "clipping_norm": 1.0, "num_sampled_clients": 4}
ADAPTIVE = {"noise_multiplier": 0.01, "num_sampled_clients": 4, "initial_clipping_norm": 1.0}
EMPTY = {
    "learner": {
        "gradient_booster": {
            "model": {
                "gbtree_model_param": {"num_trees": "0", "num_parallel_tree": "1"},
                "iteration_indptr": [0],
                "trees": [],
                "tree_info": [],
            }
        }
    }
}


def make(name):
    if name.startswith("DifferentialPrivacy"):
        params = ADAPTIVE if "Adaptive" in name else FIXED
        return getattr(strategy, name)(strategy.FedAvg(**INNER), **params)
    return getattr(strategy, name)(**{**(INNER if "Cyclic" not in name else {}), **PARAMS.get(name, {})})


@app.main()
def main(grid, context):
    name = context.run_config["strategy"]
    start = ArrayRecord({"w": Array(np.zeros(6, dtype=np.float32))})
    if "Xgb" in name:
        start = ArrayRecord([np.frombuffer(json.dumps(EMPTY).encode(), dtype=np.uint8)])
    make(name).start(grid, start, num_rounds=3)
