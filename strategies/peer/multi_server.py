"""Several servers in one world: federated averaging at each with its own clients, and averages among the servers.

T. Castiglia, A. Das, S. Patterson: Multi-Level Local SGD: Distributed SGD for Heterogeneous Hierarchical Networks.
ICLR 2021, where servers are the hubs of a network of their own. With one server it is FedAvg.

Servers hold no data; how many there are and which clients each has is said by ``network.servers`` and
``network.assign``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred, combine, mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.metrics import Metric
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.methods.select import draw
from fedsim.parts import Count, Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph

COUNT_BYTES = 8
"""A number of samples or of neighbours beside a model."""

POLL_S = 1.0
"""How often a server looks for clients that are online, where there are none."""

Exchange = Literal["all", "linked", "pairs"]
Heard = Mapping[int, tuple[Deferred, int, int]]
"""Models of other servers, the samples that they stand for, and with how many those exchange theirs."""


class MultiServer(PeerStrategy):
    """Average at several servers, each over its own clients, and among the servers (Castiglia et al., 2021).

    A server's round is FedAvg's: some of its clients that are online train from its model, and it averages what comes
    back, weighted by samples. Servers do not wait for each other but to exchange their models. A server's model counts
    as much as all those clients of its have samples that it has ever heard from. Bytes are recorded without headers, in
    total and by server: bytes_with_clients and bytes_among_servers; a message to somebody who is away has none, and one
    that is broken off on its way counts whole.

    Args:
        local: local training.
        participants: clients of each server in a round; fewer if fewer are online or belong to it. None takes all.
        exchange: with whom a server averages: all others; those linked to it by the topology, with weights that keep
            the weighted average of all; or pairs, with one that is drawn for the round, which draws it as well.
        exchange_every: rounds from one exchange to the next.
        timeout_s: how long to wait for models, in seconds; who is not heard in time is left out. None waits for all.
        seed: of the clients and pairs that are drawn.
    """

    has_servers = True

    def __init__(
        self,
        *,
        local: Local,
        participants: Count | None = None,
        exchange: Exchange = "all",
        exchange_every: Count = 1,
        timeout_s: Positive | None = 3600.0,
        seed: int = 0,
    ) -> None:
        self.update, self.timeout_s, self.seed = LocalSGD(local), timeout_s, seed
        self.participants, self.exchange, self.exchange_every = participants, exchange, exchange_every
        self.with_clients: Counter[int] = Counter()
        self.among_servers: Counter[int] = Counter()

    def check(self, clients: int) -> None:
        """Refuse to ask more clients than there are."""
        if self.participants is not None and self.participants > clients:
            raise BadValue("participants", self.participants, f"at most {clients}, the number of clients")

    def check_links(self, graph: Graph, servers: Sequence[int]) -> None:
        """Refuse servers that would exchange with linked ones and are linked to none."""
        if self.exchange != "linked" or len(servers) == 1:
            return
        for server in servers:
            if not set(servers) & set(graph[server]):
                rule = (
                    f"and the topology links server {server - servers[0]} (node {server}) to no other server"
                )
                raise BadValue("exchange", self.exchange, rule, "take the topology stars, or exchange: all")

    def metrics(self, round: int) -> Iterable[Metric]:
        """Say how many bytes each server has sent and received so far, and how many there were in all."""
        del round
        for name, by_server, ends in (
            ("bytes_with_clients", self.with_clients, 1),
            ("bytes_among_servers", self.among_servers, 2),
        ):
            yield Metric(name, sum(by_server.values()) // ends)
            yield from (Metric(name, sent, server) for server, sent in sorted(by_server.items()))

    def run(self, node: Peer) -> Process:
        """One node's life, as a server or as a client."""
        return self.serve(node) if node.id in node.servers else self.attend(node)

    def attend(self, node: Peer) -> Process:
        """One client's life: train whenever a model comes."""
        while True:
            message = yield from node.receive("down")
            model = yield from node.train(self.update, message.payload[0], message.round)
            size = node.model_bytes + COUNT_BYTES
            node.send([message.src], (model, node.samples), size, message.round, "up")
            self.with_clients[message.src] += size * len(node.online([message.src]))

    def serve(self, node: Peer) -> Process:
        """One server's life."""
        model, clients, known = node.initial_model, node.clients, dict[int, int]()
        first = node.id == node.servers[0]
        self.with_clients[node.id] = self.among_servers[node.id] = 0
        for round in node.rounds(every=True):
            while not (here := node.online(clients)):
                yield from node.sleep(POLL_S)
            # The first server draws as FedAvg's does.
            drawn = stream(self.seed, "cohort", -1 if first else node.id, round)
            cohort = draw(here, self.participants or len(here), drawn)
            node.send(cohort, (model,), node.model_bytes, round, "down")
            self.with_clients[node.id] += len(cohort) * node.model_bytes
            heard = yield from node.receive_models(cohort, round, self.timeout_s, "up")
            known.update((client, samples) for client, (_, samples) in heard.items())
            model = averaged(model, heard)
            if round % self.exchange_every == 0:
                model = yield from self.meet(node, model, sum(known.values()), round)
            node.finish(round, model, len(heard))

    def meet(self, node: Peer, model: Deferred, samples: int, round: int) -> Process:
        """Exchange models with other servers, and return what comes of it."""
        others = self.others(node, round)
        if not others:
            return model
        size = node.model_bytes + 2 * COUNT_BYTES
        node.send(others, (model, samples, len(others)), size, round, "server")
        for server in node.online(others):
            self.among_servers.update({node.id: size, server: size})
        heard = yield from node.receive_models(others, round, self.timeout_s, "server")
        if self.exchange == "linked":
            return mixed(model, samples, len(others), heard)
        own = {node.id: (model, samples), **{id: one[:2] for id, one in heard.items()}}
        return averaged(model, dict(sorted(own.items())))

    def others(self, node: Peer, round: int) -> list[int]:
        """Return the servers with which one exchanges models in a round, in the order of ids."""
        servers = node.servers
        if self.exchange == "all":
            return [id for id in servers if id != node.id]
        if self.exchange == "linked":
            return [id for id in servers if id in node.neighbours]
        order = stream(self.seed, "pairs", round=round).permutation(servers).tolist()
        place = order.index(node.id) ^ 1
        return [order[place]] if place < len(order) else []


