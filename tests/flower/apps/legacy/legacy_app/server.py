"""The former API: a server_fn with FedAvg."""

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def server_fn(context):
    start = ndarrays_to_parameters([np.zeros(4, dtype=np.float32)])
    strategy = FedAvg(initial_parameters=start, fraction_fit=1.0, fraction_evaluate=1.0)
    config = ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=config)


app = ServerApp(server_fn=server_fn)
