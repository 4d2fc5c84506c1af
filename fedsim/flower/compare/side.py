"""A process of its own for one of the two sides of a comparison; see :mod:`fedsim.flower.compare.compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from fedsim.flower.apps.app import run_app
from fedsim.flower.apps.project import read_project
from fedsim.flower.compare.engine import run_engine
from fedsim.record import weights

AT_ONCE = {"devices.seconds_per_sample": 1e-12, "compute.threads": 1, "record.report": False}
"""A world in which all clients are done at once, so that replies come in the order of the messages."""


def main(side: str, path: str, nodes: int, run_config: str, out: Path) -> None:
    """Run an app, and write what is compared to ``OUT/side.json`` and, if there is a model, beside it."""
    if side == "flwr":
        arrays, summary = run_engine(read_project(path, run_config), nodes, out)
        model = {} if arrays is None else {name: np.array(array.numpy()) for name, array in arrays.items()}
        if model:
            weights.save_arrays(out / weights.FILE, model, list(model))
        record = out
    else:
        result = run_app(path, nodes=nodes, run_config=run_config, overrides=AT_ONCE, out=out)
        summary, record = result.summary, result.path
    told = {"wall_s": summary["wall_time_s"], "errors": summary["error_replies"], "record": str(record)}
    (out / "side.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
