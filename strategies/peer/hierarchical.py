"""Hierarchical federated averaging: clients, edge servers near them, and a cloud.

L. Liu, J. Zhang, S. H. Song, K. B. Letaief: Client-Edge-Cloud Hierarchical Federated Learning. IEEE ICC 2020,
algorithm 1 (HierFAVG).

Several servers stand in one world, so every node is a peer: the last one is the cloud, the ones before it are the edge
servers, and all of them have data of their own, as clients do. The topology ``tree`` has them in these places.
"""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph

COUNT_BYTES = 8
"""The number of samples that a model stands for, beside it."""


class Hierarchical(PeerStrategy):
    """Average at edge servers in every round, and those averages in the cloud every few rounds (Liu et al., 2020).

    A round is an edge period: the local training κ1, and one average of each edge server over its clients, weighted by
    their samples. A node belongs to the edge server that is the fewest links away; of equally near ones, to that with
    the fewest clients so far. The bytes of each tier are recorded as edge_bytes and cloud_bytes; a message to somebody
    who is away has none, and one that is broken off on its way counts whole.

    Args:
        local: the local training of a round.
        edges: how many edge servers there are.
        cloud_every: how many averages at the edge there are for each in the cloud, κ2.
        timeout_s: how long to wait for the models of a round, in seconds; who is not heard in time is left out, a
            client that hears nothing goes on with its own model, and a server with the next round that it hears of.
            None waits for all.
    """

    def __init__(
        self, *, local: Local, edges: Count = 2, cloud_every: Count = 2, timeout_s: Positive | None = 3600.0
    ) -> None:
        self.update, self.timeout_s = LocalSGD(local), timeout_s
        self.edges, self.cloud_every = edges, cloud_every
        self.bytes = {"edge_bytes": 0, "cloud_bytes": 0}

    def check(self, clients: int) -> None:
        """Leave a place for the cloud."""
        if self.edges > max(1, clients - 1):
            rule = f"must be less than {clients}, the number of peers, of which one is the cloud"
            raise BadValue("edges", self.edges, rule)

    def setup(self, graph: Graph) -> None:
        """Say who belongs to whom."""
        n = len(graph)
        self.cloud = n - 1
        self.servers = list(range(max(0, n - 1 - self.edges), n - 1)) or [0]
        self.clients: dict[int, list[int]] = {server: [server] for server in self.servers}
        away = {server: nx.single_source_shortest_path_length(graph, server) for server in self.servers}
        for node in sorted(set(range(n)) - set(self.servers)):
            near = min(self.servers, key=lambda s: (away[s].get(node, n), len(self.clients[s]), s))
            self.clients[near].append(node)
        self.server_of = {node: server for server, own in self.clients.items() for node in own}

    def measure(self, round: int) -> Mapping[str, float]:
        """Say how many bytes were sent between clients and edge servers, and between those and the cloud, so far."""
        del round
        return {name: float(sent) for name, sent in self.bytes.items()}

    def run(self, node: Peer) -> Process:
        """One node's life as a client; servers have another one beside it."""
        if node.id in self.clients:
            node.start(self.serve(node))
        if node.id == self.cloud:
            node.start(self.serve_all(node))
        model, server = node.initial_model, self.server_of[node.id]
        # As the cloud it hears of rounds to which its own edge server has yet to come.
        for round in node.rounds(every=node.id == self.cloud):
            model = yield from node.train(self.update, model, round)
            self.send(node, [server], model, node.samples, round, "up")
            heard = yield from node.receive_models([server], round, self.timeout_s, "down")
            model = heard[server][0] if heard else model
            node.finish(round, model)

    def serve(self, node: Peer) -> Process:
        """One edge server's life: w_e ← Σ n_i w_i / Σ n_i, and what the cloud makes of it every κ2-th time."""
        own, round = self.clients[node.id], 0
        while True:
            round = max(round + 1, node.node.heard)
            heard = yield from node.receive_models(own, round, self.timeout_s, "up")
            if not heard:
                round = (yield from self.later(node, "up", round)) - 1
                continue
            model, samples = averaged(heard)
            if round % self.cloud_every == 0:
                self.send(node, [self.cloud], model, samples, round, "edge")
                answer = yield from node.receive_models([self.cloud], round, self.timeout_s, "cloud")
                model = answer[self.cloud][0] if answer else model
            self.send(node, own, model, samples, round, "down")

    def serve_all(self, node: Peer) -> Process:
        """The cloud's life: w ← Σ n_e w_e / Σ n_e."""
        round, every = 0, self.cloud_every
        while True:
            round = max(round + every, node.node.heard // every * every)
            heard = yield from node.receive_models(self.servers, round, self.timeout_s, "edge")
            if not heard:
                round = (yield from self.later(node, "edge", round)) - every
                continue
            model, samples = averaged(heard)
            self.send(node, self.servers, model, samples, round, "cloud")

    def later(self, node: Peer, kind: str, round: int) -> Process:
        """Wait for the next model of a later round, and return that: a server that counts on alone loses touch."""
        message = yield node.node.receive(lambda message: message.kind == kind and message.round > round)
        node.node.deliver(message)
        return message.round

    def send(self, node: Peer, to: list[int], model: Deferred, samples: int, round: int, kind: str) -> None:
        """Send a model and the number of samples that it stands for, and count the bytes of the tier."""
        size = node.model_bytes + COUNT_BYTES
        tier = "edge_bytes" if kind in ("up", "down") else "cloud_bytes"
        self.bytes[tier] += size * sum(other != node.id for other in node.online(to))
        node.send(to, (model, samples), size, round, kind)


def averaged(heard: Mapping[int, tuple[Deferred, int]]) -> tuple[Deferred, int]:
    """Return the average of models, weighted by the samples that they stand for, and the sum of those.

    >>> import torch
    >>> one, two = (Deferred.known(torch.tensor([value])) for value in (1.0, 5.0))
    >>> model, samples = averaged({0: (one, 30), 1: (two, 10)})
    >>> model.value(), samples
    (tensor([2.]), 40)
    """
    counts = [samples for _, samples in heard.values()]
    return mean([model for model, _ in heard.values()], [float(count) for count in counts]), sum(counts)
