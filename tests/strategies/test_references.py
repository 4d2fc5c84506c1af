"""What a federation is compared with: all data in one place, and nobody talking."""

from __future__ import annotations

import numpy as np
import pytest

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.data.datasets import digits
from fedsim.record.store import read
from fedsim.rng import stream
from fedsim.running.build import prepare
from fedsim.spec.experiment import Local, load
from strategies.server.centralised import PooledBatches

LOCAL = {"steps": 3, "batch_size": 8, "lr": 0.1}


def experiment(strategy, **more):
    return {
        "seed": 3,
        "data": {"clients": 5},
        "model": "softmax",
        "strategy": {"name": strategy, "local": LOCAL, **more},
        "devices": {"seconds_per_sample": 0.01},
        "network": {"latency_ms": 20},
        "stop": {"rounds": 2},
        "record": {"report": False},
    }


@pytest.mark.parametrize(
    ("local", "participants", "clients", "samples", "total", "steps"),
    [
        # 3 steps of 4 for each of 2: no pass of a client with 20 samples ends within them
        (Local(steps=3, batch_size=4), 2, 5, 100, 24, 6),
        # 2 epochs of 10 samples for each of 3: 60 of 50, a pass of 13 batches and 10 samples in 3 more
        (Local(epochs=2, batch_size=4), 3, 5, 50, 60, 16),
        # all samples, in everybody's 3 steps: 3 passes in one batch each
        (Local(steps=3, batch_size=None), 4, 4, 7, 21, 3),
        # clients of 2, 2 and 3 samples; one of the three computes a third of 7, which is rounded
        (Local(epochs=1, batch_size=2), 1, 3, 7, 2, 1),
    ],
)
def test_batches_hold_what_clients_would_use(local, participants, clients, samples, total, steps):
    sampling = PooledBatches(local, participants, clients)
    rows = sampling.batches(samples, stream(0, "batches"))
    assert sampling.size(samples) == total == int((rows >= 0).sum())
    assert sampling.steps(samples) == steps == len(rows)
    assert rows.shape[1] == sampling.width(samples)
    used = rows[rows >= 0]
    whole = len(used) // samples * samples
    assert np.bincount(used[:whole], minlength=samples).tolist() == [whole // samples] * samples
    assert len(set(used[whole:].tolist())) == len(used) - whole


def test_one_place_costs_the_gradients_of_a_federation_and_no_bytes(tmp_path):
    there = fedsim.run(experiment("centralised", participants=4), out=tmp_path).summary
    here = fedsim.run(experiment("strategies.server.fedavg:FedAvg", participants=4), out=tmp_path).summary
    assert there["work_samples"] == here["work_samples"] == 2 * 4 * 3 * 8
    assert there["bytes_up"] == there["bytes_down"] == 0 < here["bytes_up"]
    # one machine at the clients' pace of 0.01 s does 2 x 96 gradients one after the other
    assert there["sim_time_s"] == pytest.approx(1.92)
    assert there["busy_s"] == pytest.approx(1.92)


def test_the_pool_is_everybodys_samples_and_a_test_of_clients_own_stays_out():
    given = experiment("centralised", participants=1)
    given["data"]["client_test_share"] = 0.2
    setup = prepare(load(given))
    *own, pool = (one.tolist() for one in setup.learner.engine.data.owned)
    held = [sample for one in setup.learner.tests for sample in one.tolist()]
    assert sorted(pool) == sorted(sample for one in own for sample in one)
    assert len(held) == len(set(held) - set(pool)) > 0
    assert len(pool) + len(held) == len(digits(seed=3).y)


def test_the_machine_is_as_fast_as_clients_are_on_average():
    given = experiment("centralised", participants=1)
    given["devices"]["seconds_per_sample"] = {"distribution": "uniform", "low": 0.01, "high": 0.09}
    world = prepare(load(given)).world
    assert world.server.ps_per_sample == round(np.mean([node.ps_per_sample for node in world.members]))


def test_alone_nothing_is_sent_and_every_node_counts(tmp_path):
    result = fedsim.run({**experiment("local_only"), "topology": "ring"}, out=tmp_path)
    assert result.summary["bytes_up"] == result.summary["bytes_lost"] == 0
    assert result.summary["work_samples"] == 2 * 5 * 3 * 8
    metrics = read(result.path, "metrics")
    last = (metrics["round"] == 2) & (metrics["name"] == "accuracy")
    each = metrics["value"][last & (metrics["node"] >= 0)]
    assert len(each) == 5
    assert result.summary["accuracy"] == pytest.approx(each.mean())


@pytest.mark.parametrize(("name", "more"), [("centralised", {"participants": 3}), ("local_only", {})])
def test_a_run_that_goes_on_is_the_same(name, more, tmp_path):
    whole = fedsim.run(experiment(name, **more), out=tmp_path)
    given = experiment(name, **more) | {"stop": {"rounds": 1}}
    half = fedsim.run(given, out=tmp_path)
    on = fedsim.resume(half.path, extend={"rounds": 1})
    assert on.summary["run_hash"] == whole.summary["run_hash"]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"select": "uniform"}, "select"),
        ({"local": {**LOCAL, "curriculum": {}}}, "local.curriculum"),
        ({"local": {**LOCAL, "lr": [0.1] * 5}}, "local.lr"),
        ({"around": [{"name": "clip", "max_norm": 1.0}]}, "around"),
        ({"participants": 6}, "participants"),
    ],
)
def test_what_has_no_meaning_in_one_place_is_refused(more, key):
    with pytest.raises(ConfigError, match=rf"^strategy\.{key}"):
        fedsim.check(experiment("centralised", **{"participants": 2, **more}))


def test_both_are_points_of_a_study(tmp_path):
    methods = {
        "centralised": {"strategy": {"name": "centralised", "participants": 4}},
        "local": {"strategy": "local_only"},
        "FedAvg": {},
    }
    base = experiment("strategies.server.fedavg:FedAvg", participants=4)
    study = {"name": "references", "base": base, "methods": methods}
    done = fedsim.sweep({**study, "compare": {"baseline": "FedAvg"}}, out=tmp_path)
    assert [one.status for one in done] == ["done"] * 3
    rows = {row.name: row for row in fedsim.compare(tmp_path / "references").rows()}
    assert rows["centralised"].node_mb == rows["local"].node_mb == (0.0, 0.0)
    assert rows["centralised"].final[0] > rows["local"].final[0]
