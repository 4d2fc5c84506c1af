"""A NumPyClient that remembers its visits, and whose updates are clipped by a mod."""

import numpy as np
from flwr.app import MetricRecord
from flwr.client import NumPyClient
from flwr.client.mod import fixedclipping_mod
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    def __init__(self, context):
        self.context = context

    def fit(self, parameters, config):
        visits = self.context.state.setdefault("visits", MetricRecord({"count": 0}))
        visits["count"] += 1
        return [w + np.float32(3.0) for w in parameters], 10, {"visits": visits["count"]}

    def evaluate(self, parameters, config):
        return float(parameters[0].mean()), 10, {"visits": self.context.state["visits"]["count"]}


app = ClientApp(client_fn=lambda context: Client(context).to_client(), mods=[fixedclipping_mod])
