"""Valid experiments, and every number that a file can set in them: keys of blocks, parameters of parts."""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from fedsim import parts
from fedsim.spec.experiment import Experiment
from fedsim.spec.reference import SUPPLIED

Path = tuple[str | int, ...]

EXTREMES: list[Any] = [
    *(1.7e308, -1.7e308, 1e30, 1e13, 5e-324, 1e-300, 1e-9, 0, -1, 0.0, -1.0, 1.0, 0.5),
    *(2**31, 2**31 - 1, 2**63 - 1, 2**64, 2**70, -(2**70), 10**30, 10**5000, 1_000_000_000),
    *(float("nan"), float("inf"), -float("inf"), 1e12, 1e11, 999_999_999_999),
]
"""Numbers that are larger, smaller or odder than anybody means."""

BASE: dict[str, Any] = {
    "data": {"name": "digits", "clients": 10},
    "model": "softmax",
    "strategy": {"name": "dpsgd", "local": {"steps": 1, "batch_size": 4}},
    "topology": "complete",
    "network": {"server": {}},
    "stop": {"rounds": 1},
}

NEEDED: dict[str, Any] = {
    "participants": 3,
    "concurrency": 3,
    "mu": 0.1,
    "rounds": 3,
    "p": 0.9,
    "degree": 4,
    "neighbours": 4,
    "rewire": 0.1,
    "radius": 0.9,
    "blocks": 2,
    "p_in": 0.9,
    "p_out": 0.9,
    "at_s": 5.0,
    "down_s": 2.0,
    "for_s": 2.0,
    "factor": 2.0,
    "mtbf_s": 5.0,
    "mttr_s": 5.0,
    "seconds": 1.0,
    "probability": 0.5,
    "online_s": 9.0,
    "offline_s": 3.0,
    "low": 0.2,
    "high": 0.8,
    "count": 1,
    "alpha": 1.0,
    "shape": 1.0,
    "kind": "noise",
    "norm": 1.0,
    "sigma": 1.0,
    "share": 0.5,
    "clip": 1.0,
    "bits": 8,
    "deviation": 1.0,
    "std": 0.5,
}
"""Values of parameters that have no default."""

CHOOSES = (
    "crash",
    "crash_recover",
    "flaky",
    "slow_down",
    "corrupt",
    "link_down",
    "label_flips",
    "feature_noise",
)
"""Faults that must be told how many they hit."""


def numbers(annotation: Any) -> bool:
    """Tell whether an annotation allows a number somewhere in it."""
    return annotation in (int, float) or any(map(numbers, typing.get_args(annotation)))


def key_cases() -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield an experiment and the path of each number in the typed blocks."""
    full = copy.deepcopy(BASE)
    full["stop"] |= {"target": {"accuracy": 0.5}}
    for path in _keys(Experiment, ()):
        yield full, path
    for draw in ("latency_ms", "node_latency_ms", "up_mbps", "down_mbps", "edge_mbps"):
        yield from (({**full}, ("network", draw, *rest)) for rest in ((), ("value",)))
    for kind, keys in (
        ("uniform", ("low", "high")),
        ("lognormal", ("median", "sigma")),
        ("exponential", ("mean",)),
    ):
        block = {"distribution": kind, **dict.fromkeys(keys, 1.0)}
        for owner, name in (
            ("network", "latency_ms"),
            ("network", "edge_mbps"),
            ("devices", "seconds_per_sample"),
        ):
            start = {**full, owner: {name: block}}
            yield from ((start, (owner, name, key)) for key in keys)
    devices = {"stragglers": {"share": 0.5, "factor": 2.0}, "memory_mb": 9999.0, "joules_per_sample": 1.0}
    for path in (("stragglers", "share"), ("stragglers", "factor"), ("memory_mb",), ("joules_per_sample",)):
        yield {**full, "devices": devices}, ("devices", *path)
    yield {**full, "assume": {"score": 1.0}}, ("assume", "score")
    yield (
        {**full, "strategy": {**full["strategy"], "local": {"curriculum": {"rounds": 3}}}},
        (
            *("strategy", "local", "curriculum"),
            "rounds",
        ),
    )


def _keys(model: type[BaseModel], at: Path) -> Iterator[Path]:
    for name, field in model.model_fields.items():
        if numbers(field.annotation):
            yield (*at, name)
        for inner in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel) and inner.__name__ not in ("Part",):
                yield from _keys(inner, (*at, name))


def part_cases() -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield an experiment with each part of each kind, and the path of each of its numeric parameters."""
    for kind in parts.KINDS:
        for name in parts.names(kind):
            part = parts.find(kind, name)
            hints, known = parts.hints(part), parts.parameters(part)
            own = {key: known[key] for key in known if key not in SUPPLIED.get(kind, ()) and key in hints}
            needed = {
                key: NEEDED[key] for key, one in own.items() if one.default is one.empty and key in NEEDED
            }
            if name in CHOOSES:
                needed["count"] = 1
            experiment, at = placed(kind, {"name": name, **needed})
            for key in own:
                if numbers(hints[key]):
                    yield experiment, (*at, key)


def placed(kind: str, block: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Return an experiment that has a part where its kind belongs, and the way to it."""
    new, server = (
        copy.deepcopy(BASE),
        {"name": "fedprox", "participants": 3, "mu": 0.1, "local": {"steps": 1}},
    )
    at: dict[str, Path] = {
        "strategies": ("strategy",),
        "topologies": ("topology",),
        "models": ("model",),
        "churn": ("churn",),
        "datasets": ("data",),
        "partitions": ("data", "partition"),
        "faults": ("faults", 0),
        "data_faults": ("data", "faults", 0),
        "selectors": ("strategy", "select"),
        "transforms": ("strategy", "around", 0),
        "losses": ("loss",),
        "metrics": ("evaluate", "metrics", 0),
        "augmentations": ("strategy", "local", "augment", 0),
        "optimisers": ("strategy", "local", "optimizer"),
        "schedules": ("strategy", "local", "schedule"),
        "engines": ("compute", "engine"),
        "trackers": ("record", "trackers", 0),
    }
    new.setdefault("evaluate", {})["metrics"] = [{}] * (kind == "metrics")
    new.setdefault("record", {})["trackers"] = [{}] * (kind == "trackers")
    new["data"]["faults"] = [{}] * (kind == "data_faults")
    new["strategy"].setdefault("local", {})["augment"] = [{}] * (kind == "augmentations")
    if kind in ("selectors", "transforms"):
        new["strategy"] = server
    new["faults"], new["strategy"]["around"] = [{}] * (kind == "faults"), [{}] * (kind == "transforms")
    if block["name"] in ("directed_ring", "directed_exponential", "one_peer_exponential", "random_matchings"):
        new["strategy"]["name"] = "push_sum"
    if block["name"] == "server_crash":
        new["strategy"] = server
    old = new["data"] if kind == "datasets" else new["strategy"] if kind == "strategies" else {}
    return changed(new, at[kind], {**old, **block, **({"clients": 8} if kind == "datasets" else {})}), at[
        kind
    ]


def changed(experiment: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy of an experiment with another value at a place; blocks on the way are made."""
    new = copy.deepcopy(experiment)
    block: Any = new
    for step in path[:-1]:
        if isinstance(step, str) and not isinstance(block.get(step), dict | list):
            block[step] = {} if block.get(step) is None else {"name": block[step]}
        block = block[step]
    block[path[-1]] = value
    return new
