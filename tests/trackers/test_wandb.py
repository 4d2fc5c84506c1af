"""Offline runs of Weights & Biases, read by its own messages from the file that it would send."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim import parts
from tests.trackers.conftest import GIVEN, Made, curve, sent

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

HEADER, BLOCK = 7, 32768


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the environment ask for what must not be."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")


def pieces(file: Path) -> Iterator[bytes]:
    """Yield the messages of a file: pieces of blocks, each with a checksum, a length and its kind."""
    data, at, message = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        message += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


def messages(run: Path) -> list[Any]:
    [file] = (run / "wandb").glob("offline-run-*/*.wandb")
    kind = parts.library("wandb.proto.wandb_internal_pb2").Record
    return [kind.FromString(piece) for piece in pieces(file)]


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {
            item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
            for item in one.history.item
        }
        for one in messages(run)
        if one.HasField("history")
    ]


def test_an_offline_run_has_every_round_once_also_where_the_run_went_on(tracked: Made) -> None:
    run = tracked("wandb", broken=True)
    found = rows(run.path)
    assert [row["_step"] for row in found] == [0, 1, 2, 3, 4]
    for name, wanted in {"accuracy": curve(run.path, "accuracy"), "bytes_up": sent(run.path)}.items():
        got = [(row["_step"], row["sim_time_s"], row[name]) for row in found if name in row]
        assert got == [pytest.approx(one) for one in wanted]
    [about] = [one.run for one in messages(run.path) if one.HasField("run")]
    assert (about.project, about.display_name) == ("fedsim", run.path.name)
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["strategy"]["name"] == "fedavg"
    [exit] = [one.exit for one in messages(run.path) if one.HasField("exit")]
    assert exit.exit_code == 0
    [folder] = (run.path / "wandb").glob("offline-run-*")
    assert (folder / "files" / "experiment.yaml").read_text() == (run.path / "experiment.yaml").read_text()


def test_runs_that_advance_together_have_a_run_each(tmp_path: Path) -> None:
    record = {"report": False, "trackers": ["wandb"]}
    study = {"name": "two", "base": {**GIVEN, "record": record}, "vary": {"seed": [1, 2]}}
    for one in fedsim.sweep(study, out=tmp_path, jobs=2, together=True):
        assert one.folder is not None
        assert [row["bytes_up"] for row in rows(one.folder)] == [row[2] for row in sent(one.folder)]
