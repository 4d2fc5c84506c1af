"""What a run says of the nodes' time, energy and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.errors import ConfigError
from fedsim.learn.local import LocalSGD
from fedsim.record.store import read
from fedsim.running.build import Setup, prepare
from fedsim.running.memory import check_memory, held_bytes, need_mb
from fedsim.world.devices import Kit
from fedsim.world.traces.files import Device, write

SECOND = 1_000_000
PACE_S = [0.01, 0.02, 0.03, 0.1]


def experiment(tmp_path: Path, **blocks: Any) -> dict[str, Any]:
    """Four clients with speeds of their own, and a network without latency or limits."""
    path = tmp_path / "speeds.csv"
    write(path, tuple(Device(pace) for pace in PACE_S))
    base: dict[str, Any] = {"data": {"clients": 4}, "model": "softmax", "stop": {"rounds": 6}}
    base["strategy"] = {"name": "fedavg", "fraction_evaluate": 0.0, "quorum": 0.75}
    base["record"] = {"report": False}
    return {**base, "devices": {"trace": str(path)}, **blocks}


def dry(given: dict[str, Any], out: Path) -> fedsim.Result:
    return fedsim.run(given, out=out, timing_only=True)


def ready(**blocks: Any) -> Setup:
    base = {"data": {"clients": 4}, "model": "softmax", "strategy": "fedavg", "stop": {"rounds": 1}}
    return prepare(fedsim.load({**base, **blocks}))


# time


def test_replies_after_the_quorum_are_wasted_seconds(tmp_path: Path) -> None:
    result = dry(experiment(tmp_path), tmp_path)
    nodes = read(result.path, "nodes")
    for node, pace_s in enumerate(PACE_S):
        done_us = nodes["work"][node] * pace_s * SECOND
        assert nodes["busy_us"][node] >= done_us * (1 - 1e-9)  # the last one may still be at work
        assert nodes["wasted_us"][node] == pytest.approx(nodes["wasted"][node] * pace_s * SECOND)
    assert (nodes["wasted_us"][:3] == 0).all()
    assert nodes["wasted"][3] == nodes["work"][3] > 0  # it is always too late
    assert result.summary["wasted_s"] == nodes["wasted_us"][3] / SECOND


def test_the_summary_adds_up_the_clients_time(tmp_path: Path) -> None:
    churn = {"name": "exponential", "online_s": 20, "offline_s": 5}
    result = dry(experiment(tmp_path, churn=churn, seed=3), tmp_path)
    summary, nodes = result.summary, read(result.path, "nodes")
    clients = nodes["role"] == "client"
    for name in ("busy", "idle", "offline", "wasted"):
        assert summary[f"{name}_s"] == nodes[f"{name}_us"][clients].sum() / SECOND
    total = summary["busy_s"] + summary["idle_s"] + summary["offline_s"]
    assert total == pytest.approx(4 * summary["sim_time_s"])
    assert summary["offline_s"] > 0
    assert 0 < summary["wasted_s"] <= summary["busy_s"]


def test_training_changes_nothing_about_time(tmp_path: Path) -> None:
    given = experiment(tmp_path, devices={"seconds_per_sample": 0.01, "joules_per_byte": 0.5})
    keys = ("busy_s", "idle_s", "offline_s", "wasted_s", "joules")
    full, alone = fedsim.run(given, out=tmp_path).summary, dry(given, tmp_path).summary
    assert {key: full[key] for key in keys} == {key: alone[key] for key in keys}
    assert full["wasted_s"] == 0  # replies at one moment are all in time


def test_peers_have_no_server_to_throw_their_work_away(tmp_path: Path) -> None:
    given = experiment(tmp_path, strategy="dpsgd", topology="ring")
    summary = dry(given, tmp_path).summary
    assert summary["wasted_s"] == summary["offline_s"] == 0
    assert summary["busy_s"] > 0


# energy


def test_energy_is_work_and_bytes_in_every_place(tmp_path: Path) -> None:
    given = experiment(tmp_path)
    given["devices"] |= {"joules_per_sample": 0.5, "joules_per_byte": 0.001}
    result = dry(given, tmp_path)
    nodes = read(result.path, "nodes")
    sizes = nodes["bytes_up"] + nodes["bytes_down"]
    assert nodes["joules"][:4].tolist() == pytest.approx((0.5 * nodes["work"] + 0.001 * sizes)[:4].tolist())
    assert nodes["joules"][4] != nodes["joules"][4]  # NaN: nothing is counted at the server
    assert result.summary["joules"] == pytest.approx(nodes["joules"][:4].sum())


def test_counting_energy_and_memory_changes_no_event(tmp_path: Path) -> None:
    given = experiment(tmp_path)
    plain = dry(given, tmp_path).summary
    given["devices"] |= {"joules_per_sample": 0.5, "joules_per_byte": 0.001, "memory_mb": 1}
    rich = dry(given, tmp_path).summary
    assert rich["event_hash"] == plain["event_hash"]
    assert plain["joules"] is plain["memory_mb"] is None
    assert rich["joules"] > 0


# memory


@pytest.mark.parametrize(
    ("local", "held", "width"),
    [
        # 650 weights of 4 bytes; learning rate, loss and steps; a gradient comes on top
        ({"batch_size": 32}, 2600 + 12, 32),
        ({"batch_size": 8}, 2600 + 12, 8),
        ({"batch_size": 32, "momentum": 0.9}, 2 * 2600 + 12, 32),
    ],
)
def test_the_memory_of_local_sgd(local: dict[str, Any], held: int, width: int) -> None:
    strategy = {"name": "fedavg", "local": local}
    setup = ready(strategy=strategy, devices={"memory_mb": 1})
    # a sample has 64 numbers of 4 bytes and a label of 8
    needed = (held + 2600 + width * (64 * 4 + 8)) / 1e6
    assert setup.needs_mb == pytest.approx([needed] * 4)


def test_double_precision_takes_twice_the_memory_for_weights() -> None:
    setup = ready(compute={"dtype": "float64"}, devices={"memory_mb": 1})
    update = LocalSGD(setup.experiment.strategy.local)
    assert held_bytes(setup.learner.engine, update) == 2 * (2600 + 12)


def test_the_update_that_needs_the_most_counts() -> None:
    setup = ready()
    small, large = (
        LocalSGD(setup.experiment.strategy.local.model_copy(update={"batch_size": size})) for size in (1, 64)
    )
    engine = setup.learner.engine
    assert need_mb(engine, [small, large]) == need_mb(engine, [large]) > need_mb(engine, [small])


def test_all_that_a_full_batch_takes_is_the_clients_own_data() -> None:
    strategy = {"name": "fedavg", "local": {"batch_size": None}}
    setup = ready(strategy=strategy, devices={"memory_mb": 10})
    sizes = setup.learner.sizes
    assert setup.needs_mb == pytest.approx([(2600 + 12 + 2600 + size * 264) / 1e6 for size in sizes])


def test_who_is_too_small_is_said_before_the_run() -> None:
    classes = [
        {"share": 0.5, "seconds_per_sample": 1, "memory_mb": 0.005},
        {"share": 0.5, "seconds_per_sample": 1, "memory_mb": 1},
    ]
    with pytest.raises(ConfigError) as caught:
        ready(devices={"classes": classes})
    line = str(caught.value)
    assert line.startswith("devices.memory_mb: 2 of 4 clients are too small: client ")
    assert "has 0.005 MB, and local training needs 0.01366 MB" in line


def test_what_just_fits_is_let_in() -> None:
    check_memory([Kit(1, memory_mb=5.0), Kit(1)], [5.0, 1e9])


def test_peers_need_memory_too() -> None:
    blocks = {"strategy": "dpsgd", "topology": "ring"}
    assert ready(**blocks, devices={"memory_mb": 1}).needs_mb == pytest.approx([0.01366] * 4)
    with pytest.raises(ConfigError, match="4 of 4 clients are too small"):
        ready(**blocks, devices={"memory_mb": 0.01})


# the report


def test_the_report_shows_time_energy_and_memory(tmp_path: Path) -> None:
    given = experiment(tmp_path, record={"report": True})
    given["devices"] |= {"joules_per_sample": 0.5, "memory_mb": 1}
    result = dry(given, tmp_path)
    page = (result.path / "report.html").read_text()
    assert "computing while online" in page
    assert ">energy<" in page
    assert ">0.01366 MB<" in page
    assert 'id="hours"' in page
    assert (result.path / "figures" / "hours.png").exists()
