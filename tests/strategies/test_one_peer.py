"""One-peer exponential D-SGD: exact averages, traffic and absences by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_lab import HEADER, drive, experiment, initial, spread, step

from fedsim.spec.experiment import Local
from strategies.peer.one_peer import OnePeer
from topologies.graphs import complete


@pytest.mark.parametrize(("n", "rounds"), [(2, 1), (4, 2), (8, 3), (16, 4)])
def test_modest_property_33_powers_of_two_average_exactly(n, rounds, tmp_path):
    starts = spread(n)
    done = drive(experiment("one_peer", n, rounds=rounds), tmp_path, starts, stay=True)
    assert np.abs(done.models - starts.mean(0)).max() < 1e-12
    early = drive(experiment("one_peer", n, rounds=rounds - 1 or 1), tmp_path / "early", starts, stay=True)
    assert n == 2 or np.abs(early.models - starts.mean(0)).max() > 0.1


@pytest.mark.parametrize("n", [2, 5, 8, 11])
def test_modest_property_33_one_model_out_and_one_in(n, tmp_path):
    rounds = 5
    done = drive(experiment("one_peer", n, rounds=rounds), tmp_path)
    traffic = done.run.world.network.traffic
    size = 2 * 8 + HEADER
    assert {(t.up, t.down, t.lost) for t in traffic.values()} == {(rounds * size, rounds * size, 0)}


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 300))
def test_modest_property_33_all_offsets_come_in_one_pass(n):
    made = OnePeer(local=Local())
    made.setup(complete(n))
    hops = (n - 1).bit_length()
    offsets = [made.offset(round) for round in range(1, hops + 1)]
    assert offsets == [2**j for j in range(hops)]
    assert max(offsets) < n <= 2 * max(offsets)
    assert made.offset(hops + 1) == 1


def test_other_numbers_of_nodes_keep_the_mean(tmp_path):
    starts = spread(6)
    done = drive(experiment("one_peer", 6, rounds=3), tmp_path, starts, stay=True)
    # Offsets 1, 2, 4 modulo 6: node 0 hears from 5, then from 4, then from 2.
    one = (starts + np.roll(starts, 1, 0)) / 2
    two = (one + np.roll(one, 2, 0)) / 2
    assert np.abs(done.models - (two + np.roll(two, 4, 0)) / 2).max() < 1e-12
    assert np.abs(done.models.mean(0) - starts.mean(0)).max() < 1e-12
    assert np.abs(done.models - starts.mean(0)).max() > 1e-3


def test_a_round_is_a_step_and_an_average(tmp_path):
    done = drive(experiment("one_peer", 4, rounds=3), tmp_path)
    models = initial(done.setup)
    for offset in (1, 2, 1):
        models = step(done.setup, models)
        models = (models + np.roll(models, offset, 0)) / 2
    assert np.abs(done.models - models).max() < 1e-12


def test_uneven_speeds_change_nothing_but_times(tmp_path):
    devices = {"seconds_per_sample": {"distribution": "lognormal", "median": 0.5, "sigma": 2.0}}
    even = drive(experiment("one_peer", 6, rounds=6), tmp_path / "even")
    uneven = drive(experiment("one_peer", 6, rounds=6, devices=devices), tmp_path / "uneven")
    assert np.abs(even.models - uneven.models).max() < 1e-14
    assert even.run.world.clock.now < uneven.run.world.clock.now


def test_a_node_that_hears_nothing_keeps_its_own(tmp_path):
    faults = [{"name": "crash", "at_s": 0.0, "nodes": [0]}]
    given = experiment("one_peer", 4, params={"timeout_s": 5.0}, faults=faults)
    starts = spread(4)
    done = drive(given, tmp_path, starts, stay=True)
    assert done.models[1].tolist() == starts[1].tolist()  # its sender has crashed
    assert np.abs(done.models[2] - (starts[1] + starts[2]) / 2).max() < 1e-15
    assert done.run.world.clock.now_s == pytest.approx(5.0)


def test_one_node_alone_just_trains(tmp_path):
    given = experiment("one_peer", 1, rounds=2)
    done = drive(given, tmp_path)
    assert np.abs(done.models - step(done.setup, step(done.setup, initial(done.setup)))).max() < 1e-14
    assert done.sent == [0]
