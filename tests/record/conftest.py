"""A made-up run with everything that a run can leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from fedsim.record import Record
from fedsim.rng import stream

SECOND = 1_000_000


def fake_run(
    run: Path,
    clients: int = 8,
    rounds: int = 40,
    *,
    peers: bool = False,
    training: bool = True,
    ended: bool = True,
    events: bool = True,
) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    (run / "experiment.yaml").write_text(
        f"name: made-up <{clients}>\nseed: 7\nstrategy:\n  name: {'dpsgd' if peers else 'fedamd'}\n"
    )
    graph = nx.random_regular_graph(4, clients, seed=7) if peers else nx.star_graph(clients)
    count = graph.number_of_nodes()
    draw = stream(7, "fake")
    size = 44_000 * 4
    with Record(run) as record:
        record.fact("target_accuracy", 0.85)
        record.write("edges", [(a, b, float(draw.uniform(5, 80)), 10.0) for a, b in graph.edges])
        record.write("labels", _labels(draw, clients, first=count - clients))
        end_us = rounds * 9 * SECOND
        _presence(record, draw, range(count - clients, count), end_us)
        if not peers:
            record.presence(0, 0, True)
        spread = draw.gamma(20, 1 / 20, count)
        for round in range(rounds + 1):
            time_us = round * 9 * SECOND
            if training:
                _measure(record, draw, round, time_us, count if peers else 0)
            sent = round * size * clients * 2
            got, jobs = int(sent * 0.97), round * clients
            if events and round:
                _work(record, draw, round, [(e[0], e[1]) for e in graph.edges], peers)
            record.round(round, time_us, sent, got, sent - got, 640 * jobs, 31 * jobs, jobs)
        for node in (3, 1):
            record.event(node * 40 * SECOND, "crash", node, round=node * 4)
        if ended:
            load = np.where(np.arange(count) < count - clients, clients, 1.0) * spread * rounds * size
            for node in range(count):
                sent = int(load[node])
                row = (node, _role(node, peers), sent, int(sent * 0.97), 0, 640.0 * rounds, 31.0 * rounds)
                busy_us = int(rounds * SECOND * spread[node])
                record.write("nodes", [(*row, busy_us, 7 * rounds * SECOND, SECOND, busy_us // 20, 2.5)])
    if ended:
        (run / "summary.json").write_text(
            json.dumps(_summary(rounds, training, peers, clients * size * rounds * 2))
        )
    return run


def _role(node: int, peers: bool) -> str:
    return "peer" if peers else "client" if node else "server"


def _labels(draw: np.random.Generator, clients: int, first: int) -> list[tuple[int, int, int]]:
    shares = draw.dirichlet([0.5] * 10, clients)
    return [(first + c, y, int(600 * shares[c, y])) for c in range(clients) for y in range(10)]


def _presence(record: Record, draw: np.random.Generator, ids: range, end_us: int) -> None:
    for node in ids:
        online, time_us = bool(draw.random() < 0.8), 0
        while time_us < end_us:
            record.presence(time_us, node, online)
            time_us += int(draw.exponential(60 if online else 20) * SECOND) + 1
            online = not online


def _work(record: Record, draw: np.random.Generator, round: int, edges: list, peers: bool) -> None:
    """Everybody computes, and sends what came out over its links; the last transfer ends the round."""
    start_us = (round - 1) * 9 * SECOND
    events = []
    for a, b in edges if not peers else edges + [(b, a) for a, b in edges]:
        got, done, sent = start_us + np.sort(draw.integers(1, 9 * SECOND, 3))
        if not peers:
            events += [(start_us, "send", a, b, 100), (got, "deliver", b, a, 100)]
        worker, other = (a, b) if peers else (b, a)
        events += [(got, "compute", worker, -1, 32), (done, "done", worker, -1, 32)]
        events += [(done, "send", worker, other, 100)]
        end = ("lost", worker, other, 40) if draw.random() < 0.1 else ("deliver", other, worker, 100)
        events += [(sent, *end)]
    for time_us, kind, node, peer, size in sorted(events, key=lambda event: event[0]):
        record.event(int(time_us), kind, node, peer, size, round)


def _measure(record: Record, draw: np.random.Generator, round: int, time_us: int, peers: int) -> None:
    accuracy = 0.92 - 0.8 * np.exp(-round / 9) + draw.normal(0, 0.008)
    record.metric(round, time_us, "accuracy", accuracy)
    record.metric(round, time_us, "loss", 2.3 * np.exp(-round / 10) + 0.2)
    if round:
        record.metric(round, time_us, "train_loss", 2.2 * np.exp(-round / 8) + 0.05)
    for node in range(peers):
        record.metric(round, time_us, "accuracy", accuracy - 0.05 + 0.1 * draw.random(), node)
    if peers:
        record.metric(round, time_us, "loss_max", 4.0)


def _summary(rounds: int, training: bool, peers: bool, sent: int) -> dict[str, object]:
    return {
        "name": "made-up", "strategy": "dpsgd" if peers else "fedamd", "seed": 7, "rounds": rounds,
        "sim_time_s": rounds * 9.0, "wall_time_s": 12.5, "accuracy": 0.9123 if training else None,
        "best_accuracy": 0.9234 if training else None, "loss": 0.21 if training else None, "bytes_up": sent,
        "bytes_down": int(sent * 0.97), "bytes_lost": sent - int(sent * 0.97), "bytes_max_node": sent // 2,
        "bytes_min_node": 1000, "work_samples": 1000.0, "wasted_samples": 50.0, "event_hash": "e" * 64,
        "weights_hash": "a" * 64 if training else None, "run_hash": "b" * 64,
        "time_to_target_s": 190.0 if training else None, "busy_s": 320.0, "idle_s": 2240.0, "offline_s": 8.0,
        "wasted_s": 16.0, "joules": 20.0, "memory_mb": None, "assumed": None,
    }  # fmt: skip


@pytest.fixture(name="fake_run")
def fixture() -> Callable[..., Path]:
    return fake_run
