"""A study file: an experiment, what varies, and what is compared."""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedsim.errors import MISSING, BadValue, ConfigError, Problem
from fedsim.spec.experiment import Experiment
from fedsim.spec.experiment import load as load_experiment
from fedsim.spec.explain import explain, locate
from fedsim.spec.yamlfile import Document, read, set_value, write
from fedsim.study.asked import (
    METHOD,
    WORLD,
    concerns,
    text,
    wanted,
)
from fedsim.study.checks import check_claims, check_keys, check_seed, check_set
from fedsim.study.content import ZIP, Study

Settings = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of a study.

    Args:
        settings: what sets it apart, by dotted key; a method by its name.
        changes: the values of the experiment that it replaces, by dotted key.
    """

    settings: Settings
    changes: Settings

    @property
    def label(self) -> str:
        """Return its settings in one line.

        >>> Point({"method": "FedAvg", "seed": 1}, {}).label
        'method=FedAvg, seed=1'
        """
        return ", ".join(f"{key}={text(value)}" for key, value in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """A study as it was read.

    Args:
        study: what it says.
        source: the experiment: a file, or its content.
        document: where everything was written.
        data: the experiment's own content, before anything is changed.
        more: values that the command line replaces, by dotted key.
    """

    study: Study
    source: str | dict[str, Any]
    document: Document
    data: dict[str, Any]
    more: Settings = field(default_factory=dict)

    def points(self) -> list[Point]:
        """Return the runs of the study, without those for tuning.

        >>> base = {"data": {"clients": 4}, "strategy": "fedavg", "stop": {"rounds": 1}}
        >>> vary = {"model": ["mlp", "softmax"], "zip": {"seed": [1, 2], "data.root": ["a", "b"]}}
        >>> plan = load({"base": base, "vary": vary})
        >>> [point.label for point in plan.points()][:3]
        ['model=mlp, seed=1, data.root=a', 'model=mlp, seed=2, data.root=b', 'model=softmax, seed=1, data.root=a']
        """
        return list(filter(self._is_wanted, self._points(self._grid())))

    def trials(self) -> list[Point]:
        """Return the runs that are tuned with: each method with each value to choose from."""
        if not self.study.tune:
            return []
        grid = [
            {**each, **dict(zip(self.study.tune, values, strict=True)), "seed": self.study.tune_seed}
            for each in self._each()
            for values in itertools.product(*self.study.tune.values())
        ]
        return list(filter(self._is_wanted, self._points(grid)))

    def _each(self) -> list[Settings]:
        """Return the settings that are tuned for, each with values of its own."""
        grid = ({key: point[key] for key in self.study.tune_each} for point in self._grid())
        return list({str(settings): settings for settings in grid}.values())

    def tuned(self, point: Point, values: Settings) -> Point:
        """Return a run with the values that were the best for its method."""
        return Point({**point.settings, **values}, {**point.changes, **values})

    def experiment(self, point: Point) -> Experiment:
        """Return the experiment of a run.

        Raises:
            ConfigError: for a mistake in it; it says which run it is of.
        """
        try:
            return load_experiment(self.source, self.overrides(point))
        except ConfigError as error:
            problems = [replace(one, source=self.place(point, one.source)) for one in error.problems]
            raise ConfigError(problems) from error

    def overrides(self, point: Point) -> Settings:
        """Return what a run changes, for whoever loads its experiment and would read text as YAML once more."""
        return {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value
            for key, value in point.changes.items()
        }

    def place(self, point: Point, source: str = "") -> str:
        """Return where a mistake is said to be: in which run of which file, and where that has it from."""
        own = f"{self.document.name}: {point.label}" if self.document.name else point.label
        return own if not source or source.startswith("--set") else f"{own}: {source}"

    def _points(self, grid: Sequence[Settings]) -> list[Point]:
        methods = [{METHOD: name} for name in self.study.methods] or [{}]
        worlds = [{WORLD: name} for name in self.study.worlds] or [{}]
        found = itertools.product(methods, worlds, grid)
        return [self._point({**method, **world, **settings}) for method, world, settings in found]

    def _is_wanted(self, point: Point) -> bool:
        """Tell whether a run is part of the study; the seed of one for tuning is nobody's claim."""
        if not self.study.claimed:
            return True
        by = self.study.compare.by
        named = [one for claim in self.study.claims for one in (*claim.better, *claim.worse)]
        fixed = [{key: value for key, value in wanted(one, by).items() if key != "seed"} for one in named]
        return any(concerns(one, point.settings, by) for one in fixed)

    def _grid(self) -> list[Settings]:
        vary = self.study.vary
        single = [[{key: value} for value in values] for key, values in vary.items() if key != ZIP]
        zipped = vary.get(ZIP, {})
        steps = [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)]
        axes = [*single, steps] if steps else single
        return [
            {key: value for one in chosen for key, value in one.items()}
            for chosen in itertools.product(*axes)
        ]

    def _point(self, settings: Settings) -> Point:
        changes = {**self.study.set, **self.study.worlds.get(settings.get(WORLD, ""), {})}
        changes |= self.study.methods.get(settings.get(METHOD, ""), {})
        changes |= {key: value for key, value in settings.items() if key not in (METHOD, WORLD)}
        if "strategy" in changes:
            changes["strategy"] = self._with_local(changes["strategy"])
        changes |= {key: value for key, value in self.more.items() if key not in settings}
        # A whole block first, so that what is said of its inside holds.
        return Point(settings, dict(sorted(changes.items(), key=lambda item: item[0].count("."))))

    def _with_local(self, strategy: Any) -> Any:
        block = {"name": strategy} if isinstance(strategy, str) else strategy
        own = self.data.get("strategy")
        if not isinstance(block, dict) or "local" in block or not isinstance(own, dict) or "local" not in own:
            return strategy
        return {**block, "local": own["local"]}


