"""AD-PSGD: asynchronous decentralized parallel SGD, in which nodes average in pairs and wait for nobody else.

X. Lian, W. Zhang, C. Zhang, J. Liu: Asynchronous Decentralized Parallel Stochastic Gradient Descent. ICML 2018,
algorithm 1 and section 3 (the bipartite graph that keeps it free of deadlocks).
"""

from __future__ import annotations

import networkx as nx

from fedsim.learn.deferred import Deferred, mean
from fedsim.learn.local import LocalSGD
from fedsim.methods.peer import Peer, PeerStrategy
from fedsim.parts import Positive
from fedsim.rng import stream
from fedsim.spec.experiment import Local
from fedsim.world.clock import Process
from fedsim.world.graph import Graph


class ADPSGD(PeerStrategy):
    """Compute a change, average with one random neighbour, then apply the change (Lian et al., 2018).

    Nodes are active or passive; active ones ask, passive ones answer at any time, also while they train. Links between
    two of a kind are not used. Both ends of an exchange hold the same average after it. A fast node makes more rounds
    than a slow one: a node goes on with the latest round that it has heard of.

    Args:
        local: the local training of a round.
        seed: the experiment's seed.
        timeout_s: how long to wait for the answer, in seconds; without one, a node goes on alone. None waits for
            ever.
    """

    def __init__(self, *, local: Local, seed: int, timeout_s: Positive | None = 3600.0) -> None:
        self.update, self.seed, self.timeout_s = LocalSGD(local), seed, timeout_s

    def setup(self, graph: Graph) -> None:
        """Divide the nodes into active and passive ones."""
        self.active = halve(graph)
        self.partners = {i: sorted(across(graph, self.active, i)) for i in graph}

    def run(self, node: Peer) -> Process:
        """One node's life."""
        held = [node.initial_model]
        if node.id not in self.active:
            node.start(self.answer(node, held))
        for round in node.rounds():
            start = held[0]
            trained = yield from node.train(self.update, start, round)
            if node.id in self.active and self.partners[node.id]:
                yield from self.ask(node, held, round)
            held[0] = held[0] + (trained - start)
            node.finish(round, held[0])

    def ask(self, node: Peer, held: list[Deferred], round: int) -> Process:
        """Average with a random neighbour."""
        partner = int(stream(self.seed, "adpsgd", node.id, round).choice(self.partners[node.id]))
        node.send([partner], (held[0],), node.model_bytes, round, "ask")
        answers = yield from node.receive_models([partner], round, self.timeout_s, "answer")
        for (model,) in answers.values():
            held[0] = mean([held[0], model])

    def answer(self, node: Peer, held: list[Deferred]) -> Process:
        """Average with everybody who asks."""
        while True:
            message = yield from node.receive("ask")
            node.send([message.src], (held[0],), node.model_bytes, message.round, "answer")
            held[0] = mean([message.payload[0], held[0]])
            if node.finished:  # the model that it has shown for this round is not its model any more
                node.finish(node.finished, held[0], updates=0)


def halve(graph: Graph) -> set[int]:
    """Divide nodes into two kinds, such that links between the kinds connect whom all links connect.

    Where no link is between two of a kind (the graph is bipartite), all are used. Elsewhere, at least half of each
    node's links are, or, where those would not connect all, those between even and odd distances from a node.

    Args:
        graph: an undirected graph.

    Returns:
        The nodes of the first kind.

    >>> sorted(halve(nx.path_graph(5))), sorted(halve(nx.complete_graph(5)))
    ([0, 2, 4], [0, 1])
    """
    depth: dict[int, int] = {}
    for part in nx.connected_components(graph):
        depth |= nx.single_source_shortest_path_length(graph, min(part))
    found = {i for i in graph if depth[i] % 2 == 0}
    # in a dense graph hardly any node is at an even distance, and hardly anybody would ask
    moved, even = True, found.copy()
    while moved:
        moved = False
        for node in graph:
            if 2 * len(across(graph, even, node)) < len(graph[node]):
                even ^= {node}
                moved = True
    links: Graph = nx.Graph()
    links.add_nodes_from(graph)
    links.add_edges_from((i, j) for i in graph for j in across(graph, even, i))
    whole = nx.number_connected_components(links) == nx.number_connected_components(graph)
    return even if whole else found


def across(graph: Graph, kind: set[int], node: int) -> list[int]:
    """Return the neighbours of a node that are not of its kind.

    >>> across(nx.path_graph(4), {0, 1}, 1)
    [2]
    """
    return [other for other in graph[node] if (other in kind) != (node in kind)]
