"""What a study file says: an experiment, what varies, and what is compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from fedsim.errors import BadValue
from fedsim.ranges import Seed
from fedsim.spec.blocks import Block, Name
from fedsim.study.asked import METHOD, WORLD, Claim, Compare, Map, Measure, text

ZIP = "zip"
TWICE = "is there twice; a run that counts twice makes intervals too narrow"


class Study(Block):
    """A whole study; :func:`fedsim.study.file.load` makes one."""

    name: Name = Field(
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
                raise BadValue(key, twice[0], TWICE)
        lengths = {key: len(values) for key, values in vary.get(ZIP, {}).items()}
        if len(set(lengths.values())) > 1:
            raise BadValue(ZIP, vary[ZIP], f"its lists go in step, and have different lengths: {lengths}")
        for key in vary.keys() & lengths.keys():
            raise BadValue(key, vary[key], "is below zip, too; give it once")
        if twice := _twice([list(step) for step in zip(*vary.get(ZIP, {}).values(), strict=True)]):
            raise BadValue(ZIP, twice[0], TWICE)
        return vary

    @property
    def axes(self) -> dict[str, Any]:
        """The dotted keys that vary, those that go in step among them, with their values."""
        return dict(_axes(self.vary))

    def names(self, key: str) -> list[str]:
        """Return the values of a setting, as text, whether or not they have run."""
        known: dict[str, Iterable[Any]] = {METHOD: self.methods, WORLD: self.worlds, **self.axes}
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