def load(source: str | Path | Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Plan:
    """Load a study.

    Args:
        source: a YAML file, or the same content as a mapping.
        more: values of the experiment by dotted key, for all runs, in the place of the study's own; text is read as
            YAML.

    Raises:
        ConfigError: with every mistake found, one line each.

    >>> load({"base": "quickstart.yaml", "vary": {"seed": 3}})
    Traceback (most recent call last):
    fedsim.errors.ConfigError: vary.seed: 3: must be a list of values
    """
    document, stem = (
        (Document(data=dict(source)), "study")
        if isinstance(source, Mapping)
        else (read(source), Path(source).stem)
    )
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem)
    if "base" not in document.data and "strategy" in document.data:
        hint = "fedsim run runs it, and a study names it as its base"
        raise ConfigError([Problem("", MISSING, "is an experiment and no study", hint, document.name)])
    try:
        study = Study.model_validate({"name": name, **document.data})
    except ValidationError as error:
        raise ConfigError(explain(Study, document, error)) from None
    check_keys(study, document)
    check_claims(study, document)
    check_set(study, more or {})
    values = _values(more or {})
    folder = Path() if isinstance(source, Mapping) else Path(source).parent
    if isinstance(study.base, dict):
        beside = {} if isinstance(source, Mapping) else {"beside": str(folder.absolute())}
        experiment: str | dict[str, Any] = {"name": study.name, **beside, **study.base}
        return _checked(Plan(study, experiment, document, study.base, values))
    path = os.path.relpath(folder / study.base) if not os.path.isabs(study.base) else study.base
    if not Path(path).exists():
        raise ConfigError([locate(Study, document, (), BadValue("base", MISSING, f"{path}: no such file"))])
    return _checked(Plan(study, path, document, read(path).data, values))


def _checked(plan: Plan) -> Plan:
    check_seed(plan.study, plan.document, {**plan.data, **plan.study.set, **plan.more}.get("seed", 0))
    return plan


def _values(given: Mapping[str, Any]) -> Settings:
    """Return values by dotted key, text read as YAML."""
    found: Settings = {}
    for key, value in given.items():
        data: Any = {}
        found[key] = functools.reduce(lambda block, step: block[step], set_value(data, key, value), data)
    return found


def said(file: Path) -> Study:
    """Return what the study file that a sweep has left says; its experiment may be somewhere else.

    Raises:
        ConfigError: for a mistake in it.
    """
    document = read(file)
    try:
        return Study.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError(explain(Study, document, error)) from None


def dump(study: Study) -> str:
    """Return a study as YAML with every default."""
    return write(study.model_dump())
