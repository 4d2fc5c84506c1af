#!/usr/bin/env bash
# flwr-datasets 0.6.1: ContinuousPartitioner(strictness=1) does not follow the order of large numbers that lie close
# together, such as times, since it turns the column into float32 before it sorts.
#
# Seen: one post per second for an hour, Unix times in seconds, ten clients: the clients' spans overlap, and about
# one post in ten is with another client than the one of its six minutes.
# Expected: ten spans of 360 s that do not overlap. The documentation says that at strictness 1 the partitions
# follow the ranking of the property strictly. A float32 has 24 bits, and Unix times today need 31: neighbours are
# 128 s apart, and all posts within 128 s tie (IEEE 754, binary32).
# Why it matters: splits by time are how concept drift and late data are simulated; here clients see data from
# before and after their span, and the split looks less heterogeneous than asked for.
# Right value: subtract the smallest value first, in integers or float64: the same column from 0 is split exactly.
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
from flwr_datasets.partitioner import ContinuousPartitioner

START, POSTS, CLIENTS = 1_700_000_000, 3600, 10
seconds = np.random.default_rng(0).permutation(POSTS)


def spans(start):
    partitioner = ContinuousPartitioner(CLIENTS, "time", strictness=1.0)
    partitioner.dataset = Dataset.from_dict({"time": start + seconds})
    return [np.array(partitioner.load_partition(client)["time"]) - start for client in range(CLIENTS)]


def misplaced(parts):
    return sum(int(np.sum(part // (POSTS // CLIENTS) != client)) for client, part in enumerate(parts))


seen, right = spans(START), spans(0)
print("flwr-datasets", version("flwr-datasets"))
print("seconds of the hour, clients 0 to 3:", [(int(part.min()), int(part.max())) for part in seen[:4]])
print("expected:                           ", [(int(part.min()), int(part.max())) for part in right[:4]])
print(f"posts with the wrong client: {misplaced(seen)} of {POSTS}, expected 0")
assert misplaced(right) == 0
assert misplaced(seen) > 100, "large numbers are ranked exactly now"
PYTHON
