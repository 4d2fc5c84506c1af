"""Apps that between them use all of Flower's two interfaces, with what they must give worked out by hand.

A message takes 5 ms each way, client detection 500 ms, and an example 1 ms of training (a third of it otherwise).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.flower import run_app
from fedsim.record.store import facts, read

APPS = Path(__file__).parent / "apps"
WORLD = {
    "network": {"latency_ms": 5, "header_bytes": 0, "detect_s": 0.5},
    "devices": {"seconds_per_sample": 0.001},
    "record": {"report": False},
}
DEAF = {"name": "message_loss", "nodes": [1], "probability": 1.0}
"""Nothing reaches client 1."""


def away(at_s):
    """Client 2 is offline for 100 ms."""
    return {"name": "crash_recover", "nodes": [2], "at_s": at_s, "down_s": 0.1}


def run(name, tmp_path, *faults, config=""):
    result = run_app(
        APPS / name, nodes=4, world={**WORLD, "faults": list(faults)}, run_config=config, out=tmp_path
    )
    (weights,) = result.weights().values()
    return result.summary, weights, result.path


# actions: clients 0 and 1 are anchors (a step of 0.25 towards 1 and 2), 2 and 3 are miners; two rounds, and a question


def test_actions_mods_and_states(tmp_path):
    """The miners' updates have noise; those who never come back leave the anchors' 0.375, and then 0.65625."""
    summary, weights, _ = run("actions", tmp_path)
    found = summary["metrics"]
    assert (found["errors"], found["train.anchor"], found["train.miner"]) == (0, 4, 4)
    assert found["train_signed"] == 3.0  # the key that the mod has counted has three bytes
    assert summary["sim_time_s"] == pytest.approx(
        0.6
    )  # three times, the second look after 0.1 s is the first with replies
    assert not np.array_equal(weights, np.full(4, weights[0]))


def test_a_time_to_live_that_is_too_short(tmp_path):
    """A miner's reply takes 20 ms: two of them in two rounds are too late, though they have done their work."""
    summary, weights, _ = run("actions", tmp_path, config="ttl=0.012")
    found = summary["metrics"]
    assert (found["errors"], found["code_3"], found["train.miner"]) == (4, 4, 4)
    np.testing.assert_array_equal(weights, np.full(4, 0.65625))


def test_actions_under_loss_and_churn(tmp_path):
    """Client 1 is deaf to all three messages, and 2 goes away while it works for the first time, 5 to 15 ms.

    What is lost is noticed after half a second: seen 0.6 s after it was sent, and the server sleeps 0.1 s once more.
    """
    summary, _, _ = run("actions", tmp_path, DEAF, away(0.008))
    found = summary["metrics"]
    assert (found["errors"], found["code_5"], found["code_3"]) == (4, 4, 0)
    assert (found["train.anchor"], found["train.miner"]) == (2, 3)
    assert summary["sim_time_s"] == pytest.approx(3 * 0.7)
    assert summary["error_replies"] == 0


# pooled: everybody goes half way to its number; threads, a queue and an event loop


def test_threads_queues_and_an_event_loop(tmp_path):
    """The mean of 0 to 3 is 1.5: half of it is 0.75, and half of the rest makes 1.125; |w - k| has the mean 1.

    A round trains three at once in 20 ms, then the fourth, and evaluates in 10 + 10 / 3 ms, all at once.
    """
    summary, weights, path = run("pooled", tmp_path)
    np.testing.assert_array_equal(weights, np.full(4, 1.125))
    assert summary["metrics"] == {"eval_loss": 1.0, "errors": 0.0, "code_5": 0.0}
    assert summary["sim_time_s"] == pytest.approx(2 * (0.020 + 0.020 + 0.014), abs=1e-3)
    assert read(path, "rounds")["clients"].tolist()[-1] == 8


def test_threads_under_loss_and_churn(tmp_path):
    """Round 1 has clients 0 and 3, w = 0.75; round 2 has 0, 2 and 3: (0.375 + 1.375 + 1.875) / 3.

    Client 1 gives four errors, and client 2 one.
    """
    summary, weights, _ = run("pooled", tmp_path, DEAF, away(0.008))
    np.testing.assert_allclose(weights, np.full(4, 3.625 / 3), rtol=1e-6)
    found = summary["metrics"]
    assert (found["errors"], found["code_5"]) == (5, 5)
    w = 3.625 / 3
    assert found["eval_loss"] == pytest.approx((w + (2 - w) + (3 - w)) / 3, rel=1e-6)


# secagg: everybody goes half way to its number, in sums of masked and rounded numbers


def test_sums_that_the_server_cannot_look_into(tmp_path):
    summary, weights, _ = run("secagg", tmp_path)
    np.testing.assert_allclose(weights, np.full(4, 1.125), atol=1e-4)
    assert (summary["rounds"], summary["error_replies"]) == (2, 0)
    assert summary["metrics"]["eval_loss"] == pytest.approx(1.0, abs=1e-4)


def test_a_masked_sum_without_one_who_has_shared_its_keys(tmp_path):
    """Client 2 goes away in the third of four steps of 10 ms; the others' shares take its mask away.

    Round 1 gives (0 + 1 + 3) / 6 = 2 / 3, and round 2, with everybody, 1 / 3 + 3 / 4.
    """
    summary, weights, _ = run("secagg", tmp_path, away(0.022))
    np.testing.assert_allclose(weights, np.full(4, 13 / 12), atol=1e-4)
    assert summary["error_replies"] == 0


# private: an update of 3 in each of four numbers has the norm 6 and is clipped to 1, which leaves 0.5 in each


def test_updates_are_clipped(tmp_path):
    summary, weights, _ = run("private", tmp_path, config="noise=0.0")
    np.testing.assert_allclose(weights, np.ones(4), rtol=1e-6)
    assert (summary["metrics"]["train_visits"], summary["metrics"]["eval_visits"]) == (2, 2)
    noisy = run("private", tmp_path)[1]
    assert not np.allclose(noisy, np.ones(4), rtol=1e-3)


def test_a_round_with_a_failure_teaches_nothing_where_noise_counts_clients(tmp_path):
    """Flower's wrapper throws such a round away: the first for client 2's absence, and both for a deaf client 1."""
    summary, weights, path = run("private", tmp_path, away(0.008), config="noise=0.0")
    np.testing.assert_allclose(weights, np.full(4, 0.5), rtol=1e-6)
    assert summary["metrics"]["train_visits"] == (2 + 2 + 1 + 2) / 4
    found = facts(path)["error_replies"]  # its visit has not happened, so it has nothing to look up yet
    assert [(one["node"], one["round"]) for one in found] == [(2, 1)]
    _, weights, _ = run("private", tmp_path, DEAF, config="noise=0.0")
    np.testing.assert_array_equal(weights, np.zeros(4))
