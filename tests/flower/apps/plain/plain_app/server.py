"""Ordinary FedAvg over a vector of four numbers."""

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    strategy = FedAvg(fraction_train=config["fraction-train"])
    start = ArrayRecord({"w": Array(np.zeros(4, dtype=np.float32))})
    strategy.start(grid, start, num_rounds=config["num-server-rounds"], evaluate_fn=score)


def score(server_round, arrays):
    return MetricRecord({"loss": float(arrays["w"].numpy().mean()), "accuracy": 0.5})
