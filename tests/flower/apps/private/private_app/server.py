"""The former API's FedAvg in a wrapper that adds noise."""

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg
from flwr.serverapp import ServerApp


def mean(metrics):
    return {"visits": sum(one["visits"] for _, one in metrics) / len(metrics)}


def server_fn(context):
    start = ndarrays_to_parameters([np.zeros(4, dtype=np.float32)])
    inner = FedAvg(
        initial_parameters=start, fit_metrics_aggregation_fn=mean, evaluate_metrics_aggregation_fn=mean
    )
    strategy = DifferentialPrivacyClientSideFixedClipping(
        inner, noise_multiplier=context.run_config["noise"], clipping_norm=1.0, num_sampled_clients=4
    )
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
