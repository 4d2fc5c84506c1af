"""Run experiments with several seeds and print a Markdown table: mean and standard deviation over seeds.

python experiments/table.py experiments/quickstart.yaml experiments/digits-dpsgd.yaml --seeds 1 2 3 4 5
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import fedsim

COLUMNS = {
    "accuracy": ("final accuracy", 1.0, ".3f"),
    "best_accuracy": ("best accuracy", 1.0, ".3f"),
    "sim_time_s": ("simulated time (s)", 1.0, ".0f"),
    "bytes_up": ("sent by all nodes (MB)", 1e6, ".1f"),
    "wasted_samples": ("wasted gradients", 1.0, ".0f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", dest="settings")
    given = parser.parse_args()
    overrides = dict(setting.split("=", 1) for setting in given.settings)
    print("| experiment | rounds |", " | ".join(title for title, _, _ in COLUMNS.values()), "|")
    print("| --- " * (2 + len(COLUMNS)) + "|")
    for file in given.files:
        print(row(file, given.seeds, overrides), flush=True)


def row(file: Path, seeds: list[int], overrides: dict[str, str]) -> str:
    with tempfile.TemporaryDirectory() as out:
        runs = [
            fedsim.run(file, out=out, overrides=overrides, seed=seed, record__report=False).summary
            for seed in seeds
        ]
    changes = "".join(f" with `{key}={value}`" for key, value in overrides.items())
    cells = [f"`{file.name}`{changes}", str(runs[0]["rounds"])]
    for key, (_, unit, digits) in COLUMNS.items():
        values = [run[key] / unit for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells.append(f"{statistics.mean(values):{digits}} ± {spread:{digits}}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
