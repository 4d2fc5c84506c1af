"""Teleportation: who is active, who hands over to whom, and exact averages over the small graph."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, drive, experiment, initial, spread, step

from fedsim import api
from fedsim.errors import ConfigError
from fedsim.spec.experiment import Local
from strategies.peer.teleportation import Teleportation
from topologies.mixing import metropolis_hastings
from topologies.sequences import base_graph


def made(n, participants, degree=1, seed=0):
    strategy = Teleportation(local=Local(), seed=seed, participants=participants, degree=degree)
    strategy.setup(nx.empty_graph(n))
    return strategy


@settings(max_examples=50, deadline=None)
@given(data=st.data(), n=st.integers(1, 30), round=st.integers(1, 50))
def test_what_one_gives_the_other_takes(data, n, round):
    participants, degree = data.draw(st.integers(1, n)), data.draw(st.integers(1, 3))
    strategy = made(n, participants, degree)
    now, after = strategy.order(round), strategy.order(round + 1)
    assert len(set(now)) == participants
    assert set(now) <= set(range(n))
    for j in after:
        givers = strategy.givers(j, round + 1)
        assert sum(givers.values()) == pytest.approx(1)
        assert {i for i in now if j in strategy.heirs(i, round)} == set(givers)
    received = [sum(strategy.givers(j, round + 1).get(i, 0.0) for j in after) for i in now]
    assert received == pytest.approx([1.0] * participants)  # so the mean over the active nodes stays


def test_a_round_by_hand(tmp_path):
    given = experiment("teleportation", 6, rounds=4, params={"participants": 4})
    done = drive(given, tmp_path)
    strategy, graphs = done.setup.strategy, base_graph(4)
    places = np.stack([initial(done.setup)[0]] * 4)
    last = initial(done.setup)
    for round in range(1, 5):
        order = strategy.order(round)
        whole = np.zeros((6, 2))
        whole[order] = places
        trained = step(done.setup, whole)[order]
        last[order] = trained
        places = metropolis_hastings(graphs[(round - 1) % 2]) @ trained
    assert np.abs(done.models - last).max() < 1e-12


@pytest.mark.parametrize(("participants", "degree"), [(2, 1), (4, 1), (6, 1), (6, 2), (5, 4)])
def test_active_nodes_agree_exactly_after_one_pass(participants, degree, tmp_path):
    passes = len(base_graph(participants, degree=degree))
    starts, params = spread(8), {"participants": participants, "degree": degree}
    done = drive(
        experiment("teleportation", 8, rounds=passes + 1, params=params), tmp_path, starts, stay=True
    )
    strategy = done.setup.strategy
    mean = starts[strategy.order(1)].mean(0)
    assert np.abs(done.models[strategy.order(passes + 1)] - mean).max() < 1e-12


def test_only_active_nodes_work_and_send(tmp_path):
    done = drive(experiment("teleportation", 9, rounds=5, params={"participants": 4}), tmp_path)
    strategy = done.setup.strategy
    turns = [sum(node in strategy.order(round) for round in range(1, 6)) for node in range(9)]
    assert [node.work for node in done.run.world.nodes] == [4 * count for count in turns]
    sends = [
        sum(len(strategy.heirs(node, r) - {node}) for r in range(1, 6) if node in strategy.order(r))
        for node in range(9)
    ]
    # What is handed over after the last round is still on its way.
    last = [len(strategy.heirs(node, 5) - {node}) if node in strategy.order(5) else 0 for node in range(9)]
    low, high = np.array(sends) - last, np.array(sends)
    found = np.array(done.sent) / (2 * 8 + HEADER)
    assert ((low <= found) & (found <= high)).all()
    assert done.run.updates == 5 * 4


def test_models_of_active_nodes_are_what_counts(tmp_path):
    given = experiment("teleportation", 9, rounds=3, params={"participants": 3})
    done = drive(given, tmp_path)
    assert set(done.run.observer.models) == set(done.setup.strategy.order(3))


def test_everybody_active_with_full_degree_is_dpsgd_on_a_complete_graph(tmp_path):
    params = {"participants": 5, "degree": 4}
    teleported = drive(experiment("teleportation", 5, rounds=4, params=params), tmp_path / "t")
    dpsgd = drive(experiment("dpsgd", 5, rounds=3), tmp_path / "d")
    assert np.abs(teleported.models - step(dpsgd.setup, dpsgd.models)).max() < 1e-12


def test_a_crash_in_the_middle_is_survived(tmp_path):
    faults = [{"name": "crash", "at_s": 0.02, "nodes": [1, 4]}]
    params = {"participants": 4, "timeout_s": 3.0}
    done = drive(experiment("teleportation", 8, rounds=10, params=params, faults=faults), tmp_path)
    assert {done.run.peers[i].finished for i in (0, 2, 3, 5, 6, 7)} == {10}
    assert np.isfinite(done.models).all()
    assert done.lost > 0


def test_more_active_nodes_than_nodes():
    with pytest.raises(ConfigError, match=r"strategy.participants: 9: at most 8, the number of clients"):
        api.check(experiment("teleportation", 8, params={"participants": 9}))