def averaged(model: Deferred, heard: Mapping[int, tuple[Deferred, int]]) -> Deferred:
    """Return the average of models, weighted by samples; where none has any, the model that was there before.

    >>> import torch
    >>> zero, one, two = (Deferred.known(torch.tensor([value])) for value in (0.0, 1.0, 5.0))
    >>> averaged(zero, {0: (one, 30), 1: (two, 10)}).value(), averaged(zero, {}).value()
    (tensor([2.]), tensor([0.]))
    """
    heavy = [(one, samples) for one, samples in heard.values() if samples]
    return mean(*zip(*heavy, strict=True)) if heavy else model


def mixed(own: Deferred, samples: int, links: int, heard: Heard) -> Deferred:
    """Return x_s ← Σ_t w_st x_t with w_st = min(n_s / (1 + d_s), n_t / (1 + d_t)) / n_s, over linked servers t.

    The rest of the weight is its own. As n_s w_st = n_t w_ts, exchanges keep Σ n_s x_s, and lead all to one model.

    Args:
        own: the server's model [P].
        samples: what it stands for, n_s.
        links: with how many servers it exchanges models, d_s.
        heard: theirs.

    >>> import torch
    >>> one, two = (Deferred.known(torch.tensor([value])) for value in (1.0, 5.0))
    >>> mixed(one, 30, 1, {4: (two, 10, 1)}).value(), mixed(two, 10, 1, {3: (one, 30, 1)}).value()
    (tensor([1.6667]), tensor([3.]))
    """
    if not samples:
        return averaged(own, {id: one[:2] for id, one in heard.items()})
    shares = [
        min(samples / (1 + links), other / (1 + theirs)) / samples for _, other, theirs in heard.values()
    ]
    return combine([own, *(one for one, _, _ in heard.values())], [1.0 - sum(shares), *shares])
