from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from fedsim.spec.experiment import Experiment, load
from fedsim.world import world as worlds
from fedsim.world.world import World

sys.path.insert(0, str(Path(__file__).parent))  # experiments of these tests name parts that live beside them


@pytest.fixture(scope="session")
def describe() -> Callable[..., Experiment]:
    """Make an experiment with as many clients as asked for; further blocks are given by name."""

    def describe(clients: int, **blocks: Any) -> Experiment:
        base = {"data": {"clients": clients}, "strategy": "fedavg", "stop": {"rounds": 1}}
        return load({**base, **blocks})

    return describe


@pytest.fixture(scope="session")
def make(describe: Callable[..., Experiment]) -> Callable[..., World]:
    """Build a world of peers, or of clients and a server, over a graph."""

    def make(graph: nx.Graph, server: bool = False, start: bool = False, **blocks: Any) -> World:
        experiment = describe(len(graph) - server, **blocks)
        world = worlds.build(experiment, graph, server)
        if start:
            worlds.start(world, experiment)
        return world

    return make


@pytest.fixture(scope="session")
def watch() -> Callable[[World], list[tuple[int, str, int, int, int, int]]]:
    """Listen to a world's log; the list grows as (time_us, kind, node, peer, size, round) happen."""

    def watch(world: World) -> list[tuple[int, str, int, int, int, int]]:
        events: list[tuple[int, str, int, int, int, int]] = []
        world.log.listen(lambda *event: events.append(event))
        return events

    return watch
