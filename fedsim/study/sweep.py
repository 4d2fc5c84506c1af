"""The runs of a study, one after another or several at a time; what is done is not done again."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedsim.errors import (
    BadValue,
    ConfigError,
    FedsimError,
    NotFiniteError,
    Problem,
    StalledError,
    did_you_mean,
)
from fedsim.record.files import to_json, write_text
from fedsim.study.asked import METHOD, WORLD, Measure, is_meant, text
from fedsim.study.content import Study
from fedsim.study.file import Plan, Point, Settings, dump, said
from fedsim.study.kept import (
    DONE,
    FAILED,
    POINTS,
    STUDY,
    WAITING,
    code_of,
    earlier,
    finished,
    is_same,
    stopped,
)
from fedsim.study.measure import is_rising, quality
from fedsim.study.measure import number as number_of
from fedsim.study.ran import ran
from fedsim.study.ways import Advance, Call, Run, Spread, Ways, done_by, processes

Tried = tuple[str | None, ...]
"""A method, a world, and whatever else it is tuned for."""


@dataclass
class Outcome:
    """What became of one run of a study.

    Args:
        point: which run.
        status: ``"done"``, ``"failed"`` or ``"waiting"``.
        folder: the run's folder, or None; of one that failed only if that is the method's own doing: it came to a
            standstill, or its weights became infinite.
        reason: why it failed, in one line.
        new: whether it has run just now, and was not there already.
        summary: the run's final numbers.
        refused: whether it failed because of its settings, before anything ran; that is tried anew each time.
        code: of one that failed, the digests of the own modules that it was run with, by path.
    """

    point: Point
    status: str = WAITING
    folder: Path | None = None
    reason: str = ""
    new: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    refused: bool = False
    code: dict[str, str] = field(default_factory=dict)


Told = Callable[[Outcome, int, int], None]
"""Called with each outcome, how many there are by then, and how many there will be."""


def sweep(
    plan: Plan,
    run: Run,
    resume: Run,
    out: Path,
    *,
    jobs: int = 1,
    only: Mapping[str, Any] | None = None,
    together: Advance | None = None,
    spread: Spread | None = None,
    retry: bool = False,
    told: Told | None = None,
) -> list[Outcome]:
    """Run all of a study that has not been run.

    Args:
        plan: the study.
        run: :func:`fedsim.run`.
        resume: :func:`fedsim.resume`, for runs that were stopped.
        out: the folder in which the study gets a folder of its own, with one for each run.
        jobs: how many run at a time, each in a process of its own if there are several.
        together: lets as many as that advance in this process: :func:`fedsim.running.together.advance`, or None.
        spread: has them run elsewhere, as many at a time as it says: :class:`fedsim.running.tasks.Tasks`, or None.
        only: run those alone that have these settings.
        retry: run again what failed before.
        told: hears of each outcome.

    Returns:
        The outcomes in the order of the study, also those of earlier calls.

    Raises:
        ConfigError: if the study cannot be run at all, or somebody else is at it.
    """
    folder = out / plan.study.name
    with _alone(folder):
        write_text(folder / STUDY, dump(plan.study))
        if not any(has(point.settings, only or {}) for point in plan.points()):
            near = ((str(value), plan.study.names(key)) for key, value in (only or {}).items())
            hint = next((did_you_mean(*one) for one in near if one[0] not in one[1]), "")
            rule = "no run of the study has these settings"
            raise ConfigError([Problem("only", str(dict(only or {})), rule, hint)])
        ways = run, resume
        how = _How(ways, jobs, together, spread, retry, told)
        best = _tune(plan, how, folder)
        points = [plan.tuned(point, best.get(_tried(plan, point), {})) for point in plan.points()]
        return _Sweep(plan, how, folder).do(points, only or {})


@dataclass(frozen=True)
class _How:
    """How the runs of a study are run; see :func:`sweep`."""

    ways: Ways
    jobs: int
    together: Advance | None
    spread: Spread | None
    retry: bool
    told: Told | None


def _tune(plan: Plan, how: _How, folder: Path) -> dict[Tried, Settings]:
    """Return the values that were the best for each method."""
    trials = plan.trials()
    if not trials:
        return {}
    best: dict[Tried, tuple[float, Settings]] = {}
    for outcome in _Sweep(plan, how, folder / "tuning").do(trials, {}):
        score, who = _score(outcome, plan.study.tune_by), _tried(plan, outcome.point)
        if score is not None and (who not in best or score > best[who][0]):
            best[who] = score, {key: outcome.point.settings[key] for key in plan.study.tune}
    tried = dict.fromkeys(_tried(plan, point) for point in trials)
    missing = [_name(who) for who in tried if who not in best]
    if missing:
        reason = f"no run of {', '.join(missing)} came to an end, so that nothing could be chosen"
        raise ConfigError([Problem("tune", str(dict(plan.study.tune)), reason)])
    chosen = {who: values for who, (_, values) in best.items()}
    write_text(folder / "tuned.json", to_json({_name(k): v for k, v in chosen.items()}, indent=2) + "\n")
    return chosen


def _tried(plan: Plan, point: Point) -> Tried:
    """Return what gets a value of its own: a method in a world, and with whatever else it is tuned for."""
    each = (f"{key}={text(point.settings[key])}" for key in plan.study.tune_each)
    return point.settings.get(METHOD), point.settings.get(WORLD), *each


def _name(who: Tried) -> str:
    return " in ".join(filter(None, who)) or "the study"


def _score(outcome: Outcome, asked: Measure) -> float | None:
    """Return how good a run was, the more the better, or None if it did not come to its end."""
    if outcome.status != DONE or outcome.folder is None:
        return None
    done = ran(outcome.folder, outcome.point.settings)
    metric = asked.metric or quality([done])
    if metric is None:
        return None
    value = number_of(done, asked, metric)
    return None if math.isnan(value) else value if is_rising(metric, asked.higher) else -value


class _Sweep:
    def __init__(self, plan: Plan, how: _How, folder: Path) -> None:
        self.plan, self.how, self.folder = plan, how, folder
        self.before = earlier(folder)
        folder.mkdir(parents=True, exist_ok=True)

    def do(self, points: Sequence[Point], only: Mapping[str, Any]) -> list[Outcome]:
        """Do what has not been done of those that have some settings, and know of the others what there is."""
        every = [self._start(point) for point in points]
        outcomes = [outcome for outcome in every if has(outcome.point.settings, only)]
        self._write(every)  # so that what another study file had said is not taken for this one's
        for count, outcome in enumerate(self._ends(outcomes), 1):
            self._write(every)
            if self.how.told is not None:
                self.how.told(outcome, count, len(outcomes))
        return outcomes

    def _start(self, point: Point) -> Outcome:
        """Return what is known of a run: it is done, it failed before, its settings are refused, or it waits."""
        outcome = Outcome(point)
        try:
            experiment = self.plan.experiment(point)
        except ConfigError as error:
            outcome.status, outcome.reason = FAILED, str(error).splitlines()[0]
            outcome.refused = True
            return outcome
        found = finished(self.folder, experiment)
        if found is not None:
            outcome.status, outcome.folder = DONE, found
            outcome.summary = json.loads((found / "summary.json").read_text(encoding="utf-8"))
            return outcome
        before = None if self.how.retry else self.before.get(experiment.digest())
        if before is not None and is_same(before.code, experiment):
            outcome.status, (outcome.reason, outcome.folder, outcome.code) = FAILED, before
        return outcome

    def _ends(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Have what waits run in the way that was asked for, and return each outcome when it is known."""
        if self.how.together is not None:
            return self._together(outcomes, self.how.jobs, self.how.together)
        if self.how.spread is None and self.how.jobs == 1:
            return self._in_turn(outcomes)
        return self._at_once(outcomes)

    def _in_turn(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        for outcome in outcomes:
            if outcome.status == WAITING:
                self._take(outcome, self._call(outcome.point))
            yield outcome

    def _together(self, outcomes: Sequence[Outcome], jobs: int, advance: Advance) -> Iterator[Outcome]:
        """Let runs advance together, as many as there may be at a time, all with the same number of threads."""
        yield from (outcome for outcome in outcomes if outcome.status != WAITING)
        alike: dict[int, list[Outcome]] = {}
        for outcome in [outcome for outcome in outcomes if outcome.status == WAITING]:
            alike.setdefault(self.plan.experiment(outcome.point).compute.threads, []).append(outcome)
        for count, some in alike.items():
            for first in range(0, len(some), jobs):
                now = some[first : first + jobs]
                runs = [self._call(outcome.point) for outcome in now]
                for number, result in advance(runs, count):
                    self._take(now[number], result)
                    yield now[number]

    def _at_once(self, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
        """Run several at a time, in processes of this machine or of others."""
        yield from (outcome for outcome in outcomes if outcome.status != WAITING)
        left = [outcome for outcome in outcomes if outcome.status == WAITING]
        calls = [functools.partial(self._call, outcome.point) for outcome in left]
        if self.how.spread is None or not left:
            ends = processes(calls, self.how.jobs)
        else:
            needs = [self.plan.experiment(outcome.point).compute for outcome in left]
            ends = self.how.spread(calls, needs, self.folder)
        for number, result in ends:
            self._take(left[number], result)
            yield left[number]

    def _call(self, point: Point) -> Call:
        """Return what runs a point, or goes on with it where it has been begun by now."""
        experiment = self.plan.experiment(point)
        begun = None if experiment.digest() in self.before else stopped(self.folder, experiment)
        changes = self.plan.overrides(point)
        left = None if begun is None else str(begun)
        return functools.partial(done_by, *self.how.ways, self.plan.source, changes, str(self.folder), left)

    def _take(self, outcome: Outcome, result: Call) -> None:
        outcome.new = True
        try:
            path, outcome.summary = result()
            outcome.status, outcome.folder = DONE, Path(path)
        except ConfigError as error:  # refused: the study says in which run, not how it was called
            outcome.status, outcome.refused = FAILED, True
            [first, *_] = error.problems
            outcome.reason = str(replace(first, source=self.plan.place(outcome.point, first.source)))
        except FedsimError as error:
            outcome.status, outcome.reason = FAILED, str(error).splitlines()[0]
            left: Path | None = getattr(error, "run_path", None)
            outcome.code = code_of(left) if left is not None else {}
            if isinstance(error, StalledError | NotFiniteError):  # what it had measured says something of it
                outcome.folder = left

    def _write(self, outcomes: Iterable[Outcome]) -> None:
        """Write down what has become of each run, so that the study can be read, and gone on with, at any time."""
        rows = [
            {
                "settings": outcome.point.settings,
                "status": outcome.status,
                "folder": outcome.folder.name if outcome.folder else None,
                "reason": outcome.reason or None,
                **self._failure(outcome),
            }
            for outcome in outcomes
        ]
        write_text(self.folder / POINTS, to_json(rows, indent=2) + "\n", lasting=False)

    def _failure(self, outcome: Outcome) -> dict[str, Any]:
        """Return what a failure is known by: it counts as long as the experiment and its own code are the same."""
        if outcome.status != FAILED or outcome.refused:
            return {}
        return {"experiment": self.plan.experiment(outcome.point).digest(), "code": outcome.code}


def study_of(folder: Path) -> Study | None:
    """Return the study that a folder is of, or None."""
    file = folder / STUDY
    return said(file) if file.exists() else None


def has(settings: Mapping[str, Any], only: Mapping[str, Any]) -> bool:
    """Tell whether a run has certain settings.

    >>> has({"seed": 1, "method": "a"}, {"seed": "1"}), has({"seed": 1}, {"method": "a"})
    (True, False)
    """
    return all(key in settings and is_meant(settings[key], value) for key, value in only.items())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep others out of a study's folder meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            [Problem("out", str(folder), "somebody else is running this study there")]
        ) from None
    except OSError as error:
        raise ConfigError([Problem("out", str(folder), f"cannot be written ({error.strerror})")]) from error


def only_of(texts: Iterable[str]) -> Settings:
    """Return what ``--only KEY=VALUE`` says.

    Raises:
        BadValue: for what is not KEY=VALUE.
    """
    found = {}
    for one in texts:
        key, equals, value = one.partition("=")
        if not (key and equals):
            raise BadValue("--only", one, "must be KEY=VALUE")
        found[key] = value
    return found
