"""What it costs that a run can go on, and what it saves: identities, checkpoints, repetition, and a store.

FedAvg with a convolutional model, 10 clients a round, in one process. ``share_of_identities`` and
``share_of_checkpoints`` (journal included) are shares of a run's processor time, with a checkpoint as often as one is
allowed; ``share_of_identities_timing_only`` is that of a run that keeps time only. ``ratio_training_to_repetition``
says how many times as fast a run is repeated as it was trained; ``ratio_twenty_to_one`` is how long twenty bandwidths
take with a store, against one run without. Both get better with ``--rounds``: what every run does once is the same.
``--json`` prints one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fedsim
from fedsim.learn.book import Book
from fedsim.running.checkpoint import Keeper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gn-lenet")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bandwidths", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        found = measured(given, Path(out))
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    if given.json:
        print(json.dumps(found))


def measured(given: argparse.Namespace, out: Path) -> dict[str, float]:
    run(given, out / "warm", rounds=1)
    plain_s, _ = run(given, out / "plain", checkpoint=None)
    spent: Counter[str] = Counter()
    with timed(Book, "name", spent), timed(Keeper, "save", spent), timed(Keeper, "_write", spent):
        whole_s, path = run(given, out / "saved", checkpoint={"every_wall_s": 0.01})
    (path / "summary.json").unlink()
    began = time.process_time()
    fedsim.resume(path)
    repeated_s = time.process_time() - began
    timing: Counter[str] = Counter()
    with timed(Book, "name", timing):
        dry_s, _ = run(given, out / "timing", timing_only=True)
    twenty_s = 0.0
    for number in range(given.bandwidths):
        twenty_s += run(given, out / "store", out / "held", up_mbps=1.0 + number)[0]
    return {
        "share_of_identities": spent["name"] / whole_s,
        "share_of_identities_timing_only": timing["name"] / dry_s,
        "share_of_checkpoints": (spent["save"] + spent["_write"]) / whole_s,
        "ratio_training_to_repetition": whole_s / repeated_s,
        "ratio_twenty_to_one": twenty_s / plain_s,
    }


def run(
    given: argparse.Namespace,
    out: Path,
    store: Path | None = None,
    rounds: int | None = None,
    checkpoint: Any = None,
    up_mbps: float = 1.0,
    timing_only: bool = False,
) -> tuple[float, Path]:
    """Return the processor time that a run takes, in seconds, and its folder."""
    experiment = {
        "data": {"clients": 20},
        "model": given.model,
        "strategy": {
            "name": "strategies.server.fedavg:FedAvg",
            "participants": 10,
            "local": {"epochs": 2, "batch_size": 16, "lr": 0.05},
        },
        "network": {"up_mbps": up_mbps},
        "stop": {"rounds": rounds or given.rounds},
        "evaluate": {"every": 5},
        "record": {"report": False, "checkpoint": checkpoint},
    }
    began = time.process_time()
    result = fedsim.run(experiment, out=out, store=store, timing_only=timing_only)
    return time.process_time() - began, result.path


@contextmanager
def timed(owner: Any, name: str, spent: Counter[str]) -> Iterator[None]:
    """Add up the processor time that a method takes."""
    method: Callable[..., Any] = getattr(owner, name)

    def measuring(*args: Any, **more: Any) -> Any:
        began = time.process_time()
        try:
            return method(*args, **more)
        finally:
            spent[name] += time.process_time() - began  # type: ignore[assignment]

    setattr(owner, name, measuring)
    try:
        yield
    finally:
        setattr(owner, name, method)


if __name__ == "__main__":
    main()
