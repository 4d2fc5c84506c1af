"""What a study asks of its runs: which costs, which number of a run, and which claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from fedsim import scalars
from fedsim.errors import BadValue
from fedsim.ranges import Count, Number, Whole
from fedsim.spec.blocks import Block

METHOD, WORLD = "method", "world"

Axis = Literal["rounds", "sim_time", "bytes", "gradients", "updates", "energy"]

Total = Literal["rounds", "sim_time", "bytes", "gradients", "updates", "energy", "wasted"]

AXES = get_args(Axis)

HIGHER = (
    "whether more is better; by default where the metric's name says so, as with accuracy, f1, auc, top_k, precision "
    "or recall, and not as with losses and costs"
)

Chosen = str | dict[str, Any]
"""Some runs: those of a method by its name, or those with certain settings."""


def one_target(target: dict[str, float]) -> dict[str, float]:
    """Refuse several targets, of which only one would count."""
    if len(target) > 1:
        raise ValueError("must be one metric and its value")
    return target


class Compare(Block):
    """What is compared, unless the command says something else."""

    by: str = Field(
        default=METHOD, description="the setting whose values are compared; everything else is averaged over"
    )
    baseline: str | None = Field(default=None, description="the value that the others are compared with")
    target: dict[str, Number] = Field(
        default_factory=dict, description="a metric, and the value that is to be reached"
    )
    higher: bool | None = Field(default=None, description=HIGHER)
    x: list[Axis] = Field(
        default=["rounds", "sim_time", "bytes"], min_length=1, description="the costs that count"
    )
    totals: list[Total] = Field(
        default=[],
        description="the costs whose amount in the whole run is shown; wasted are gradients that nobody used",
    )

    @field_validator("target")
    @classmethod
    def _one_target(cls, target: dict[str, float]) -> dict[str, float]:
        return one_target(target)


class Measure(Block):
    """One number of a run: what was measured last, or a mean over several evaluations."""

    metric: str | None = Field(
        default=None,
        description="what was measured, or a cost; by default accuracy, or else distance, or else loss",
    )
    last: Count = Field(default=1, description="the mean over so many of the last evaluations")
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="instead of last: the mean over the last part of the evaluations, such as 0.2",
    )
    rounds: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="instead of last: the mean over the evaluations of these rounds, both ends included",
    )
    higher: bool | None = Field(default=None, description=HIGHER)

    @model_validator(mode="after")
    def _one_window(self) -> Measure:
        if self.rounds is not None and self.rounds[0] > self.rounds[1]:
            raise BadValue("rounds", self.rounds, "must go from the first round to the last")
        if (self.share is not None) + (self.rounds is not None) + (self.last != 1) > 1:
            raise BadValue("share", self.share, "may not stand beside last or rounds")
        if self.metric in AXES:
            self._refuse_windows("last", "share", "rounds")
        return self

    def _refuse_windows(self, *keys: str) -> None:
        for key in keys:
            value = getattr(self, key)
            if value != type(self).model_fields[key].default:
                raise BadValue(key, value, "is about what was measured, and here it is a cost that counts")


class Compared(Measure):
    """What of two sides is compared, seed by seed."""

    target: dict[str, Number] = Field(
        default_factory=dict,
        description="a metric and a value; compared is then what it cost to reach it, as a ratio",
    )
    equal: Axis | None = Field(
        default=None,
        description="of all compared runs of a seed, only what came before the least has spent all that it does of "
        "this cost",
    )
    ratio: bool = Field(
        default=False,
        description="whether the two sides are compared as a ratio, as costs always are, and not as a difference",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Compared:
        if self.target and self.metric not in (None, *AXES):
            rule = f"must be a cost where there is a target: one of {', '.join(AXES)}"
            raise BadValue("metric", self.metric, rule)
        if self.is_cost:
            self._refuse_windows("last", "share", "rounds", "equal")
        return self

    @property
    def is_cost(self) -> bool:
        """Whether costs are compared, which is done as a ratio."""
        return bool(self.target) or self.metric in AXES

    @field_validator("target")
    @classmethod
    def _single(cls, target: dict[str, float]) -> dict[str, float]:
        return one_target(target)


class Claim(Compared):
    """Something that is said of methods, and whether the runs bear it out."""

    text: str = Field(description="the claim, in words")
    better: list[Chosen] = Field(
        min_length=1,
        description="what is claimed to be better: names of methods, or settings such as {method: a, seed: 1}. The "
        "numbers of several are added up",
    )
    worse: list[Chosen] = Field(
        default=[], description="what it is compared with, seed by seed; without it, by is to be reached"
    )
    by: Number | None = Field(
        default=None,
        description="by how much it is to be better: a difference, or a factor where there is a ratio",
    )
    paper: str = Field(default="", description="what the paper has measured, for the table")

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if self.by is None and not self.worse:
            raise BadValue("worse", self.worse, "is empty, so that by must say what is to be reached")
        if self.ratio and not self.worse:
            raise BadValue("worse", self.worse, "is empty, so that there is no ratio")
        if (self.is_cost or self.ratio) and self.by is not None and self.by <= 0:
            raise BadValue("by", self.by, "is a factor here, and must be greater than 0")
        return self


class Map(Compared):
    """A heat map over two settings: in each cell a number, or by how much some are better than others."""

    rows: str = Field(description="the setting whose values are the rows, such as a dotted key that varies")
    columns: str = Field(description="the setting whose values are the columns")
    panels: str | None = Field(
        default=None, description="a third setting; each of its values gets a panel of its own"
    )
    better: list[Chosen] = Field(
        default=[],
        description="whose numbers are shown: names of methods, or settings; of several the best of each cell. By "
        "default all runs of a cell",
    )
    worse: list[Chosen] = Field(
        default=[],
        description="what they are compared with, seed by seed: the best of these in the same cell, unless they name "
        "the cell's own settings themselves",
    )
    title: str = Field(default="", description="what the map shows, in words")
    alone: bool = Field(
        default=False,
        description="whether a page shows the map and the claims without the curves and the table of each world",
    )

    @model_validator(mode="after")
    def _apart(self) -> Map:
        keys = [key for key in (self.rows, self.columns, self.panels) if key is not None]
        if len(set(keys)) < len(keys):
            raise BadValue("columns", self.columns, "rows, columns and panels must be different settings")
        if self.ratio and not self.worse:
            raise BadValue("worse", self.worse, "is empty, so that there is no ratio")
        return self


def concerns(chosen: Chosen, settings: Mapping[str, Any], by: str) -> bool:
    """Tell whether a run with these settings is among the chosen ones.

    >>> concerns("a", {"method": "a", "seed": 1}, "method"), concerns({"seed": 2}, {"seed": 1}, "method")
    (True, False)
    """
    return all(
        key in settings and is_meant(settings[key], value) for key, value in wanted(chosen, by).items()
    )


def is_meant(value: Any, asked: Any) -> bool:
    """Tell whether a value of a setting is the one that is asked for, in full, as text, or a block by its name alone.

    >>> block = {"name": "tree", "branching": 2}
    >>> [is_meant(block, asked) for asked in ("tree", "tree (branching 2)", block, "ring", None)]
    [True, True, True, False, False]
    >>> is_meant(True, "true"), is_meant(0.001, "1e-3"), is_meant(None, "null"), is_meant(1, True), is_meant("A", "a")
    (True, True, True, False, False)
    """
    if isinstance(asked, str) and isinstance(value, dict) and asked == value.get("name"):
        return True
    meant = scalars.read(asked) if isinstance(asked, str) and not isinstance(value, str) else asked
    return text(asked) == text(value) or (
        meant == value and isinstance(meant, bool) == isinstance(value, bool)
    )


def wanted(chosen: Chosen, by: str) -> dict[str, Any]:
    """Return the settings of the chosen runs.

    >>> wanted("a", "method")
    {'method': 'a'}
    """
    return {by: chosen} if isinstance(chosen, str) else chosen


def text(value: Any) -> str:
    """Return a value of a setting as text: a block by its name, and by what else it says.

    >>> text({"name": "ring"}), text({"name": "tree", "branching": 2}), text(0.5)
    ('ring', 'tree (branching 2)', '0.5')
    """
    if not isinstance(value, dict) or "name" not in value:
        return str(value)
    rest = ", ".join(f"{key} {text(inner)}" for key, inner in value.items() if key != "name")
    return f"{value['name']} ({rest})" if rest else str(value["name"])
