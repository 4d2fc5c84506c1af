"""What MoDeST and those it is compared with ask of the network and of deferred training."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch

from fedsim.learn.deferred import Deferred, mean
from fedsim.world.clock import MICRO, Clock
from fedsim.world.log import EventLog
from fedsim.world.net.matrix import Matrix
from fedsim.world.net.network import Access, Message, Network
from fedsim.world.node import Node
from topologies.sequences import one_peer_exponential

CASES = {
    "two to one": ([10, 10, 10], [(0, 2, 100), (1, 2, 100)], [10, 20], [20, 20]),
    "a slow one among them": ([4, 10, 10], [(0, 2, 40), (1, 2, 100)], [10, 14], [10, 14]),
    "one to a slow one": ([10, 4, 10], [(0, 1, 40), (0, 2, 120)], [10, 20], [10, 16]),
    "one to three": ([10, 5, 5, 5], [(0, 1, 50), (0, 2, 50), (0, 3, 50)], [10, 10, 20], [15, 15, 15]),
    "four on an uplink": ([10, 99, 99, 99, 99], [(0, i, 50) for i in (1, 2, 3, 4)], [5, 10, 15, 20], [20] * 4),
    "four on a downlink": ([99, 99, 99, 99, 10], [(i, 4, 50) for i in range(4)], [5, 10, 15, 20], [20] * 4),
}  # fmt: skip


def transfers(sharing, rates, requests):
    """Start transfers of so many bytes at once between nodes of so many bytes a second; return when each ends."""
    clock = Clock()
    graph = nx.complete_graph(len(rates))
    nx.set_edge_attributes(graph, {edge: {"latency_us": 0, "bits_per_s": 0} for edge in graph.edges})
    access = {node: Access(0, 8 * rate, 8 * rate) for node, rate in enumerate(rates)}
    network = Network(clock, EventLog(clock), graph, access, sharing)
    nodes = [Node(node, "peer", clock, network.log, network) for node in graph]
    ends = [0.0] * len(requests)

    def ended(index, delivered):
        assert delivered
        ends[index] = clock.now / MICRO

    for index, (src, dst, size) in enumerate(requests):
        nodes[src].send(nodes[dst], Message("model", None, size), lambda ok, i=index: ended(i, ok))
    clock.run()
    assert sum(t.up for t in network.traffic.values()) == sum(size for *_, size in requests)
    return ends


@pytest.mark.parametrize("case", CASES)
def test_modest_property_30_golden_bandwidths(case):
    rates, requests, greedy, fair = CASES[case]
    assert transfers("greedy", rates, requests) == pytest.approx(greedy, abs=1e-4)
    assert transfers("max-min", rates, requests) == pytest.approx(fair, abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_modest_property_30_fair_shares_do_not_depend_on_the_order_of_requests(case):
    rates, requests, _, fair = CASES[case]
    assert transfers("max-min", rates, requests[::-1]) == pytest.approx(fair[::-1], abs=1e-4)


def test_modest_property_31_a_node_stands_at_its_number_modulo_the_sites():
    delays = np.arange(227 * 227, dtype=float).reshape(227, 227) / 100
    delays[3, 4] = -0.5
    matrix = Matrix(delays)
    for src, dst in ((0, 1), (1, 0), (230, 5), (12, 227 + 226), (454, 681)):
        assert matrix.delay_us(src, dst) == round(1000 * delays[src % 227, dst % 227])
    assert matrix.delay_us(1, 0) != matrix.delay_us(0, 1)
    # a measurement that is missing is not zero: the way back stands in for it
    assert matrix.delay_us(3, 4) == matrix.delay_us(4, 3) == round(1000 * delays[4, 3])


def test_modest_property_32_time_does_not_depend_on_values(modest):
    world = {
        "rounds": 6,
        "params": {"aggregators": 2, "success_fraction": 0.5, "aggregator_timeout_s": 9.0},
        "churn": {"name": "exponential", "online_s": 20, "offline_s": 4},
    }
    runs = [modest(dry=True, **world), modest(dry=False, **world)]
    for run in runs:
        run.run()
    assert len({run.world.log.hexdigest() for run in runs}) == 1
    assert runs[0].observer.ends == runs[1].observer.ends
    flipped = modest(dry=False, **world)
    flipped.learner.engine.data.x.neg_()
    flipped.run()
    assert flipped.world.log.hexdigest() == runs[0].world.log.hexdigest()
    assert not torch.equal(flipped.model(6), runs[1].model(6))


def test_modest_property_32_every_training_of_a_round_counts_once(modest):
    run = modest(rounds=5)
    run.run()
    done = [event for event in run.events if event[1] == "done"]
    assert len(done) == run.updates == 5 * 4


def test_modest_property_32_when_values_are_computed_does_not_matter(modest):
    """Measured after every round, or all at once at the end, the models are the same."""
    soon, late = modest(dry=False, rounds=5), modest(dry=False, rounds=5, evaluate={"every": 100})
    for run in (soon, late):
        run.run()
    assert soon.observer.had[5][-1].done
    assert not late.observer.had[5][-1].done
    for round in (5, 2, 4, 1, 3):
        assert torch.equal(late.model(round), soon.model(round))


@pytest.mark.parametrize("n", [2, 8, 16])
def test_modest_property_33_one_peer_averages_are_exact_after_all_offsets(n):
    rounds = one_peer_exponential(n)
    assert len(rounds) == n.bit_length() - 1
    models = [Deferred.known(torch.tensor([float(node * node)], dtype=torch.float64)) for node in range(n)]
    offsets = set()
    for graph in rounds:
        assert all(graph.out_degree(node) == graph.in_degree(node) == 1 for node in graph)
        offsets |= {(dst - src) % n for src, dst in graph.edges}
        models = [
            mean([models[node], *(models[src] for src in graph.predecessors(node))]) for node in range(n)
        ]
    assert offsets == {2**j for j in range(n.bit_length() - 1)}
    exact = sum(node * node for node in range(n)) / n
    assert [float(model.value()) for model in models] == [exact] * n


@pytest.mark.parametrize("n", [100, 6])
def test_modest_property_33_one_peer_uses_all_offsets_for_any_number_of_nodes(n):
    rounds = one_peer_exponential(n)
    offsets = {(dst - src) % n for graph in rounds for src, dst in graph.edges}
    assert offsets == {2**j for j in range(len(rounds))}
    assert len(rounds) == {100: 7, 6: 3}[n]
    assert all(graph.out_degree(node) == graph.in_degree(node) == 1 for graph in rounds for node in graph)
