"""CHOCO-SGD: copies at both ends, compressed sizes, and what becomes of lost messages."""

from __future__ import annotations

import numpy as np
import pytest
from peer_lab import HEADER, drive, experiment, initial, step

from fedsim import api
from fedsim.errors import ConfigError
from strategies.peer.choco import Choco
from topologies.graphs import ring
from topologies.mixing import metropolis_hastings


def test_uncompressed_at_full_pace_it_is_dpsgd(tmp_path):
    whole = {"share": 1.0, "pace": 1.0}
    choco = drive(experiment("choco", 5, "ring", 4, whole), tmp_path / "choco")
    dpsgd = drive(experiment("dpsgd", 5, "ring", 4), tmp_path / "dpsgd")
    assert np.abs(choco.models - dpsgd.models).max() < 1e-12


def top_one(rows):
    """Keep the largest number of each row."""
    kept = np.zeros_like(rows)
    at = np.abs(rows).argmax(1)
    kept[np.arange(len(rows)), at] = rows[np.arange(len(rows)), at]
    return kept


def test_three_rounds_of_top_one_by_hand(tmp_path):
    done = drive(experiment("choco", 5, "ring", 3, {"share": 0.5, "pace": 0.4}), tmp_path)
    mixing, models = metropolis_hastings(ring(5)), initial(done.setup)
    copies = models.copy()
    for _ in range(3):
        models = step(done.setup, models)
        copies = copies + top_one(models - copies)
        models = models + 0.4 * (mixing @ copies - copies)
    assert np.abs(done.models - models).max() < 1e-12


class Apart(Choco):
    """Trains in the first round only."""

    def run(self, node):
        once = yield from node.train(self.update, node.initial_model, 1)
        mine, theirs = (dict.fromkeys(node.neighbours, node.initial_model) for _ in range(2))
        self.seen = getattr(self, "seen", {}) | {node.id: (mine, theirs)}
        node.start(self.listen(node, theirs))
        for round in node.rounds():
            yield node.node.back()
            self.tell(node, once, mine, round)
            heard = yield from node.receive_models(node.neighbours, round, self.timeout_s, "heard")
            once = self.mix(node.id, once, mine, heard)
            node.finish(round, once)


@pytest.mark.parametrize("params", [{"share": 0.5}, {"compression": "quantised"}])
def test_models_come_together_under_compression(params, tmp_path):
    given = experiment(f"{__name__}:Apart", 5, "ring", 150, params)
    done = drive(given, tmp_path)
    trained = step(done.setup, initial(done.setup))
    assert np.abs(trained - trained.mean(0)).max() > 0.05
    assert np.abs(done.models - trained.mean(0)).max() < 1e-4
    assert np.abs(done.models.mean(0) - trained.mean(0)).max() < 1e-12


def test_both_ends_of_a_link_hold_the_same_whatever_was_lost(tmp_path):
    faults = [
        {"name": "message_loss", "probability": 0.3},
        {"name": "message_duplication", "probability": 0.3},
    ]
    given = experiment(f"{__name__}:Apart", 5, "ring", 12, {"share": 0.5, "timeout_s": 1.0}, faults=faults)
    done = drive(given, tmp_path)
    assert done.lost > 0
    done.run.world.clock.run(until=done.run.world.clock.now + 900_000)  # what is on its way arrives
    ends = done.setup.strategy.seen
    for i, (mine, _) in ends.items():
        for j, copy in mine.items():
            assert np.abs(copy.value().numpy() - ends[j][1][i].value().numpy()).max() < 1e-12, (i, j)


@pytest.mark.parametrize(
    ("params", "size"),
    [
        ({"share": 0.5}, 1 * (8 + 4)),  # one of two numbers and its place
        ({"share": 1.0}, 2 * (8 + 4)),
        ({"compression": "quantised"}, 2 * 1 + 8),  # a byte each, and the scale
        ({"compression": "quantised", "bits": 16}, 2 * 2 + 8),
    ],
)
def test_bytes_count_the_compressed_size(params, size, tmp_path):
    done = drive(experiment("choco", 5, "ring", 3, params), tmp_path)
    assert done.sent == [3 * 2 * (size + HEADER)] * 5


def test_a_neighbour_that_is_not_heard_is_left_out(tmp_path):
    faults = [{"name": "crash", "at_s": 0.0, "nodes": [0]}]
    params = {"share": 1.0, "pace": 1.0, "timeout_s": 3.0}
    done = drive(experiment("choco", 3, "complete", 1, params, faults=faults), tmp_path)
    models = step(done.setup, initial(done.setup))
    assert np.abs(done.models[1] - (2 * models[1] + models[2]) / 3).max() < 1e-12
    assert done.run.world.clock.now_s == pytest.approx(3.004)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"share": 0.0}, "strategy.share: 0.0: "),
        ({"pace": 1.5}, "strategy.pace: 1.5: "),
        ({"bits": 4}, "strategy.bits: 4: "),
        ({"compression": "zip"}, "strategy.compression: "),
    ],
)
def test_bad_parameters(params, text):
    with pytest.raises(ConfigError) as caught:
        api.check(experiment("choco", 4, params=params))
    assert str(caught.value).startswith(text)
