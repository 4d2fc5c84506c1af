#!/usr/bin/env bash
# flwr 1.41.0: Krum, MultiKrum and Bulyan rank clients by rounding errors once the models are close together: the
# squared distances are computed as |x|^2 + |y|^2 - 2 x.y in the models' own float32.
#
# Seen: nine models of 200,000 float32 weights of size 0.05 that differ from one another by 0.000007 to 0.00004 per
# weight, as after a few small steps. Distances between different models come out as 0, below 0 or ten times too
# large, and in 16 of 20 trials Krum takes another model than the one of the lowest score.
# Expected: the model that the definition picks (Blanchard et al., arXiv 1703.02757, section 4: the smallest sum of
# squared distances to the n - f - 2 closest), as it does where the same models are float64. The two squared norms
# are about 500, where neighbouring float32 numbers are 0.00003 apart; the true distances begin at 0.00001.
# Why it matters: the rule works in round 1, when clients are far apart, and turns into a random choice as training
# converges. Nothing says so, and the choice may differ between two machines' matrix products.
# Right value: have clients send float64 arrays in rounds with these strategies, or select by a rule of your own on
# differences from the global model, computed by subtraction.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr==1.41.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import logging
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Krum
from flwr.serverapp.strategy.multikrum import compute_distances
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.WARNING)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # what "flwr run" sets
WEIGHTS, CLIENTS, FAULTY, TRIALS = 200_000, 9, 2, 20


def reply(model):
    content = {"arrays": ArrayRecord({"w": Array(model)}), "metrics": MetricRecord({"num-examples": 1})}
    task = Message(RecordDict(), dst_node_id=1, message_type="train")
    return Message(RecordDict(content), reply_to=task)


def flower(models):
    arrays, _ = Krum(num_malicious_nodes=FAULTY).aggregate_train(1, [reply(model) for model in models])
    chosen = arrays["w"].numpy()
    return next(client for client, model in enumerate(models) if np.array_equal(model, chosen))


def subtracted(models):
    exact = [model.astype(np.float64) for model in models]
    return np.array([[np.sum((a - b) ** 2) for b in exact] for a in exact])


def krum(distances):
    closest = np.sort(distances, axis=1)[:, 1 : CLIENTS - FAULTY - 1]
    return int(np.argmin(closest.sum(axis=1)))


def trial(seed):
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.05, WEIGHTS)
    return [(common + rng.normal(0, 3e-6 * (k + 1), WEIGHTS)).astype(np.float32) for k in range(CLIENTS)]


print("flwr", version("flwr"))
right = same = 0
for seed in range(TRIALS):
    models = trial(seed)
    true = subtracted(models)
    right += flower(models) == krum(true)
    same += flower([model.astype(np.float64) for model in models]) == krum(true)
    if seed == 0:
        got = compute_distances([ArrayRecord({"w": Array(model)}) for model in models])
        apart = ~np.eye(CLIENTS, dtype=bool)
        print("squared distances from model 0, in millionths:")
        print(
            "  got     ",
            (got[0, 1:6] * 1e6).round().astype(int),
            "\n  expected",
            (true[0, 1:6] * 1e6).round().astype(int),
        )
        print(f"error of a distance: up to {np.max(np.abs(got - true)[apart] / true[apart]):.0%}")
print(f"the model of the lowest score is taken in {right} of {TRIALS} trials, expected {TRIALS}")
print(f"with the same models as float64: {same}")
assert same == TRIALS
assert right < TRIALS // 2, "distances are now computed precisely enough"
PYTHON
