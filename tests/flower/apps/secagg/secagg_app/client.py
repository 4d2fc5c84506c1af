"""A NumPyClient behind the mod of SecAgg+."""

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    def __init__(self, target):
        self.target = target

    def fit(self, parameters, config):
        return [(w + self.target) / 2 for w in parameters], 100, {}

    def evaluate(self, parameters, config):
        return float(np.abs(parameters[0] - self.target).mean()), 50, {}


def client_fn(context):
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
