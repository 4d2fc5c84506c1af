"""Write examples.json anew, after a change that is meant to change what the experiments give.

Give names to write those only: python tests/golden/make.py quickstart.yaml papers/fedamd-digits.yaml
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fedsim
from fedsim.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXPERIMENTS, PAPERS = ROOT / "experiments", ROOT / "fedsim" / "study" / "papers"
GOLDEN = Path(__file__).parent / "examples.json"


def main() -> None:
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    golden = {}
    for file in [*sorted(EXPERIMENTS.rglob("*.yaml")), *sorted(PAPERS.glob("*.yaml"))]:
        if file.parent.name == "studies":
            continue
        name = f"papers/{file.name}" if file.parent == PAPERS else file.relative_to(EXPERIMENTS).as_posix()
        golden[name] = outcome(file) if not sys.argv[1:] or name in sys.argv[1:] else known.get(name, {})
        print(name, golden[name], flush=True)
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")


def outcome(file: Path) -> dict[str, Any]:
    """Return what an experiment gives: only the timing of a paper's, and nothing where that needs data or values."""
    paper = file.parent == PAPERS
    keys = ("event_hash", "sim_time_s") if paper else ("event_hash", "sim_time_s", "accuracy")
    with tempfile.TemporaryDirectory() as out:
        try:
            summary = fedsim.run(file, out=out, timing_only=paper, record__report=False).summary
        except ConfigError as error:
            print(error)
            return {}
    return {key: summary[key] for key in keys}


if __name__ == "__main__":
    main()
