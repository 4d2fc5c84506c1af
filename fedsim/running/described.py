"""What the start of a run is recorded with: its world, its data, and how hard they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.learn.curriculum.expert import consistency
from fedsim.learn.sampling import pace_of, steps_taken
from fedsim.running.build import Setup
from fedsim.world.graph import Graph
from fedsim.world.world import World


def describe(setup: Setup) -> dict[str, Any]:
    """Return what the start of a run is recorded with: presence, edges, labels."""
    dataset = setup.dataset
    labels = np.asarray(dataset.y)
    counts = []
    if dataset.classes:
        for client, own in enumerate(setup.owned):
            own_labels = labels[own]
            found, count = np.unique(own_labels[own_labels >= 0], return_counts=True)  # others are padding
            counts += [(client, int(label), int(k)) for label, k in zip(found, count, strict=True)]
    return {**describe_world(setup.world), "labels": counts}


def ordering(setup: Setup) -> dict[str, Any]:
    """Return what there is to record of a curriculum: the pace of a client of median size, and how clients differ."""
    local, samples = setup.experiment.strategy.local, int(np.median(setup.learner.sizes))
    found: dict[str, Any] = {}
    pace = pace_of(local, samples)
    if pace:
        assert local.curriculum is not None  # without one, there is no pace
        rounds = local.curriculum.rounds
        clock, end = ("step", steps_taken(local, samples)) if rounds is None else ("round", rounds + 1)
        found["pace"] = {"clock": clock, "sizes": pace, "end": end}
    judge = _judge(setup)
    if judge:
        known = judge == "known"
        losses = setup.dataset.difficulty if known else setup.learner.engine.data.expert_losses().cpu()
        hard = np.asarray(losses)
        between, within = consistency(hard, setup.owned)
        found |= {"difficulty_between_clients": between, "difficulty_within_clients": within}
        found["difficulty_unit"] = "known difficulty" if known else "loss of the expert"
        found["difficulty_of_clients"] = [round(float(hard[own].mean()), 9) for own in setup.owned]
    return found


def places(graph: Graph) -> list[dict[str, Any]]:
    """Return where nodes are, as far as the topology says so."""
    found = []
    for node in sorted(graph):
        known: dict[str, Any] = graph.nodes[node]
        if "longitude" in known and "latitude" in known:
            place = {key: float(known[key]) for key in ("longitude", "latitude")}
            router = bool(known.get("router"))
            found.append({"node": node, "name": str(known.get("name", node)), "router": router, **place})
    return found


def _judge(setup: Setup) -> str:
    """Say who tells how hard samples are: whom the partition asked, the data, or an expert that is used anyway."""
    partition, local = setup.experiment.data.partition, setup.experiment.strategy.local.paced
    if partition.name == "by_difficulty":
        return str(partition.params.get("by", "expert"))
    if setup.dataset.difficulty is not None:
        return "known"
    if setup.learner.dry:
        return ""  # nobody asks the expert, and its training takes long
    select = setup.experiment.strategy.select
    asked = local is not None and local.scored and local.score == "expert"
    if select is not None and select.params.get("order") not in ("random", "vanilla"):
        asked |= select.params.get("score") == "expert"
    return "expert" if asked else ""


def describe_world(world: World) -> dict[str, Any]:
    """Return what the start of a run in this world is recorded with: presence and edges."""
    edges = world.network.graph.edges(data=True)
    return {
        "edges": [
            (a, b, e["latency_us"] / 1000, e["bits_per_s"] / 1e6 if e["bits_per_s"] else None)
            for a, b, e in edges
        ],
        "presence": [(0, node.id, int(node.online)) for node in world.nodes],
    }
