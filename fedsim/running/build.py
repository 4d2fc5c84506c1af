"""From an experiment to everything that a run needs, before t=0: whatever can be refused is refused here."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedsim import parts
from fedsim.errors import MISSING, BadValue, ConfigError, FedsimError, few
from fedsim.learn import build as learning
from fedsim.learn.book import Book
from fedsim.learn.curriculum.expert import consistency
from fedsim.learn.curriculum.update import ordered
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.learn.sampling import pace_of, steps_taken
from fedsim.logs import once
from fedsim.machine import require_threads
from fedsim.methods.around import Central
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.peer import PeerStrategy
from fedsim.methods.rounds import Rounds
from fedsim.methods.select import Selector
from fedsim.methods.traits import Traits
from fedsim.running.held import check_buffers, innermost
from fedsim.running.memory import check_memory, need_mb
from fedsim.running.topology import check_use, make_graph
from fedsim.running.updates import transforms_of, updates_of
from fedsim.running.weighting import choose_weighting
from fedsim.spec.experiment import Experiment, Strategy
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
        needs_mb: the memory that each client needs, where the experiment says how much it has.
    """

    experiment: Experiment
    strategy: Any
    world: World
    learner: Learner
    graph: Graph
    dataset: Dataset
    owned: list[np.ndarray]
    needs_mb: list[float] | None = None

    @property
    def notes(self) -> list[str]:
        """What whoever reads the results must know, one sentence each."""
        return [*filter(None, [self.dataset.note]), *self.world.notes]

    @property
    def has_server(self) -> bool:
        """Whether the strategy is one of Flower's."""
        return not isinstance(self.strategy, PeerStrategy)


def prepare(experiment: Experiment, dry: bool = False, book: Book | None = None) -> Setup:
    """Build everything that an experiment describes.

    Args:
        experiment: the experiment.
        dry: keep time only.
        book: what is remembered of the run's values; None begins anew.

    Raises:
        ConfigError: if any part is unknown, refuses its parameters, or does not fit the others.
    """
    mistakes: list[ConfigError] = []
    pooled, kept = False, Traits.kept
    with experiment.blame("compute"):  # before anything is computed with so many
        require_threads(experiment.compute.threads)
    with _collect(mistakes):
        strategy = make_strategy(experiment)
        pooled, kept = isinstance(strategy, Rounds) and strategy.pooled, Traits.of(strategy).kept
        if dry:
            check_timing_only(experiment, strategy)
        server = not isinstance(strategy, PeerStrategy)
        graph = make_graph(experiment, server)
        check_use(experiment, Traits.of(strategy), graph)
    with _collect(mistakes):
        learner, dataset, owned = learning.build(experiment, dry, pooled, kept)
        _check_personal(experiment, learner)
    with _collect(mistakes), experiment.blame("churn"):
        supplied = dict.fromkeys(("node", "rng", "n"))
        parts.check(experiment.find("churn", experiment.churn.name), experiment.churn.params, supplied)
    for index, fault in enumerate(experiment.faults):
        with _collect(mistakes), experiment.blame("faults", index):
            parts.check(experiment.find("faults", fault.name), fault.params, {"world": 0, "rng": 0})
    if mistakes:
        raise ConfigError([problem for mistake in mistakes for problem in mistake.problems]) from mistakes[0]
    if book is not None:
        learner = replace(learner, book=book)
    check_buffers(experiment, strategy, learner.engine.task)
    if dry and depends_on_values(strategy) is not False:
        learner = replace(learner, assumed=experiment.assume.numbers)
    if server and not isinstance(strategy, Rounds | Arrivals):
        adapter().say_cost(strategy, learner)
    world = worlds.build(experiment, graph, server)
    needs = None
    if pooled:
        world.equip_server()
    elif any(kit.memory_mb is not None for kit in world.kits):
        needs = need_mb(learner.engine, _updates(strategy, experiment))
        with experiment.blame("devices"):
            check_memory(world.kits, needs)
    worlds.start(world, experiment)
    return Setup(experiment, strategy, world, learner, graph, dataset, owned, needs)


@contextmanager
def _collect(mistakes: list[ConfigError]) -> Iterator[None]:
    """Keep the mistakes of one step, so that the next step can report its own as well."""
    try:
        yield
    except ConfigError as error:
        mistakes.append(error)


def _check_personal(experiment: Experiment, learner: Learner) -> None:
    """Refuse to measure what clients get where they have nothing to measure it on."""
    steps, hint = experiment.evaluate.personal, "set data.client_test_share, such as 0.2"
    if steps is None:
        return
    with experiment.blame("evaluate"):
        if not learner.tests:
            rule = "is measured on what clients have held out, and they have held out nothing"
            raise BadValue("personal", steps, rule, hint)
        bare = [client for client, own in enumerate(learner.tests) if not len(own)]
        if bare:
            rule = (
                f"is measured on the dataset's own test, in which there is no sample of clients {few(bare)}"
            )
            raise BadValue("personal", steps, rule, hint)


def adapter() -> Any:
    """Return what makes, checks and runs strategies that are not ours: Flower's, and those written for it."""
    [found] = parts.adapters()
    return found


def make_strategy(experiment: Experiment) -> Any:
    """Make the strategy and check it against the number of clients."""
    block = experiment.strategy
    with experiment.blame("strategy"):
        part = experiment.find("strategies", block.name)
        supplied: dict[str, Any] = {
            "local": block.local,
            "seed": experiment.seed,
            "timeout_s": block.timeout_s,
        }
        select = make_selector(experiment)
        if select is not None:
            supplied["select"] = select
        strategy = _call(part, block, supplied)
        if isinstance(strategy, PeerStrategy):
            _check_peers(block)
            strategy.check(experiment.data.clients)
            _order(strategy, block)
            return strategy
    if isinstance(strategy, Rounds | Arrivals):
        return _as_method(experiment, part, strategy, select)
    return adapter().as_server(experiment, part, strategy, select)


