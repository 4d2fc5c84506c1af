#!/usr/bin/env bash
# flwr-datasets 0.6.1: with a symmetric DirichletPartitioner the first client has too little data and the last one
# too much, by about half a sample per class.
#
# Seen: 62 classes of 100 samples (as many classes as FEMNIST has) over 50 clients, alpha 0.5, mean of 60 seeds:
# the first client has 99 samples, the last 167, the others 124 on average.
# Expected: 124 for every client, as one alpha for all means that clients are exchangeable. The documentation says
# that the fractions of a class are "drawn from Dirichlet distribution" and adjusted only "in case of balancing",
# which is off here, and gives no client a special place. In fact the bounds between clients are rounded down, so
# that the first client loses a fraction of a sample of each class and the last one gains what was lost; in between
# losses and gains cancel. Few classes and few clients, as in most papers, hide it.
# Why it matters: a client's id tells how much data it has, so whatever goes by id (which clients are slow, fail or
# are held out) is tied to size. With 1,000 classes of 10 samples over 10 clients the last has almost three times as
# much as the first.
# Right value: renumber the clients at random for each seed, or round the bounds to the nearest sample.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HOME="$work/hf" FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr-datasets==0.6.1 datasets==4.8.5 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

CLASSES, SAMPLES, CLIENTS, SEEDS = 62, 100, 50, 60
data = Dataset.from_dict({"label": np.repeat(np.arange(CLASSES), SAMPLES)})


def sizes(seed):
    partitioner = DirichletPartitioner(CLIENTS, "label", alpha=0.5, min_partition_size=0, seed=seed)
    partitioner.dataset = data
    return [len(partitioner.load_partition(client)) for client in range(CLIENTS)]


mean = np.mean([sizes(seed) for seed in range(SEEDS)], axis=0)
expected = CLASSES * SAMPLES / CLIENTS
print("flwr-datasets", version("flwr-datasets"))
print(
    f"samples, mean of {SEEDS} seeds: first {mean[0]:.1f}, last {mean[-1]:.1f}, others {mean[1:-1].mean():.1f}"
)
print(f"expected for every client: {expected}")
assert mean[0] < expected - 15, "the first client is no longer short"
assert mean[-1] > expected + 15, "the last client no longer takes the rest"
assert abs(mean[1:-1].mean() - expected) < 2
PYTHON
