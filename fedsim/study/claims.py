"""Whether claims hold: paired differences over seeds, their interval, and a verdict by one rule.

The rule: a claim *holds* if the interval of the mean paired difference lies on the claim's side. It holds *partly* if
only the mean and more than half of the seeds do, and *does not* otherwise; nothing *can be said* with fewer than three
pairs. Where a run never reaches a target there is no ratio; a seed in which only one side reaches it counts for that
side, and the seeds decide: all of them, more than half, or not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from fedsim.errors import ConfigError, Problem, did_you_mean
from fedsim.study.asked import Chosen, Claim, concerns, text, wanted
from fedsim.study.interval import Interval, mean
from fedsim.study.measure import Budget, is_rising, number, quality, taken
from fedsim.study.ran import COSTS, Ran, rest

NONE = "–"
HOLDS, PARTLY, NOT, UNKNOWN = "holds", "partly", "does not", "cannot be said"
FEWEST = 3
"""With fewer pairs nothing can be said."""


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim.

    Args:
        claim: the claim.
        gains: by seed, by how much it is better: a difference, or the logarithm of a ratio of costs; infinite where
            only one side came to the target.
        here: the mean difference, or ratio, or value, with its interval.
        verdict: one of :data:`HOLDS`, :data:`PARTLY`, :data:`NOT` and :data:`UNKNOWN`.
        right: in how many seeds it is better.
    """

    claim: Claim
    gains: Mapping[str, float]
    here: Interval
    verdict: str
    right: int

    @property
    def seeds(self) -> str:
        """In how many seeds it is better, as text."""
        return f"{self.right} of {len(self.gains)}"


def findings(
    claims: Sequence[Claim], runs: Sequence[Ran], by: str = "method", tuned: Collection[str] = ()
) -> list[Finding]:
    """Return what the runs say of each claim.

    Args:
        claims: what is claimed.
        runs: of one study.
        by: the setting that a claim's bare names are values of.
        tuned: the settings that were tuned, in which a pair may differ.

    Of a seed count only those runs to which every side has its counterpart: what broke in a hard world would else seem
    better for it.

    Raises:
        ConfigError: if a claim asks for what no run has measured.
    """
    return [_finding(claim, runs, by, tuned) for claim in claims]


def _finding(claim: Claim, runs: Sequence[Ran], by: str, tuned: Collection[str]) -> Finding:
    sides = claim.better, claim.worse
    mine = [ran for ran in runs if any(concerns(one, ran.settings, by) for side in sides for one in side)]
    metric = _metric(claim, mine)
    seeds: dict[str, list[Ran]] = {}
    for ran in mine:
        seeds.setdefault(text(ran.settings.get("seed", 0)), []).append(ran)
    found = {seed: _gain(claim, metric, _whole(claim, some, by, tuned), by) for seed, some in seeds.items()}
    gains = {seed: gain for seed, gain in found.items() if not math.isnan(gain)}
    here, goal = mean([gain for gain in gains.values() if math.isfinite(gain)]), _goal(claim, metric)
    right = sum(_beyond(gain, goal, claim) for gain in gains.values())
    verdict = _verdict(claim, list(gains.values()), here, goal, right)
    return Finding(claim, gains, _shown(claim, metric, here), verdict, right)


def _whole(claim: Claim, runs: Sequence[Ran], by: str, tuned: Collection[str]) -> list[Ran]:
    """Return those runs of a seed to which all that the claim names has a run that is alike in all else."""
    chosen = [*claim.better, *claim.worse]
    named = {"seed", *tuned, *(key for one in chosen for key in wanted(one, by))}
    there = [{rest(ran, named) for ran in runs if concerns(one, ran.settings, by)} for one in chosen]
    return [ran for ran in runs if all(rest(ran, named) in some for some in there)]


