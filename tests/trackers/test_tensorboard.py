"""Event files, as TensorBoard's own reader finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import parts
from fedsim.trackers.tensorboard import files
from tests.trackers.conftest import Made, curve, sent

pytest.importorskip("tensorboard")


def opened(folder: Path) -> Any:
    reader = parts.library("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder / "tensorboard"), {"tensors": 0, "histograms": 0})
    return found.Reload()


def points(events: Any, name: str) -> list[tuple[int, float, float]]:
    return [(one.step, one.wall_time, one.tensor_proto.float_val[0]) for one in events.Tensors(name)]


@pytest.mark.parametrize("broken", [False, True])
def test_points_are_those_of_the_record_at_their_simulated_times(broken: bool, tracked: Made) -> None:
    run = tracked("tensorboard", broken=broken)
    assert len(files(run.path)) == 1
    events = opened(run.path)
    for name, wanted in {"accuracy": curve(run.path, "accuracy"), "bytes_up": sent(run.path)}.items():
        found = points(events, name)
        assert [one[:2] for one in found] == [one[:2] for one in wanted]
        np.testing.assert_allclose([one[2] for one in found], [one[2] for one in wanted], rtol=1e-6)
    [(round, time_s, final)] = points(events, "final/accuracy")
    assert (round, time_s) == (4, run.summary["sim_time_s"])
    assert final == pytest.approx(run.summary["accuracy"])
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| strategy.name | `fedavg` |" in text
    [histogram] = {one for one in events.Tags()["histograms"] if one.startswith("client_accuracy")}
    assert [one.step for one in events.Histograms(histogram)] == [0, 2, 4]
    assert [one.histogram_value.num for one in events.Histograms(histogram)] == [4, 4, 4]  # four clients
    assert events.SummaryMetadata("_hparams_/session_start_info") is not None


def test_the_distributions_can_be_left_out(tracked: Made) -> None:
    events = opened(tracked({"name": "tensorboard", "nodes": False}).path)
    assert events.Tags()["histograms"] == []
