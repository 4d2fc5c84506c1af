"""A NumPyClient, made by a client_fn."""

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp


class Client(NumPyClient):
    def __init__(self, target):
        self.target = target

    def fit(self, parameters, config):
        return [(w + self.target) / 2 for w in parameters], 100, {"shift": float(self.target)}

    def evaluate(self, parameters, config):
        return float(np.abs(parameters[0] - self.target).mean()), 50, {"accuracy": 0.25}


def client_fn(context):
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
