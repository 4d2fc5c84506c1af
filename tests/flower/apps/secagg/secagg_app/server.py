"""SecAgg+: the server sees sums of masked updates alone."""

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    start = ndarrays_to_parameters([np.zeros(4, dtype=np.float32)])
    strategy = FedAvg(initial_parameters=start, fraction_fit=1.0, fraction_evaluate=1.0)
    legacy = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=context.run_config["num-server-rounds"]),
        strategy=strategy,
    )
    fit = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
    DefaultWorkflow(fit_workflow=fit)(grid, legacy)
