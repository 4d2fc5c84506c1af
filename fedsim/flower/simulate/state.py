"""What a strategy that is not ours is in the middle of a run, so that it can be saved and go on.

Such a strategy computes by itself, with arrays that it reads. When a run is repeated, nothing is computed and it reads
zeros; at the checkpoint it gets back what it held then, and so do the generators that it draws from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from fedsim.errors import BadValue
from fedsim.learn.source import OURS
from fedsim.running.values import Unkept, Writer

RECORDS = {kind.__name__: kind for kind in (ArrayRecord, MetricRecord, ConfigRecord)}
RECORD, ITEMS = "flower record", "items"


def state_of(strategy: Any, arrays: ArrayRecord | None) -> dict[str, Any]:
    """Return all that a strategy is, and the model that its loop holds, in a form that can be written.

    Args:
        strategy: any, with what is around it.
        arrays: the model; None if it is still the initial one.

    Raises:
        Unkept: naming an attribute that cannot be kept.
    """
    levels = [{name: _plain(name, one) for name, one in attributes(level)} for level in _levels(strategy)]
    model = None if arrays is None else {name: array.numpy() for name, array in arrays.items()}
    drawn = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return {"levels": levels, "model": model, "generators": drawn}


def restore(strategy: Any, arrays: ArrayRecord, state: Mapping[str, Any]) -> None:
    """Let a strategy, its loop's model and the global generators be what they were."""
    for level, held in zip(_levels(strategy), state["levels"], strict=True):
        for name, one in held.items():
            setattr(level, name, _back(one))
    for name, value in (state["model"] or {}).items():
        arrays[name] = Array(np.ascontiguousarray(value))
    drawn = state["generators"]
    random.setstate(drawn["python"])
    np.random.set_state(drawn["numpy"])
    torch.set_rng_state(drawn["torch"])


def check(strategy: Any) -> None:
    """Refuse a strategy that could not be restored.

    Raises:
        BadValue: naming the attribute.
    """
    for level in _levels(strategy):
        for name, one in attributes(level):
            try:
                Writer().take(_plain(name, one))
            except Unkept as error:
                rule = f"the strategy {type(level).__name__} cannot be saved: {error}"
                hint = (
                    "set record.checkpoint to null, or let the strategy hold arrays, numbers and texts alone"
                )
                raise BadValue("name", type(level).__name__, rule, hint) from error


def attributes(level: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a strategy holds, but for what never changes or follows from the rest of the run."""
    for name, one in vars(level).items():
        constant = callable(one) or name in ("strategy", "updates", "queries", "select")
        if not constant and type(one).__module__.partition(".")[0] not in OURS:
            yield name, one


def _levels(strategy: Any) -> Iterator[Any]:
    """Yield a strategy and those inside of it, but for ours, which hold nothing from round to round."""
    while strategy is not None:
        if type(strategy).__module__.partition(".")[0] not in OURS:
            yield strategy
        strategy = vars(strategy).get("strategy")


def _plain(name: str, value: Any) -> Any:
    kind = type(value).__name__
    if type(value) in RECORDS.values():
        items = [[key, one.numpy() if isinstance(one, Array) else one] for key, one in value.items()]
        return {RECORD: kind, ITEMS: items}
    if type(value) is dict:
        return {key: _plain(name, one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(name, one) for one in value)
    try:
        Writer().take(value)
    except Unkept:
        raise Unkept(f"its attribute {name} holds a {kind}") from None
    return value


def _back(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {RECORD, ITEMS}:
        kind = RECORDS[value[RECORD]]
        made: Any = kind()
        for key, one in value[ITEMS]:
            made[key] = Array(one) if kind is ArrayRecord else one
        return made
    if isinstance(value, dict):
        return {key: _back(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_back(one) for one in value)
    return value
