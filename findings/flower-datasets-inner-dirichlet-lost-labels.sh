#!/usr/bin/env bash
# flwr-datasets 0.6.1: InnerDirichletPartitioner hands out only the labels 0, 1, …, K-1, where K is the number of
# different labels; samples with other labels are never given to anyone.
#
# Seen: labels -1 and +1 (as in LIBSVM's files), half each: all eight clients have +1 only. Labels 1 to 26 (as in
# EMNIST letters): no client has a sample of 26.
# Expected: every label, by the client's own Dirichlet draw. The documentation asks of partition_by only that it is
# the "Column name of the labels (targets)", and counts unique classes; the other partitioners take any labels. The
# one warning is about partition sizes that do not add up to the data set; where they do, the call ends with
# "Probabilities contain NaN".
# Why it matters: a federated problem of one class has a perfect accuracy after one step, and a missing letter looks
# like a hard one.
# Right value: number the labels from 0 first, numpy.unique(labels, return_inverse=True), and compare the labels
# of the union of all partitions with those of the data set.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HOME="$work/hf" FLWR_TELEMETRY_ENABLED=0
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flwr-datasets==0.6.1 datasets==4.8.5 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import InnerDirichletPartitioner


def handed_out(labels, size):
    partitioner = InnerDirichletPartitioner([size] * 8, "label", alpha=1.0)
    partitioner.dataset = Dataset.from_dict({"label": labels})
    return {int(label) for client in range(8) for label in partitioner.load_partition(client)["label"]}


print("flwr-datasets", version("flwr-datasets"))
two = np.tile([-1, 1], 400)
letters = np.tile(np.arange(1, 27), 40)
seen = handed_out(two, size=40)
print(f"labels -1 and 1: clients have {sorted(seen)}, expected [-1, 1]")
missing = set(range(1, 27)) - handed_out(letters, size=60)
print(f"labels 1 to 26: no client has {sorted(missing)}, expected []")
assert seen == {1}, "the label -1 is handed out now"
assert missing == {26}, "the label 26 is handed out now"
codes = np.unique(two, return_inverse=True)[1]
assert handed_out(codes, size=40) == {0, 1}
print("numbered from 0, all are there")
PYTHON
