"""FedAMD in MoDeST's samples: models by plain arithmetic, what travels, and what lost replies do to the caches' sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peer_lab import drive, experiment, gradient

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.deferred import Deferred
from fedsim.spec.experiment import Local
from strategies.fedamd.fedamd import CACHE, LATEST, WHEN
from strategies.modest.fedamd import HEARD_BYTES, MoDeSTAMD
from strategies.modest.sampling import order

LR, STEPS = 0.05, 4
WHOLE = {"steps": STEPS, "batch_size": None, "lr": LR}


def case(clients, rounds, local=WHOLE, more=None, **params):
    given = {"sample_size": 4, "p": 0.4, "window": 10_000, **params}  # nobody is ever forgotten
    return experiment("modest_fedamd", clients, rounds=rounds, params=given, local=local, **(more or {}))


def by_hand(setup, rounds):
    """Return the model after so many rounds, and what the nodes cache, by FedAMD's formulas for whole local data."""
    rules, n = setup.strategy, len(setup.owned)
    x, caches = setup.learner.initial.value().numpy().copy(), {}
    for round in range(1, rounds + 1):
        sample = order([str(node) for node in range(n)], round)[: rules.sample_size]
        anchors = [node for node in sample if not caches or rules.is_anchor(round, node)]
        ends = []
        for node in sample:
            if node in anchors:
                continue
            before, direction = x, np.mean(list(caches.values()), axis=0)
            y = x - LR * direction
            for _ in range(STEPS - 1):
                direction = direction + gradient(setup, node, y) - gradient(setup, node, before)
                before, y = y, y - LR * direction
            ends.append(y)
        caches |= {node: gradient(setup, node, x) for node in anchors}
        x = np.mean(ends, axis=0) if ends else x
    return x, caches


def final(done):
    """Return the latest average that any node has made, as it travels."""
    members = done.setup.strategy.members.values()
    return max(members, key=lambda member: member.average_round * member.averaged).average


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_models_and_caches_by_plain_arithmetic(tmp_path, p):
    done = drive(case(9, 12, p=p), tmp_path)
    x, caches = by_hand(done.setup, 12)
    model, total, heard = final(done)
    np.testing.assert_allclose(model.value().numpy(), x, atol=1e-12)
    np.testing.assert_allclose(total.value().numpy(), sum(caches.values()), atol=1e-12)
    assert heard.keys() == caches.keys()
    # Without anchors after the first round, caches are those of the first sample; with anchors alone, nothing moves.
    assert (len(heard) == 4) == (p == 0.0)
    assert np.array_equal(x, done.setup.learner.initial.value().numpy()) == (p == 1.0)


@pytest.mark.slow
def test_it_reaches_the_common_optimum_and_modest_does_not(tmp_path):
    """With all local data in every gradient, no noise is left: the end is the minimum itself."""
    amd = drive(case(6, 400, sample_size=3), tmp_path / "amd")
    plain = drive(
        experiment("modest", 6, rounds=400, params={"sample_size": 3, "window": 10_000}, local=WHOLE),
        tmp_path / "plain",
    )
    data = amd.setup.learner.engine.data
    best = np.linalg.lstsq(data.x.numpy(), data.y.numpy().reshape(-1), rcond=None)[0]
    assert np.abs(final(amd)[0].value().numpy() - best).max() < 1e-6
    assert np.abs(final(plain)[0].value().numpy() - best).max() > 1e-2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lost_replies_leave_the_sum_that_of_known_caches(tmp_path, seed):
    """What is in the sum is, for each node, the gradient of the round in which it was last heard of."""
    more = {"faults": [{"name": "message_loss", "probability": 0.1}], "seed": seed}
    given = case(8, 40, more=more, success_fraction=0.5, ping_timeout_s=0.1, resend_s=5.0, p=0.6)
    done = drive(given, tmp_path)
    _, total, heard = final(done)
    assert done.lost > 0
    late = 0
    expected = np.zeros(2)
    for node, round in heard.items():
        kept = {name: value.value().numpy() for name, value in done.run.peers[node].kept.items()}
        known = kept[WHEN][0] == round
        late += not known
        expected += kept[LATEST] if known else kept[CACHE]
    np.testing.assert_allclose(total.value().numpy(), expected, atol=1e-9)
    assert len(heard) > 4
    assert late or seed  # in one of these runs at least, somebody's last gradient was lost


class Sized:
    model_bytes = 1000


def test_what_is_carried_has_its_size():
    rules = MoDeSTAMD(local=Local(**WHOLE))
    model, total, change = (Deferred.known(value) for value in range(3))
    heard = {3: 1, 5: 2}
    assert rules.size(Sized(), (model, total, {})) == 1000  # the first sample has no use for a sum of nothing
    assert rules.size(Sized(), (model, total, {}, change)) == 2000
    assert rules.size(Sized(), (model, total, heard)) == 2000 + 2 * HEARD_BYTES
    assert rules.size(Sized(), (model, total, heard, None)) == 2000 + 2 * HEARD_BYTES
    assert rules.size(Sized(), (model, total, heard, change)) == 3000 + 2 * HEARD_BYTES


def test_sums_of_several_aggregators_are_not_mixed():
    rules = MoDeSTAMD(local=Local(**WHOLE))

    def number(value):
        return Deferred.known(torch.tensor([value]))

    one, other = (number(10.0), number(1.0), {0: 1, 2: 1}), (number(20.0), number(2.0), {0: 2, 5: 2})
    box = {
        0: (*one, number(0.25)),  # from a sum that has an older gradient of node 0 than the other
        3: (*other, number(0.5)),
        4: (*one, None),
        5: (*one, number(0.125)),  # from a sum that has none of node 5
        6: (number(30.0), *other[1:], None),
    }
    model, total, heard = rules.merge(7, box)
    assert model.value() == (10 + 30) / 2  # miners alone move it
    assert (heard, total.value()) == ({0: 2, 5: 2, 3: 7}, 2 + 0.5)


def test_without_miners_the_model_stays():
    rules = MoDeSTAMD(local=Local(**WHOLE))
    model, total, change = (Deferred.known(torch.tensor([value])) for value in (0.1, 0.0, 1.0))
    merged, total, heard = rules.merge(1, {node: (model, total, {}, change) for node in range(3)})
    assert merged.value() == model.value()
    assert (total.value(), heard) == (3, {0: 1, 1: 1, 2: 1})


def test_curricula_are_refused_as_in_fedamd():
    given = case(6, 2, local={**WHOLE, "curriculum": {"score": "loss"}})
    with pytest.raises(ConfigError):
        fedsim.check(given)


def test_time_passes_as_without_training(tmp_path):
    given = {**case(9, 12), "record": {"report": False}}
    hashes = {
        fedsim.run(given, out=tmp_path, timing_only=timing).summary["event_hash"] for timing in (False, True)
    }
    assert len(hashes) == 1
    assert math.isfinite(float(int(hashes.pop(), 16)))