def _metric(claim: Claim, runs: Sequence[Ran]) -> str:
    name = claim.metric or ("rounds" if claim.target else quality(runs))
    known = {one for ran in runs for one in ran.names()} | set(COSTS)
    if runs and name not in known:
        reason = f"{name} was not measured" if name else "its runs have no metric in common"
        hint = did_you_mean(name, sorted(known)) if name else ""
        raise ConfigError([Problem("claims", claim.text, reason, hint)])
    return name or ""


def _gain(claim: Claim, metric: str, runs: Sequence[Ran], by: str) -> float:
    """Return by how much a claim is right in one seed; NaN if something is missing."""
    budget = None
    if claim.equal is not None and runs:
        budget = (claim.equal, min(ran.total(claim.equal) for ran in runs))

    def added(side: Sequence[Chosen]) -> float:
        chosen = [[ran for ran in runs if concerns(one, ran.settings, by)] for one in side]
        return sum(_mean(claim, metric, some, budget) for some in chosen)

    better, worse = added(claim.better), added(claim.worse)
    if _is_ratio(claim):
        if (math.isinf(better) and math.isinf(worse)) or not min(better, worse) > 0:
            return math.nan
        better, worse = math.log(better), math.log(worse)
    return _sign(claim, metric) * (better - worse)


def _mean(claim: Claim, metric: str, runs: Sequence[Ran], budget: Budget | None) -> float:
    """Return the mean over a seed's runs that are chosen; infinite if one of them has not come to the target."""
    if claim.target:
        [(goal, target)] = claim.target.items()
        values = [taken(ran, goal, target).get(metric, math.inf) for ran in runs]
    else:
        values = [number(ran, claim, metric, budget) for ran in runs]
    return sum(values) / len(values) if values else math.nan


def _is_ratio(claim: Claim) -> bool:
    return bool(claim.worse) and (claim.is_cost or claim.ratio)


def _sign(claim: Claim, metric: str) -> int:
    return 1 if is_rising(metric, claim.higher) else -1


def _goal(claim: Claim, metric: str) -> float:
    """Return what a gain has to come to."""
    by = claim.by
    if by is None:
        return 0.0
    if _is_ratio(claim):
        return math.log(by)
    return by if claim.worse else _sign(claim, metric) * by


def _beyond(gain: float, goal: float, claim: Claim) -> bool:
    return gain > goal if claim.by is None else gain >= goal


def _verdict(claim: Claim, gains: Sequence[float], here: Interval, goal: float, right: int) -> str:
    if len(gains) < FEWEST:
        return UNKNOWN
    most = 2 * right > len(gains)
    if not all(map(math.isfinite, gains)):
        return HOLDS if right == len(gains) else PARTLY if most else NOT
    if _beyond(here[1], goal, claim):
        return HOLDS
    return PARTLY if most and _beyond(here[0], goal, claim) else NOT


def _shown(claim: Claim, metric: str, here: Interval) -> Interval:
    """Return a gain as it stands in the table: as a ratio, a difference, or the value itself."""
    middle, low, high = here
    if _is_ratio(claim):
        return math.exp(middle), math.exp(low), math.exp(high)
    if not claim.worse and _sign(claim, metric) < 0:
        return -middle, -high, -low
    return middle, low, high


def shown(finding: Finding) -> str:
    """Return what was found as text: a difference with its sign, a ratio, or a value, with its interval."""
    middle, *ends = finding.here
    if not math.isfinite(middle):
        return NONE
    form = "{:.3g}" if _is_ratio(finding.claim) or not finding.claim.worse else "{:+.3g}"
    inner = ", ".join(map(form.format, ends))
    times = " times" if _is_ratio(finding.claim) else ""
    pairs = sum(map(math.isfinite, finding.gains.values()))
    told = "" if pairs == len(finding.gains) else f" in {pairs} of {len(finding.gains)}"
    return form.format(middle) + times + (f" [{inner}]" if math.isfinite(ends[0]) else "") + told
