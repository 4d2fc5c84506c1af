"""Write examples.json anew, after a change that is meant to change what the experiments give."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import fedsim

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def main() -> None:
    golden = {}
    for file in sorted(EXPERIMENTS.rglob("*.yaml")):
        with tempfile.TemporaryDirectory() as out:
            summary = fedsim.run(file, out=out, record__report=False).summary
        golden[file.relative_to(EXPERIMENTS).as_posix()] = {
            key: summary[key] for key in ("event_hash", "sim_time_s", "accuracy")
        }
    (Path(__file__).parent / "examples.json").write_text(json.dumps(golden, indent=2) + "\n")


if __name__ == "__main__":
    main()
