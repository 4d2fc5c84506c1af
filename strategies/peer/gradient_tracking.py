"""Gradient tracking: beside its model, every node keeps an estimate of everybody's mean gradient.

A. Nedić, A. Olshevsky, W. Shi: Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs.
SIAM Journal on Optimization 27(4), 2017 (DIGing).
S. Pu, A. Nedić: Distributed Stochastic Gradient Tracking Methods. Mathematical Programming 187, 2021.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedsim.errors import BadValue
from fedsim.learn.local import LocalUpdate, State, rate
from fedsim.learn.sampling import LocalBatches
from fedsim.learn.task import Batch, Gradient
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph, rounds
from strategies.peer.dpsgd import average
from topologies.mixing import facts, neighbour_weights


class Tracked(LocalUpdate):
    """y ← y + g(x) - g_old, then x ← x - η y, with g the mean gradient at x over all batches of a visit.

    Args:
        local: which samples, the learning rate η, and weight decay.
    """

    takes = ("arrays", "tracker", "gradient")
    sends = ("arrays", "tracker", "gradient")

    curriculum = None  # the mean over a visit's batches knows no order

    def __init__(self, local: Local) -> None:
        self.local, self.sampling = local, LocalBatches(local)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the client's learning rate."""
        return {"lr": rate(self.local, client)}

    def init(self, given: State) -> State:
        """Start a sum of gradients."""
        zero = torch.zeros_like(given["lr"])
        return {**given, "sum": torch.zeros_like(given["arrays"]), "loss": zero, "count": zero}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Add a batch's gradients; the weights stay."""
        found, loss = gradient(state["arrays"], batch)
        count = batch.weight.sum()
        new = {"sum": state["sum"] + count * found, "loss": state["loss"] + count * loss}
        return {**state, **new, "count": state["count"] + count}

    def final(self, state: State) -> State:
        """Follow the change of the gradient, and step against what is tracked."""
        found = state["sum"] / state["count"] + self.local.weight_decay * state["arrays"]
        tracker = state["tracker"] + found - state["gradient"]
        return {
            "arrays": state["arrays"] - state["lr"] * tracker,
            "tracker": tracker,
            "gradient": found,
            "train_loss": state["loss"] / state["count"],
        }


class GradientTracking(PeerStrategy):
    """Step against the tracked mean gradient; average models and trackers (Nedić et al., 2017).

    With full batches all nodes reach the minimum of the mean loss, however different their data. A message holds two
    vectors. A round is one step, with the mean gradient over all batches of the local training at one point.

    Args:
        local: the samples of a round, the learning rate and weight decay; momentum must be 0.
        timeout_s: how long to wait for the neighbours, in seconds; the weight of what is not there in time goes to
            the node's own. None waits for all.
    """

    varying = True

    def __init__(self, *, local: Local, timeout_s: Positive | None = 3600.0) -> None:
        if local.momentum:
            rule = f"must be 0, is {local.momentum}: the tracker takes momentum's place"
            raise BadValue("local.momentum", local.momentum, rule)
        self.update, self.timeout_s = Tracked(local), timeout_s

    def setup(self, graph: Graph) -> None:
        """Compute the mixing weights."""
        self.graph, self.mixing = graph, [neighbour_weights(one) for one in rounds(graph)]

    def facts(self) -> Mapping[str, float]:
        """Say how fast the topology mixes."""
        return facts(self.graph)

    def run(self, node: Peer) -> Process:
        """One node's life."""
        model, tracker, gradient = node.initial_model, node.zeros, node.zeros
        for round in node.rounds(every=len(self.mixing) > 1):
            given = {"arrays": model, "tracker": tracker, "gradient": gradient}
            result = yield from node.visit(self.update, given, round)
            model, tracker, gradient = (result.pick(name) for name in self.update.sends)
            node.send(node.receivers(round), (model, tracker), 2 * node.model_bytes, round)
            received = yield from node.receive_models(node.senders(round), round, self.timeout_s)
            weights = self.mixing[(round - 1) % len(self.mixing)][node.id]
            model = average(weights, model, {j: pair[0] for j, pair in received.items()})
            tracker = average(weights, tracker, {j: pair[1] for j, pair in received.items()})
            node.finish(round, model)
