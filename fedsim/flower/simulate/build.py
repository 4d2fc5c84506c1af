"""Makes a server strategy of a block of an experiment: one of Flower's as it is, with what a file can say of it."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from flwr.app import RecordDict
from flwr.serverapp.strategy import QFedAvg

from fedsim import parts
from fedsim.errors import MISSING, BadValue
from fedsim.flower.around_strategy import Central
from fedsim.flower.records import pack, wire_bytes
from fedsim.flower.settings import EXAMPLES, Settings
from fedsim.flower.simulate.robust import check_robust
from fedsim.flower.simulate.server import check_strategy, run_strategy
from fedsim.flower.simulate.weighting import weigh
from fedsim.flower.with_selector import Chosen
from fedsim.learn.learner import Learner
from fedsim.learn.local import LocalUpdate, rate
from fedsim.learn.start_loss import START_LOSS, StartLoss
from fedsim.methods import around
from fedsim.methods.select import Uniform
from fedsim.methods.traits import Traits
from fedsim.parts import Count
from fedsim.running.updates import transforms_of, updates_of
from fedsim.spec.experiment import Experiment, Local

log = logging.getLogger("fedsim")

SIZES = ("fraction_train", "min_train_nodes")
"""How Flower's strategies say how many clients take part; ``participants`` says it for all strategies."""
RATES = ("client_learning_rate", "eta_l")
"""What Flower's strategies call the clients' learning rate; the clients are told nothing of it."""
ALL_SHOWN = {"fraction_train": 1.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""What lets such a strategy take all clients that it is shown."""
OF_EVALUATION = ("min_evaluate_nodes", "evaluate_metrics_aggr_fn")


def maker(part: parts.Part, local: Local | None = None) -> parts.Part:
    """Return what makes a Flower strategy of what an experiment file can hold; other parts are returned as they are.

    ``participants`` is a parameter of every strategy (:class:`Chosen` sees to it), no client evaluates unless that is
    asked for, functions are dotted paths, and q-FedAvg knows what its clients do.

    Args:
        part: a strategy's class, or a function that makes one.
        local: local training, whose learning rate q-FedAvg has to know; None only for what is to be shown.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> made = parts.call(maker(FedAvg), {"participants": 3})
    >>> made.min_available_nodes, made.fraction_evaluate, "participants" in parts.parameters(maker(FedAvg))
    (1, 0.0, True)
    """
    known, hints = parts.parameters(part), parts.hints(part)
    named = {name: one for name, one in known.items() if one.kind not in parts.NAMELESS}
    if not {"fraction_train", "fraction_evaluate"} & named.keys():
        return part
    functions = [name for name in named if _is_function(hints.get(name))]
    defaults = _defaults(named, local)
    sized = named.keys() >= set(SIZES) and "participants" not in named

    def make(**given: Any) -> Any:
        _check_given(given)
        found = {name: _function(name, given[name]) for name in functions if given.get(name) is not None}
        chosen = sized and given.pop("participants", None) is not None
        return _made(part, defaults | (ALL_SHOWN if chosen else {}), given | found)

    if sized:
        hints |= {"participants": Count | None}
        named = {"participants": inspect.Parameter("participants", BY_NAME, default=None), **named}
    hints |= dict.fromkeys(functions, str | None)
    shown = [
        one.replace(kind=BY_NAME, default=defaults.get(name, one.default)) for name, one in named.items()
    ]
    shown += [one for one in known.values() if one.kind is one.VAR_KEYWORD]
    make.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    make.__annotations__ = {name: hints[name] for name in named if name in hints}
    make.__module__, make.__qualname__ = part.__module__, part.__qualname__
    return make


BY_NAME = inspect.Parameter.KEYWORD_ONLY


def _defaults(named: Mapping[str, inspect.Parameter], local: Local | None) -> dict[str, Any]:
    """Return what Flower leaves open or sets to something that is of no use here."""
    defaults: dict[str, Any] = {"train_loss_key": START_LOSS}
    defaults |= dict.fromkeys(RATES, "local.lr" if local is None else rate(local, 0))
    if (
        "fraction_evaluate" in named and named["fraction_evaluate"].default == 1.0
    ):  # nobody's choice but Flower's
        defaults["fraction_evaluate"] = 0.0
    return {name: value for name, value in defaults.items() if name in named}


def _made(part: parts.Part, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """Make a strategy; a class above Flower's may have chosen a value itself, and lets nobody give another one."""
    try:
        return part(**{**defaults, **given})
    except (TypeError, KeyError) as error:  # Python 3.11 sometimes says it as a KeyError
        chosen = re.search("(?:argument |^)'([^']*)'", str(error))
        if chosen is None or chosen[1] not in defaults or chosen[1] in given:
            raise
        return _made(part, {key: value for key, value in defaults.items() if key != chosen[1]}, given)


def _is_function(hint: Any) -> bool:
    return get_origin(hint) is Callable or any(map(_is_function, get_args(hint)))


def _function(key: str, path: str) -> Any:
    try:
        return parts.find("functions", path)
    except BadValue as error:
        rule = "must be the dotted path of a function" if error.rule.startswith("no such") else error.rule
        raise BadValue(key, path, rule, "write package.module:function") from error


def _check_given(given: Mapping[str, Any]) -> None:
    """Refuse keys that contradict each other, or would have no effect."""
    sizes = [key for key in SIZES if key in given]
    if given.get("participants") is not None and sizes:
        rule = f"says how many clients take part, and so does {sizes[0]}"
        raise BadValue("participants", given["participants"], rule, "give one of the two")
    for key in OF_EVALUATION:
        if given.get(key) is not None and not given.get("fraction_evaluate"):
            rule = "has no effect, because no client evaluates"
            raise BadValue(key, given[key], rule, "set fraction_evaluate as well, or leave it out")


def as_server(experiment: Experiment, part: parts.Part, strategy: Any, select: Any) -> Any:
    """Check one of Flower's strategies, or anybody's, and put around it what it does not take itself.

    Args:
        experiment: says what.
        part: what has made the strategy.
        strategy: what has been made.
        select: chooses the clients, or None.

    Raises:
        ConfigError: for whatever does not fit.
    """
    block, clients, own = experiment.strategy, experiment.data.clients, parts.parameters(part)
    transforms, traits = transforms_of(experiment), Traits.of(strategy)
    participants = None if "participants" in own else block.params.get("participants")
    alone = "select" not in own and (select is not None or participants is not None)
    with experiment.blame("strategy"):
        check_strategy(strategy, clients)
        if participants is not None and participants > clients:
            raise BadValue("participants", participants, f"at most {clients}, the number of clients")
        if alone and traits.select is not None:
            rule = f"{block.name} chooses its clients in a way of its own and takes no selector"
            raise BadValue("select", MISSING, rule, "leave strategy.select out")
        check_robust(strategy, participants or Settings.of(strategy).asked(clients), block.quorum)
        _check_rates({key: block.params[key] for key in RATES if key in block.params}, block.local)
        if isinstance(strategy, QFedAvg):
            _check_fair(strategy, block.local)
            strategy.updates = {"train": StartLoss(block.local)}  # type: ignore[attr-defined]
    updates = updates_of(strategy, experiment)
    with experiment.blame("strategy"):
        _check_keys(strategy, updates)
        if alone:
            strategy = Chosen(strategy, select or Uniform(seed=experiment.seed), participants)
        strategy = weigh(strategy, Traits.of(strategy).selector, block.weighting)
    central = [one for one in transforms if isinstance(one, around.Central)]
    return Central(strategy, central, updates) if central else strategy


def _check_rates(given: Mapping[str, Any], local: Local) -> None:
    """Refuse a learning rate of the clients that is not theirs."""
    for key, value in given.items():
        if value != local.lr:
            own = "rates of their own" if isinstance(local.lr, list) else f"the rate {local.lr:g}"
            rule = f"must be that of the clients, who have {own} (strategy.local.lr)"
            raise BadValue(key, value, rule, "leave it out")


def _check_fair(strategy: QFedAvg, local: Local) -> None:
    """Let q-FedAvg have what it reckons with: the rate of all steps of all clients, and their losses beforehand."""
    if isinstance(local.lr, list) or local.lr_decay:
        key, value = ("lr", local.lr) if isinstance(local.lr, list) else ("lr_decay", local.lr_decay)
        raise BadValue(f"local.{key}", value, "q-FedAvg needs one learning rate, for all clients and steps")
    if not local.steps_plainly or local.schedule is not None:
        rule = "q-FedAvg reckons with plain steps of one rate: take sgd without clip_norm and schedule"
        raise BadValue("local.optimizer", local.optimizer.name, rule)
    for key in ("momentum", "weight_decay"):
        if getattr(local, key):
            rule = "q-FedAvg reckons with steps of plain SGD"
            raise BadValue(f"local.{key}", getattr(local, key), rule, "leave it out")
    _check_rates({"client_learning_rate": strategy.client_learning_rate}, local)
    if strategy.train_loss_key != START_LOSS:
        rule = f"must be {START_LOSS}, the loss at the model received"
        raise BadValue("train_loss_key", strategy.train_loss_key, rule, "leave it out")
    if strategy.q < 0:
        raise BadValue("q", strategy.q, "must be at least 0")


def _check_keys(strategy: Any, updates: Mapping[str, LocalUpdate]) -> None:
    """Refuse names of records and numbers that clients do not know or send."""
    trained = updates.get("train")
    if trained is None:
        return
    known = Settings.of(strategy)
    weights, config = known.arrayrecord_key, known.configrecord_key
    if weights is not None and weights not in trained.takes:
        raise BadValue("arrayrecord_key", weights, f"clients know {', '.join(trained.takes)}")
    if config is not None and config in trained.takes:
        raise BadValue("configrecord_key", config, "is what the weights are called")
    evaluates = bool(known.fraction_evaluate)
    sent = (EXAMPLES, *(() if evaluates else trained.metrics))
    key = known.weighted_by_key
    if key not in sent:
        where = "in training and evaluation" if evaluates else "in training"
        raise BadValue("weighted_by_key", key, f"{where}, clients send {', '.join(sent)}")


def say_cost(strategy: Any, learner: Learner) -> None:
    """Warn of what it costs that clients evaluate, if they do."""
    known, clients = Settings.of(strategy), len(learner.sizes)
    if not known.fraction_evaluate:
        return
    asked, task = known.judged(clients), learner.engine.task
    model = pack(learner.initial, task.layout, str(task.dtype).removeprefix("torch."))
    sent = asked * wire_bytes(RecordDict({"arrays": model})) / 1e6
    text = "strategy.fraction_evaluate = %g: in every round, %d of %d clients are sent the model once more (%.3g MB)"
    log.warning(text + ", and evaluate it on their own data", known.fraction_evaluate, asked, clients, sent)


class Flower:
    """Flower's strategies, and those written for it, as :mod:`fedsim.running.build` asks for them."""

    maker = staticmethod(maker)
    as_server = staticmethod(as_server)
    say_cost = staticmethod(say_cost)
    run = staticmethod(run_strategy)
