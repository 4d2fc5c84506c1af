"""From an experiment to everything that a run needs, before t=0: whatever can be refused is refused here."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fedsim import parts
from fedsim.errors import MISSING, BadValue, ConfigError, FedsimError, few
from fedsim.learn import build as learning
from fedsim.learn.book import Book
from fedsim.learn.curriculum.update import ordered
from fedsim.learn.data.datasets import Dataset
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalSGD, LocalUpdate
from fedsim.logs import once
from fedsim.machine import require_threads
from fedsim.methods.around import Central
from fedsim.methods.arrivals import Arrivals
from fedsim.methods.peer import PeerStrategy
from fedsim.methods.rounds import Rounds
from fedsim.methods.select import Selector
from fedsim.methods.traits import Traits
from fedsim.running.cohorts import check_cohorts
from fedsim.running.held import check_buffers, innermost
from fedsim.running.memory import check_budget, check_memory, kept_bytes, need_mb
from fedsim.running.sinks import Sinks, make_sinks
from fedsim.running.topology import check_use, make_graph
from fedsim.running.updates import transforms_of, updates_of
from fedsim.running.weighting import choose_weighting
from fedsim.spec.experiment import Experiment, Strategy
from fedsim.world import world as worlds
from fedsim.world.graph import Graph, talk
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
        kept_bytes: what one client of a server keeps between its visits.
        sinks: where its numbers go besides its record.
    """

    experiment: Experiment
    strategy: Any
    world: World
    learner: Learner
    graph: Graph
    dataset: Dataset
    owned: list[np.ndarray]
    needs_mb: list[float] | None = None
    kept_bytes: int = 0
    sinks: Sinks = field(default_factory=Sinks)

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
        with experiment.blame("record"):
            check_cohorts(experiment.record.cohorts, strategy)
        servers = count_servers(experiment, strategy)
        graph = make_graph(experiment, servers)
        check_use(experiment, Traits.of(strategy), graph)
    with _collect(mistakes):
        learner, dataset, owned = learning.build(experiment, dry, pooled, kept)
        _check_personal(experiment, learner)
    _check_happenings(experiment, mistakes)
    with _collect(mistakes):
        sinks = make_sinks(experiment)
    if mistakes:
        raise ConfigError([problem for mistake in mistakes for problem in mistake.problems]) from mistakes[0]
    if book is not None:
        book.measures = experiment.evaluate.model_dump_json()
        learner = replace(learner, book=book)
    check_buffers(experiment, strategy, learner.engine.task)
    state = _state_bytes(experiment, strategy, learner)
    if dry and depends_on_values(strategy) is not False:
        learner = replace(learner, assumed=experiment.assume.numbers)
    if not isinstance(strategy, Rounds | Arrivals | PeerStrategy):
        adapter().say_cost(strategy, learner)
    world = worlds.build(experiment, graph, servers)
    if isinstance(strategy, PeerStrategy):
        with experiment.blame("strategy"):
            strategy.check_links(talk(graph), [node.id for node in world.servers])
    if pooled:
        world.equip_server()
    needs = None if pooled else _check_devices(experiment, strategy, learner, world)
    worlds.start(world, experiment)
    return Setup(experiment, strategy, world, learner, graph, dataset, owned, needs, state, sinks)


def _check_happenings(experiment: Experiment, mistakes: list[ConfigError]) -> None:
    """Check what makes nodes come and go, and what goes wrong."""
    with _collect(mistakes), experiment.blame("churn"):
        supplied = dict.fromkeys(("node", "rng", "n"))
        parts.check(experiment.find("churn", experiment.churn.name), experiment.churn.params, supplied)
    for index, fault in enumerate(experiment.faults):
        with _collect(mistakes), experiment.blame("faults", index):
            parts.check(experiment.find("faults", fault.name), fault.params, {"world": 0, "rng": 0})


def _state_bytes(experiment: Experiment, strategy: Any, learner: Learner) -> int:
    """Return how much each client keeps from visit to visit, in bytes, and refuse a budget that is below that."""
    if isinstance(strategy, PeerStrategy):
        return 0
    with experiment.blame("compute"):
        state = kept_bytes(learner.engine, updates_in(strategy, experiment))
        check_budget(experiment.compute.state_bytes, state)
    return state


def _check_devices(
    experiment: Experiment, strategy: Any, learner: Learner, world: World
) -> list[float] | None:
    """Return the memory that each client needs, and refuse devices with less, where they say how much they have."""
    if all(kit.memory_mb is None for kit in world.kits):
        return None
    needs = need_mb(learner.engine, updates_in(strategy, experiment))
    with experiment.blame("devices"):
        check_memory(world.kits, needs)
    return needs


@contextmanager
def _collect(mistakes: list[ConfigError]) -> Iterator[None]:
    """Keep the mistakes of one step, so that the next step can report its own as well."""
    try:
        yield
    except ConfigError as error:
        mistakes.append(error)


def count_servers(experiment: Experiment, strategy: Any) -> int:
    """Return how many servers a strategy has: none, one, or as many as the experiment says."""
    if not isinstance(strategy, PeerStrategy):
        return 1
    return len(experiment.network.attached) if strategy.has_servers else 0


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
            _check_peers(block, strategy)
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


def _check_peers(block: Strategy, strategy: PeerStrategy) -> None:
    defaults = {"on_failure": "stop", "quorum": 1.0, "retries": 0}
    defaults |= {"select": None, "weighting": None, "around": []}
    for key, default in defaults.items():
        value = getattr(block, key)
        if value != default:
            shown = MISSING if key in ("select", "around") else value
            rule = f"belongs to a server, and {block.name} has only peers"
            if strategy.has_servers:
                rule = f"is for strategies with one server, and {block.name} can have several"
            raise BadValue(key, shown, rule)


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


def updates_in(strategy: Any, experiment: Experiment) -> list[LocalUpdate]:
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
            sent = [name for one in updates_in(strategy, experiment) for name in one.metrics]
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
