"""Gradient tracking: it finds the exact optimum where D-PSGD stops beside it; rounds and traffic by hand."""

from __future__ import annotations

import numpy as np
import pytest
from peer_lab import HEADER, LOCAL, LR, drive, experiment, gradient, initial

from fedsim import api
from fedsim.errors import ConfigError
from topologies.graphs import ring
from topologies.mixing import metropolis_hastings


def optimum(setup):
    """Return the minimum of the mean of all clients' losses."""
    x = setup.learner.engine.data.x.numpy()
    y = setup.learner.engine.data.y.numpy().reshape(-1)
    return np.linalg.lstsq(x, y, rcond=None)[0]


def test_it_reaches_the_common_optimum_and_dpsgd_does_not(tmp_path):
    tracked = drive(experiment("gradient_tracking", 5, "ring", rounds=250), tmp_path / "gt")
    plain = drive(experiment("dpsgd", 5, "ring", rounds=250), tmp_path / "dpsgd")
    best = optimum(tracked.setup)
    assert np.abs(tracked.models - best).max() < 1e-5
    assert np.abs(plain.models - best).max() > 1e-3


def test_the_optimum_is_a_fixed_point(tmp_path):
    """Whoever has arrived stays: one more round moves nothing."""
    local = {**LOCAL, "lr": 0.3}
    done = drive(experiment("gradient_tracking", 4, rounds=220, local=local), tmp_path / "a")
    more = drive(experiment("gradient_tracking", 4, rounds=221, local=local), tmp_path / "b")
    assert np.abs(done.models - optimum(done.setup)).max() < 1e-12
    assert np.abs(done.models - more.models).max() < 1e-12


def test_three_rounds_by_hand(tmp_path):
    done = drive(experiment("gradient_tracking", 5, "ring", rounds=3), tmp_path)
    mixing, x = metropolis_hastings(ring(5)), initial(done.setup)
    y, before = np.zeros_like(x), np.zeros_like(x)
    for _ in range(3):
        now = np.stack([gradient(done.setup, i, w) for i, w in enumerate(x)])
        y = y + now - before
        x, y, before = mixing @ (x - LR * y), mixing @ y, now
    assert np.abs(done.models - x).max() < 1e-12


def test_batches_of_a_visit_are_one_gradient(tmp_path):
    """One pass in batches of two, or the whole data at once: the same mean gradient."""
    small = {"epochs": 1, "batch_size": 2, "lr": LR}
    one = drive(experiment("gradient_tracking", 4, rounds=3), tmp_path / "one")
    two = drive(experiment("gradient_tracking", 4, rounds=3, local=small), tmp_path / "two")
    assert np.abs(one.models - two.models).max() < 1e-12


def test_weight_decay_is_part_of_the_gradient(tmp_path):
    local = {"steps": 1, "batch_size": None, "lr": LR, "weight_decay": 0.5}
    done = drive(experiment("gradient_tracking", 1, rounds=2, local=local), tmp_path)
    w = initial(done.setup)[0]
    for _ in range(2):
        w = w - LR * (gradient(done.setup, 0, w) + 0.5 * w)
    assert np.abs(done.models[0] - w).max() < 1e-12


def test_a_message_is_two_vectors(tmp_path):
    done = drive(experiment("gradient_tracking", 5, "ring", rounds=3), tmp_path)
    assert done.sent == [3 * 2 * (2 * 2 * 8 + HEADER)] * 5


def test_it_goes_on_without_a_crashed_neighbour(tmp_path):
    faults = [{"name": "crash", "at_s": 0.015, "nodes": [0]}]
    given = experiment("gradient_tracking", 4, "ring", 5, {"timeout_s": 2.0}, faults=faults)
    done = drive(given, tmp_path)
    assert [done.run.peers[i].finished for i in (1, 2, 3)] == [5, 5, 5]
    assert np.isfinite(done.models).all()


def test_it_tracks_over_graphs_that_change(tmp_path):
    given = experiment("gradient_tracking", 6, {"name": "base_graph"}, rounds=250)
    given["strategy"]["local"] = {"steps": 1, "batch_size": None, "lr": 0.02}
    done = drive(given, tmp_path)
    start = np.abs(initial(done.setup) - optimum(done.setup)).max()
    assert np.abs(done.models - optimum(done.setup)).max() < 0.1 * start


def test_momentum_is_refused():
    given = experiment("gradient_tracking", 4, local={"steps": 1, "momentum": 0.9})
    with pytest.raises(ConfigError, match=r"strategy.local.momentum: 0.9: must be 0, is 0.9"):
        api.check(given)
