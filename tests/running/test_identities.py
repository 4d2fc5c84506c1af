"""Two experiments whose models have one identity have equal models, and no number had to be computed to know that."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, reject, settings
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

import fedsim
from fedsim.errors import FedsimError
from fedsim.record.store import facts

LOCAL = {"steps": 2, "batch_size": 4, "lr": 0.1}
BASE: dict[str, Any] = {
    "seed": 3,
    "data": {"name": "synthetic", "clients": 4},
    "model": "softmax",
    "stop": {"rounds": 2},
    "record": {"report": False, "events": False},
    "compute": {"engine": "sequential"},
}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"strategy": {"name": "fedprox", "mu": 0.1, "participants": 3, "local": LOCAL}},
    "scaffold": {"strategy": {"name": "scaffold", "participants": 3, "local": LOCAL}},
    "fedamd": {"strategy": {"name": "fedamd", "participants": 3, "local": LOCAL, "large_batch": 6}},
    "fedbuff": {"strategy": {"name": "fedbuff", "concurrency": 3, "buffer": 2, "local": LOCAL}},
    "dpsgd": {"strategy": {"name": "dpsgd", "local": LOCAL}, "topology": "ring"},
    "choco": {"strategy": {"name": "choco", "local": LOCAL}, "topology": "ring"},
}
MATTERS: list[dict[str, Any]] = [
    {"seed": 4},
    {"data.clients": 5},
    {"data.partition": {"name": "dirichlet", "alpha": 0.3}},
    {"data.partition": {"name": "dirichlet", "alpha": 3.0}},
    {"data.alpha": 0.7},
    {"model": {"name": "mlp", "hidden": 3}},
    {"model": {"name": "mlp", "hidden": 4}},
    {"stop.rounds": 3},
    {"strategy.local.lr": 0.2},
    {"strategy.local.steps": 3},
    {"strategy.local.batch_size": 3},
    {"compute.dtype": "float64"},
    {"faults": [{"name": "corrupt", "kind": "sign_flip", "nodes": [1]}]},
    {"faults": [{"name": "corrupt", "kind": "noise", "scale": 0.1, "nodes": [1]}]},
]
PERHAPS: list[dict[str, Any]] = [
    {"network.latency_ms": 50},
    {"network.up_mbps": 0.01},
    {"devices.seconds_per_sample": 0.3},
    {"churn": {"name": "exponential", "online_s": 2, "offline_s": 1}},
    {"compute.engine": "stacked"},
]
NEVER: list[dict[str, Any]] = [
    {"name": "other"},
    {"record.events": True},
    {"record.checkpoint": None},
    {"record.checkpoint": {"every_rounds": 1}},
    {"evaluate.every": 2},
    {"evaluate.batch_size": 7},
    {"evaluate.nodes": 0.5},
    {"evaluate.metrics": ["macro_f1"]},
    {"record.weights_every": 1},
    {"compute.workers": 2},
    {"assume.loss": 1.0},
    {"expert.epochs": 3},
    {"compute.patience_s": 100.0},
]

found: dict[str, tuple[str, str, str]] = {}


def outcome(method: str, changes: dict[str, Any]) -> tuple[str, str, str]:
    """Return identity and hash of the final models of an experiment, and the hash of its events."""
    key = json.dumps([method, changes])
    if key not in found:
        with tempfile.TemporaryDirectory() as out:
            result = fedsim.run({**BASE, **METHODS[method]}, overrides=changes, out=out)
            hashes = result.summary["weights_hash"], result.summary["event_hash"]
            found[key] = facts(result.path)["identity"], *hashes
    return found[key]


def check(method: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Compare two experiments."""
    (identity, weights, _), (other, others, _) = outcome(method, one), outcome(method, two)
    assert identity != other or weights == others, (one, two)
    engines = "compute.engine" in {
        **one,
        **two,
    }  # which may agree to the last bit, and have names of their own
    assert identity == other or weights != others or engines, (one, two)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@hypothesis_given(
    st.sampled_from(list(METHODS)), st.sampled_from([*MATTERS, *PERHAPS]), st.sampled_from([*MATTERS, {}])
)
def test_equal_identities_are_equal_models(method: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    check(method, one, two)


KEYS: dict[str, list[Any]] = {
    "seed": [0, 1, 2**40],
    "data.clients": [3, 4, 5],
    "data.alpha": [0.0, 0.5, 1.0],
    "data.partition": ["iid", {"name": "dirichlet", "alpha": 0.5}],
    "data.val_share": [0.0, 0.2],
    "data.client_test_share": [0.0, 0.3],
    "model": ["softmax", {"name": "mlp", "hidden": 3}, {"name": "mlp", "hidden": [3, 3]}],
    "strategy.local.lr": [0.01, 0.1, 0.3],
    "strategy.local.batch_size": [2, 4],
    "strategy.local.steps": [1, 2],
    "stop.rounds": [1, 2, 3],
    "compute.dtype": ["float32", "float64"],
    "compute.engine": ["sequential", "lean"],
    "network.latency_ms": [0.0, 50.0],
    "network.up_mbps": [None, 0.01],
    "devices.seconds_per_sample": [0.001, 0.3],
    "churn": ["always", {"name": "exponential", "online_s": 2.0, "offline_s": 1.0}],
    "faults": [
        [],
        [{"name": "corrupt", "kind": "sign_flip", "nodes": [1]}],
        [{"name": "message_loss", "probability": 0.2}],
    ],
    "strategy.timeout_s": [5.0, 3600.0],
    "evaluate.every": [1, 2],
    "evaluate.batch_size": [7, 1000],
    "evaluate.metrics": [[], ["macro_f1"]],
    "record.events": [False, True],
    "record.checkpoint": [None, {"every_rounds": 1}],
    "record.weights_every": [None, 1],
    "name": ["one", "two"],
}
IDLE = {key for key in KEYS if key.partition(".")[0] in ("name", "record", "evaluate")}
"""Keys that cannot matter."""


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    """Return a method, a key, and two experiments that differ in that key."""
    method, key = draw(st.sampled_from(list(METHODS))), draw(st.sampled_from(list(KEYS)))
    others = draw(st.lists(st.sampled_from([one for one in KEYS if one != key]), max_size=4, unique=True))
    shared = {other: draw(st.sampled_from(KEYS[other])) for other in others}
    one, two = draw(st.permutations(range(len(KEYS[key]))))[:2]
    return method, key, {**shared, key: KEYS[key][one]}, {**shared, key: KEYS[key][two]}


def check_pair(pair: tuple[str, str, dict[str, Any], dict[str, Any]]) -> None:
    """Compare two experiments that differ in one key; one that is refused or diverges has no models."""
    method, key, *both = pair
    try:
        (identity, weights, _), (other, others, _) = (outcome(method, one) for one in both)
    except FedsimError:
        reject()
    assert identity != other or weights == others
    assert identity == other or key not in IDLE
    engines = key == "compute.engine"  # engines may agree to the last bit, and have names of their own
    assert identity == other or weights != others or engines


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@hypothesis_given(pairs())
def test_a_key_makes_other_models_or_the_same_identities(pair: Any) -> None:
    check_pair(pair)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@hypothesis_given(pairs())
def test_a_key_makes_other_models_or_the_same_identities_in_many_pairs(pair: Any) -> None:
    check_pair(pair)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_equal_identities_are_equal_models_for_every_change(method: str) -> None:
    everything = [*MATTERS, *PERHAPS, *NEVER, {}]
    for place, one in enumerate(everything):
        for two in everything[:place]:
            check(method, one, two)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedamd", "dpsgd"])
def test_what_cannot_matter_leaves_identities_as_they_are(method: str) -> None:
    plain = outcome(method, {})
    for change in NEVER:
        assert outcome(method, change) == plain, change


def test_the_speed_of_the_network_does_not_matter_where_nobody_waits_in_vain() -> None:
    plain = outcome("scaffold", {})
    for change in PERHAPS[:3]:
        identity, weights, events = outcome("scaffold", change)
        assert (identity, weights) == plain[:2]
        assert events != plain[2]
