"""How far ``fedsim check``'s estimate of a round's time is from what a round takes.

Both are processor time of one process, since others may be at work here; what starts and ends a run is left out on
both sides. Each line is the estimate divided by the truth: the median over the repeats and, in brackets, the least and
the most. ``--json`` prints one JSON object instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import fedsim
from fedsim.running.begin import prepare
from fedsim.running.estimate import seconds
from fedsim.spec.experiment import load

LOCAL = {"steps": 10, "batch_size": 8, "lr": 0.1}
BASE: dict[str, Any] = {
    "data": {"clients": 10},
    "model": "softmax",
    "evaluate": {"every": 4},
    "record": {"report": False},
    "compute": {"workers": 1, "device": "cpu"},
}
CASES: dict[str, dict[str, Any]] = {
    "fedamd, softmax": {"strategy": {"name": "fedamd", "participants": 5, "p": 0.7, "local": LOCAL}},
    "fedavg, lenet5": {
        "model": "lenet5",
        "data": {"clients": 4},
        "strategy": {"name": "fedavg", "local": {"epochs": 2}},
    },
    "dpsgd, mlp": {
        "model": "mlp",
        "strategy": {"name": "dpsgd", "local": {"epochs": 2}},
        "topology": "ring",
    },
}
FEW, MANY = 4, 24
"""A round takes what these two numbers of rounds differ by."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = {
        name: sorted(ratio({**BASE, **more}) for _ in range(given.repeats)) for name, more in CASES.items()
    }
    if given.json:
        print(json.dumps(found))
        return
    for name, ratios in found.items():
        print(f"{name}: {statistics.median(ratios):.2f} [{ratios[0]:.2f}-{ratios[-1]:.2f}]")


def ratio(case: dict[str, Any]) -> float:
    """Return the estimate of a round divided by what it really takes."""
    with tempfile.TemporaryDirectory() as out:
        took(case, 1, out)  # whatever is made ready once
        real_s = (took(case, MANY, out) - took(case, FEW, out)) / (MANY - FEW)
    return seconds(prepare(load({**case, "stop": {"rounds": MANY}})))[1] / real_s


def took(case: dict[str, Any], rounds: int, out: str | Path) -> float:
    """Return the processor time of a run with so many rounds, in seconds."""
    began = time.process_time()
    fedsim.run({**case, "stop": {"rounds": rounds}}, out=out)
    return time.process_time() - began


if __name__ == "__main__":
    main()
