"""The end of an app's run: what it leaves is strict JSON, and whole."""

from __future__ import annotations

import json
import shutil

import pytest

from fedsim.flower import run_app

EVALUATED = """
from flwr.app import MetricRecord
scores = {0: 0.25, 1: 0.5, 2: float("nan")}
FedAvg(fraction_train=1.0, fraction_evaluate=0.0).start(
    grid, w, num_rounds=2, evaluate_fn=lambda round, arrays: MetricRecord({"accuracy": scores[round], "gap": 1e400}),
)
"""


def served(folder, lines):
    """Let an app's server do what the lines say; they begin with a model ``w``."""
    text = "\n".join(f"    {line}" for line in lines.strip().splitlines())
    (folder / "plain_app" / "server.py").write_text(f"""
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    w = ArrayRecord({{"w": Array(np.zeros(4, dtype=np.float32))}})
{text}
""")
    return folder


def run(folder, out, **more):
    return run_app(
        folder, nodes=2, overrides={"network.latency_ms": 5, "record.report": False}, out=out, **more
    )


def refuse(word):
    raise ValueError(f"{word} is not JSON")


def test_a_summary_is_strict_json_and_the_best_accuracy_is_a_number(app, tmp_path):
    result = run(served(app("plain"), EVALUATED), tmp_path / "runs")
    text = (result.path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary == result.summary
    # The accuracies are 0.25, 0.5 and none at all; the gap was never finite.
    assert (summary["accuracy"], summary["best_accuracy"]) == (None, 0.5)
    assert summary["metrics"]["gap"] is None
    assert summary["wall_total_s"] >= summary["wall_time_s"]


def test_a_folder_that_is_deleted_meanwhile_is_written_again(app, tmp_path, caplog):
    folder = served(app("plain"), EVALUATED)

    def delete(progress):
        if progress.round == 1:
            shutil.rmtree(tmp_path / "again")

    again, usual = run(folder, tmp_path / "again", progress=delete), run(folder, tmp_path / "usual")
    assert "was deleted while the run went on; it is written again" in caplog.text
    assert sorted(file.name for file in again.path.iterdir()) == sorted(
        file.name for file in usual.path.iterdir() if file.name != "app.log"
    )
    assert again.summary["run_hash"] == usual.summary["run_hash"]
    assert again.metrics()["accuracy"] == pytest.approx(usual.metrics()["accuracy"], nan_ok=True)
    assert again.weights()["w"].tolist() == usual.weights()["w"].tolist()
