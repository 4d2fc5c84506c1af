"""What whoever reads the results must know is said in check, in run, in the summary and in the report."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim.errors import ConfigError

# 20 images, 2 of each class; a fifth of each class, at least one, is kept for the test.
NOTE = (
    "mnist trains on 10 images of its own test set because the training images are not there; "
    "accuracy is over the other 10 and cannot be compared with published ones"
)


@pytest.fixture
def experiment(tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.zeros((20, 28, 28), np.uint8)
    (raw / "t10k-images-idx3-ubyte").write_bytes(
        bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape) + images.tobytes()
    )
    (raw / "t10k-labels-idx1-ubyte").write_bytes(
        bytes([0, 0, 8, 1]) + struct.pack(">I", 20) + bytes(list(range(10)) * 2)
    )
    (tmp_path / "few.yaml").write_text(
        f"data: {{name: mnist, clients: 2, root: '{tmp_path / 'data'}'}}\nmodel: softmax\n"
        "strategy: {name: dpsgd}\ntopology: ring\nstop: {rounds: 1}\n"
    )
    return tmp_path / "few.yaml"


@pytest.mark.slow
def test_a_training_set_that_is_not_there_is_said_everywhere(experiment, tmp_path, caplog):
    fedsim.check(experiment)
    assert NOTE in caplog.text
    caplog.clear()
    result = fedsim.run(experiment, out=tmp_path)
    assert NOTE in caplog.text
    assert result.summary["notes"] == [NOTE]
    assert json.loads((result.path / "summary.json").read_text())["notes"] == [NOTE]
    assert NOTE in (result.path / "report.html").read_text()
    (result.path / "summary.json").unlink()  # as of a run that was stopped
    assert NOTE in fedsim.report(result.path).read_text()


def test_the_command_line_says_it(experiment):
    done = subprocess.run(
        [sys.executable, "-m", "fedsim", "check", str(experiment)],
        capture_output=True,
        text=True,
        check=True,
        cwd=experiment.parent,
    )
    assert done.stderr == f"{NOTE}\n"
    assert done.stdout.splitlines()[0] == f"{experiment}: few is fine"
    assert "note: " not in done.stdout


def test_a_broken_download_is_one_line_before_anything_runs(experiment, tmp_path):
    labels = Path(tmp_path / "data" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz")
    labels.write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        fedsim.check(experiment)
    assert str(caught.value) == (
        f"{experiment}:1: data.name: mnist: a part of its train files is in {labels.parent} ({labels.name}), "
        "but not train-images-idx3-ubyte(.gz); download them again, or remove that part"
    )


def test_without_a_note_there_is_none(tmp_path):
    experiment = {"data": {"clients": 2}, "strategy": "dpsgd", "topology": "ring", "stop": {"rounds": 1}}
    found = fedsim.run(experiment, out=tmp_path, timing_only=True, record__report=False)
    assert found.summary["notes"] is None
