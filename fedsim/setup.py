"""From an experiment to everything that a run needs, before t=0: whatever can be refused is refused here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from fedsim import parts
from fedsim.config import Experiment
from fedsim.errors import MISSING, BadValue, ConfigError, Problem
from fedsim.learn import build as learning
from fedsim.learn.data import Dataset
from fedsim.learn.learner import Learner
from fedsim.logs import quiet
from fedsim.peer import PeerStrategy
from fedsim.world import world as worlds
from fedsim.world.graph import Graph
from fedsim.world.world import World


@dataclass(frozen=True)
class Setup:
    """A run that is ready to begin.

    Args:
        experiment: what is to be done.
        strategy: a :class:`PeerStrategy`, or one of Flower's.
        world: the event plane.
        learner: the compute plane.
        graph: the topology.
        dataset: the data.
        owned: the training samples of each client.
    """

    experiment: Experiment
    strategy: Any
    world: World
    learner: Learner
    graph: Graph
    dataset: Dataset
    owned: list[np.ndarray]

    @property
    def has_server(self) -> bool:
        """Whether the strategy is one of Flower's."""
        return not isinstance(self.strategy, PeerStrategy)


def prepare(experiment: Experiment, dry: bool = False) -> Setup:
    """Build everything that an experiment describes.

    Args:
        experiment: the experiment.
        dry: keep time only.

    Raises:
        ConfigError: if any part is unknown, refuses its parameters, or does not fit the others.
    """
    mistakes: list[Problem] = []
    with _collect(mistakes):
        strategy = make_strategy(experiment)
        if dry:
            check_timing_only(experiment, strategy)
        server = not isinstance(strategy, PeerStrategy)
        graph = make_graph(experiment, server)
    with _collect(mistakes):
        learner, dataset, owned = learning.build(experiment, dry)
    with _collect(mistakes), experiment.blame("churn"):
        supplied = dict.fromkeys(("node", "rng", "n"))
        parts.check(parts.find("churn", experiment.churn.name), experiment.churn.params, supplied)
    for index, fault in enumerate(experiment.faults):
        with _collect(mistakes), experiment.blame("faults", index):
            parts.check(parts.find("faults", fault.name), fault.params, {"world": 0, "rng": 0})
    if mistakes:
        raise ConfigError(mistakes)
    world = worlds.build(experiment, graph, server)
    worlds.start(world, experiment)
    return Setup(experiment, strategy, world, learner, graph, dataset, owned)


@contextmanager
def _collect(mistakes: list[Problem]) -> Iterator[None]:
    """Keep the mistakes of one step, so that the next step can report its own as well."""
    try:
        yield
    except ConfigError as error:
        mistakes.extend(error.problems)


def make_strategy(experiment: Experiment) -> Any:
    """Make the strategy and check it against the number of clients."""
    block = experiment.strategy
    with experiment.blame("strategy"):
        part = parts.find("strategies", block.name)
        supplied = {"local": block.local, "seed": experiment.seed, "timeout_s": block.timeout_s}
        with quiet("flwr"):
            strategy = parts.call(part, block.params, supplied)
        if isinstance(strategy, PeerStrategy):
            for key, default in (("quorum", 1.0), ("retries", 0)):
                if getattr(block, key) != default:
                    rule = f"belongs to a server, and {block.name} has only peers"
                    raise BadValue(key, getattr(block, key), rule)
        else:
            from fedsim.flower.server import check_strategy

            check_strategy(strategy, experiment.data.clients)
    return strategy


def make_graph(experiment: Experiment, server: bool) -> Graph:
    """Make the topology: one node for each client or peer, and one more, the last, for a server."""
    size = experiment.data.clients + server
    with experiment.blame("topology"):
        if size == 1:
            alone = Graph()
            alone.add_node(0)
            return alone
        part = parts.find("topologies", experiment.topology.name)
        graph: Graph = parts.call(part, experiment.topology.params, {"n": size, "seed": experiment.seed})
        _check_graph(experiment.topology.name, graph, size)
    return graph


def _check_graph(name: str, graph: Any, size: int) -> None:
    if not isinstance(graph, nx.Graph) or graph.is_directed():
        raise BadValue("name", name, "must return an undirected networkx.Graph")
    if sorted(graph) != list(range(size)):
        raise BadValue("name", name, f"must return a graph with the nodes 0 to {size - 1}")
    for a, b, edge in graph.edges(data=True):
        for key, least in (("latency_ms", 0.0), ("mbps", 1e-6)):
            value = edge.get(key, 1.0)
            if not (isinstance(value, int | float) and least <= value < math.inf):
                raise BadValue(
                    "name", name, f"gives edge {a}-{b} {key} = {value!r}; it must be at least {least:g}"
                )
    if not nx.is_connected(graph):
        count = nx.number_connected_components(graph)
        raise BadValue("name", name, f"must return a connected graph; this one has {count} components")


def check_timing_only(experiment: Experiment, strategy: Any) -> None:
    """Refuse to keep time only where what happens depends on values.

    Raises:
        ConfigError: naming the choice that does.
    """
    if experiment.stop.target is not None:
        with experiment.blame("stop"):
            rule = "a timing-only run has no accuracy to compare with"
            raise BadValue("target", MISSING, rule, "leave it out with --set stop.target=null")
    declared = getattr(strategy, "timing_depends_on_values", None)
    if declared is None and type(strategy).__module__.startswith("flwr."):
        declared = False  # none of Flower's own strategies chooses clients by values
    if declared is not False:
        with experiment.blame("strategy"):
            name = type(strategy).__name__
            why = "its choices depend on values" if declared else "it does not say whether its choices do not"
            hint = "" if declared else f"if they do not, set {name}.timing_depends_on_values = False"
            raise BadValue("name", experiment.strategy.name, f"cannot run timing-only: {why}", hint)


def describe(setup: Setup) -> dict[str, Any]:
    """Return what the start of a run is recorded with: presence, edges, labels."""
    world, dataset = setup.world, setup.dataset
    edges = world.network.graph.edges(data=True)
    labels = np.asarray(dataset.y)
    counts = []
    if dataset.classes:
        for client, own in enumerate(setup.owned):
            found, count = np.unique(labels[own], return_counts=True)
            counts += [(client, int(label), int(k)) for label, k in zip(found, count, strict=True)]
    return {
        "edges": [
            (a, b, e["latency_us"] / 1000, e["bits_per_s"] / 1e6 if e["bits_per_s"] else None)
            for a, b, e in edges
        ],
        "labels": counts,
        "presence": [(0, node.id, int(node.online)) for node in world.nodes],
    }