def _call(part: parts.Part, block: Strategy, supplied: dict[str, Any]) -> Any:
    """Make the strategy; whatever its constructor raises has to do with its parameters, or with its own code."""
    if not (isinstance(part, type) and issubclass(part, PeerStrategy | Rounds | Arrivals)):
        part = adapter().maker(part, block.local)
    try:
        with once("flwr", "fraction_evaluate is set to 0"):
            return parts.call(part, block.params, supplied)
    except FedsimError:
        raise
    except Exception as error:
        text = str(error).strip().rstrip(".")
        key = next((key for key in block.params if re.search(rf"\b{re.escape(key)}\b", text)), None)
        if key is not None:
            raise BadValue(key, block.params[key], text) from error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        rule = f"cannot be made with these parameters: {type(error).__name__}: {text}"
        raise BadValue("name", block.name, rule, f"raised at {frame.filename}:{frame.lineno}") from error


def _order(strategy: PeerStrategy, block: Strategy) -> None:
    """Put the curriculum, if there is one, around what the peers of a strategy train with."""
    own = {} if strategy.update is None else {"train": strategy.update}
    if own or block.local.curriculum is not None or block.local.lr_decay:
        strategy.update = ordered(own, block.local)["train"]


def make_selector(experiment: Experiment) -> Any:
    """Make what chooses the clients of a round; None if the experiment names nothing."""
    block = experiment.strategy.select
    if block is None:
        return None
    supplied = {"seed": experiment.seed, "timeout_s": experiment.strategy.timeout_s}
    with experiment.blame("strategy", "select"):
        select = parts.call(experiment.find("selectors", block.name), block.params, supplied)
        if not isinstance(select, Selector):
            raise BadValue("name", block.name, "is not a selector; it is no fedsim.methods.select.Selector")
        select.check(experiment.data.clients)
    return select


def _check_peers(block: Strategy) -> None:
    defaults = {"on_failure": "stop", "quorum": 1.0, "retries": 0}
    defaults |= {"select": None, "weighting": None, "around": []}
    for key, default in defaults.items():
        value = getattr(block, key)
        if value != default:
            shown = MISSING if key in ("select", "around") else value
            raise BadValue(key, shown, f"belongs to a server, and {block.name} has only peers")


def _as_method(experiment: Experiment, part: parts.Part, method: Any, select: Any) -> Any:
    """Check a method of ours, and tell it how to weigh replies and what goes around it."""
    block, transforms = experiment.strategy, transforms_of(experiment)
    with experiment.blame("strategy"):
        method.check(experiment.data.clients)
        if select is not None and "select" not in parts.parameters(part):
            rule = f"{block.name} chooses its clients in a way of its own and takes no selector"
            raise BadValue("select", MISSING, rule, "leave strategy.select out")
        method.check_around(transforms)
        name = type(method).__name__
        chosen = choose_weighting(name, method.weighted, method.select, block.weighting)
        method.weighting = chosen or method.weighting
        method.central = [one for one in transforms if isinstance(one, Central)]
    updates_of(method, experiment)
    return method


def _updates(strategy: Any, experiment: Experiment) -> list[LocalUpdate]:
    """Return what clients or peers compute: a strategy's own updates, or plain local SGD."""
    if isinstance(strategy, PeerStrategy):
        return [strategy.update or LocalSGD(experiment.strategy.local)]
    return list(updates_of(strategy, experiment).values())


def depends_on_values(strategy: Any) -> bool | None:
    """Tell whether what happens when depends on computed numbers; None if the strategy does not say."""
    traits = Traits.of(strategy)
    declared = traits.timing_depends_on_values
    if traits.selector is not None and traits.selector.timing_depends_on_values:
        return True
    if declared is None and type(innermost(strategy)).__module__.startswith("flwr."):
        return False  # none of Flower's own strategies chooses clients by values
    return declared


def check_timing_only(experiment: Experiment, strategy: Any) -> None:
    """Refuse to keep time only where what happens depends on values, and nothing is assumed of them.

    Raises:
        ConfigError: naming the choice that does.
    """
    _check_target(experiment)
    depends = depends_on_values(strategy)
    if depends is not False and not experiment.assume.numbers:
        with experiment.blame("strategy"):
            name = type(innermost(strategy)).__name__
            why = "its choices depend on values" if depends else "it does not say whether its choices do not"
            asked = ["loss"] if experiment.strategy.select is not None else []  # what selectors ask for
            sent = [name for one in _updates(strategy, experiment) for name in one.metrics]
            names = dict.fromkeys([*asked, *sent])
            hint = f"say what to assume of them: assume: {{{', '.join(f'{one}: 1.0' for one in names)}}}"
            if not depends:
                hint = f"if they do not, set {name}.timing_depends_on_values = False; if they do, {hint}"
            raise BadValue("name", experiment.strategy.name, f"cannot run timing-only: {why}", hint)


def _check_target(experiment: Experiment) -> None:
    stop, assumed = experiment.stop, experiment.assume.accuracy
    if stop.target is None:
        return
    with experiment.blame("stop"):
        if assumed is None:
            hint = "leave it out with --set stop.target=null, or say what to assume: --set assume.accuracy=1"
            raise BadValue("target", MISSING, "a timing-only run has no accuracy to compare with", hint)
        if assumed < stop.target.accuracy and stop.rounds is None and stop.sim_time_s is None:
            rule = f"the assumed accuracy of {assumed:g} never reaches {stop.target.accuracy:g}"
            raise BadValue("target", MISSING, rule, "give stop.rounds or stop.sim_time_s as well")


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
