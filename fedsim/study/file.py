"""A study file: an experiment, what varies, and what is compared."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fedsim.errors import MISSING, BadValue, ConfigError, Problem, did_you_mean
from fedsim.ranges import Seed
from fedsim.spec.blocks import Block
from fedsim.spec.experiment import Experiment
from fedsim.spec.experiment import load as load_experiment
from fedsim.spec.explain import explain, locate
from fedsim.spec.yamlfile import Document, read, write
from fedsim.study.asked import (
    METHOD,
    WORLD,
    Chosen,
    Claim,
    Compare,
    Map,
    Measure,
    concerns,
    is_meant,
    text,
    wanted,
)

ZIP = "zip"
Settings = dict[str, Any]


class Study(Block):
    """A whole study; :func:`load` makes one."""

    name: str = Field(
        description="the name of the study's folder; by default the file's name without its ending"
    )
    base: str | dict[str, Any] = Field(
        description="the experiment: a path, seen from this file, or the experiment itself"
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="dotted keys with the values that all runs have instead of the experiment's",
    )
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="what is compared, by name: for each the dotted keys that it changes. A strategy that says nothing "
        "of local training keeps the experiment's",
    )
    worlds: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="what every method is run in, by name: for each the dotted keys that it changes, such as those of "
        "the data",
    )
    vary: dict[str, Any] = Field(
        default_factory=dict,
        description="dotted keys with lists of values, each combined with each; below zip, lists that go in step",
    )
    tune: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="dotted keys with lists of values, of which each method gets the best, found with the tuning seed",
    )
    tune_each: list[str] = Field(
        default=[], description="those of the keys that vary for whose every value each method is tuned anew"
    )
    tune_seed: Seed = Field(
        default=0, description="the seed that is tuned with; it is none of those that are compared"
    )
    tune_by: Measure = Field(default=Measure(), description="what the best value is the best by")
    compare: Compare = Field(default_factory=Compare, description="what is compared")
    claims: list[Claim] = Field(default=[], description="what is said of the methods, to be borne out or not")
    map: Map | None = Field(default=None, description="a heat map of what was found, over two settings")
    claimed: bool = Field(default=False, description="run only what some claim is about")
    title: str = Field(default="", description="what the study is called on a page")
    text: str = Field(default="", description="what it is about, for a page, in Markdown")

    @field_validator("tune")
    @classmethod
    def _choices(cls, tune: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in tune.items():
            if not values:
                raise BadValue(key, values, "is empty, so that there is nothing to choose from")
        return tune

    @field_validator("vary")
    @classmethod
    def _lists(cls, vary: dict[str, Any]) -> dict[str, Any]:
        for key, values in _axes(vary):
            if not isinstance(values, list):
                raise BadValue(key, values, "must be a list of values")
            if not values:
                raise BadValue(key, values, "is empty, so that there is nothing to run")
            if key not in vary.get(ZIP, {}) and (twice := _twice(values)):
                raise BadValue(
                    key, twice[0], "is there twice; a run that counts twice makes intervals too narrow"
                )
        lengths = {key: len(values) for key, values in vary.get(ZIP, {}).items()}
        if len(set(lengths.values())) > 1:
            raise BadValue(ZIP, vary[ZIP], f"its lists go in step, and have different lengths: {lengths}")
        return vary

    def names(self, key: str) -> list[str]:
        """Return the values of a setting, as text, whether or not they have run."""
        known: dict[str, Iterable[Any]] = {METHOD: self.methods, WORLD: self.worlds, **dict(_axes(self.vary))}
        return [text(value) for value in known.get(key, ())]


def _twice(values: Sequence[Any]) -> list[Any]:
    """Return the values that are there before: ``1`` and ``1.0`` are the same, ``1`` and ``true`` are not.

    >>> _twice([1, True, {"name": "ring"}, 1.0])
    [1.0]
    """
    known = [(isinstance(value, bool), value) for value in values]
    return [value for place, (_, value) in enumerate(known) if known[place] in known[:place]]


def _axes(vary: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    zipped = vary.get(ZIP, {})
    if not isinstance(zipped, dict):
        raise BadValue(ZIP, zipped, "must be keys with lists of values")
    yield from ((key, values) for key, values in vary.items() if key != ZIP)
    yield from zipped.items()


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
            return load_experiment(self.source, {**self.more, **point.changes})
        except ConfigError as error:
            problems = [replace(one, source=self.place(point, one.source)) for one in error.problems]
            raise ConfigError(problems) from error

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
        more: values of the experiment by dotted key, for all runs.

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
    _check_keys(study, document)
    _check_claims(study, document)
    folder = Path() if isinstance(source, Mapping) else Path(source).parent
    if isinstance(study.base, dict):
        beside = {} if isinstance(source, Mapping) else {"beside": str(folder.absolute())}
        experiment: str | dict[str, Any] = {"name": study.name, **beside, **study.base}
        return Plan(study, experiment, document, study.base, dict(more or {}))
    path = os.path.relpath(folder / study.base) if not os.path.isabs(study.base) else study.base
    if not Path(path).exists():
        raise ConfigError([locate(Study, document, (), BadValue("base", MISSING, f"{path}: no such file"))])
    return Plan(study, path, document, read(path).data, dict(more or {}))


def _check_keys(study: Study, document: Document) -> None:
    """Refuse settings that no experiment has, before anything runs."""
    blocks = list(Experiment.model_fields)
    groups: dict[tuple[str, ...], dict[str, Any]] = {
        ("set",): study.set,
        ("vary",): dict(_axes(study.vary)),
        ("tune",): study.tune,
    }
    groups |= {("methods", name): changes for name, changes in study.methods.items()}
    groups |= {("worlds", name): changes for name, changes in study.worlds.items()}
    for group, keys in groups.items():
        for key in keys:
            block = key.partition(".")[0]
            if block not in blocks:
                hint = did_you_mean(block, blocks)
                error = BadValue("", key, "is no key of an experiment", hint)
                raise ConfigError([locate(Study, document, group, error)])
    for place, key in enumerate(study.tune_each):
        if key == "seed" or key not in groups[("vary",)]:
            error = BadValue("", key, "must be a key of vary, and not the seed")
            raise ConfigError([locate(Study, document, ("tune_each", place), error)])
    if study.tune and "seed" in study.vary and study.tune_seed in study.vary["seed"]:
        rule = "is one of the seeds that are compared, which would favour what was tuned with it"
        raise ConfigError([locate(Study, document, (), BadValue("tune_seed", study.tune_seed, rule))])
    baseline = study.compare.baseline
    if (
        baseline is not None
        and study.methods
        and study.compare.by == METHOD
        and baseline not in study.methods
    ):
        hint = did_you_mean(baseline, list(study.methods))
        raise ConfigError(
            [locate(Study, document, ("compare",), BadValue("baseline", baseline, "is no method", hint))]
        )


def _check_claims(study: Study, document: Document) -> None:
    """Refuse claims, and a map, about runs that the study does not have."""
    known: dict[str, list[Any]] = {METHOD: list(study.methods), WORLD: list(study.worlds)}
    known |= dict(_axes(study.vary))
    known = {key: values for key, values in known.items() if values}
    for where, one in _chosen(study):
        for key, value in wanted(one, study.compare.by).items():
            if key not in known:
                rule, hint = "is no setting of the study", did_you_mean(key, list(known))
            elif not any(is_meant(own, value) for own in known[key]):
                rule = f"is no {key} of the study"
                hint = did_you_mean(text(value), list(map(text, known[key])))
            else:
                continue
            error = BadValue("", value if key in known else key, rule, hint)
            raise ConfigError([locate(Study, document, where, error)])
    axes = () if study.map is None else ("rows", "columns", "panels")
    for axis in axes:
        key = getattr(study.map, axis)
        if key is not None and key not in known:
            error = BadValue(axis, key, "is no setting of the study", did_you_mean(key, list(known)))
            raise ConfigError([locate(Study, document, ("map",), error)])


def _chosen(study: Study) -> Iterator[tuple[tuple[str | int, ...], Chosen]]:
    """Yield whom claims and map name, and where they do."""
    asked: list[tuple[tuple[str | int, ...], Claim | Map]] = [
        (("claims", number), claim) for number, claim in enumerate(study.claims)
    ]
    asked += [] if study.map is None else [(("map",), study.map)]
    for where, both in asked:
        for side, chosen in (("better", both.better), ("worse", both.worse)):
            yield from (((*where, side, place), one) for place, one in enumerate(chosen))


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
