"""Where a run's numbers go besides its record: trackers, such as TensorBoard's files, while the run goes on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fedsim import parts
from fedsim.errors import BadValue, RunError, clip
from fedsim.places import of_error
from fedsim.spec.experiment import Experiment
from fedsim.spec.yamlfile import flat
from fedsim.world.clock import MICRO

Status = Literal["done", "failed", "stopped"]
DONE: Status = "done"
FAILED: Status = "failed"
STOPPED: Status = "stopped"

log = logging.getLogger("fedsim")


@dataclass(frozen=True)
class About:
    """What a run is, as its sinks hear at its start.

    Args:
        folder: the run's; its name is the run's, too.
        settings: the experiment with every default, as nested mappings.
    """

    folder: Path
    settings: Mapping[str, Any]

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The settings by dotted key.

        >>> About(Path("runs/mine-0a1b2c3d"), {"seed": 0, "data": {"name": "digits"}}).flat
        {'seed': 0, 'data.name': 'digits'}
        """
        return dict(flat(self.settings))


@dataclass
class Told:
    """What is told of a round.

    Args:
        round: its number; 0 is the start.
        sim_time_s: when it ended, in simulated seconds.
        numbers: those of the whole system by name, among them ``bytes_up``, ``bytes_down``, ``bytes_lost``, ``work``,
            ``wasted`` (per-sample gradients) and ``clients`` (updates), all counted since the start.
        nodes: those of single nodes, by name and node.
    """

    round: int
    sim_time_s: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    nodes: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a run has ended.

    Args:
        status: ``done``, ``failed`` or ``stopped`` (by Ctrl-C, or by somebody who ended its process).
        summary: its final numbers by name; empty unless it is done.
        reason: why it failed, in one line.
    """

    status: Status
    summary: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def numbers(self) -> dict[str, float]:
        """The finite numbers of the summary.

        >>> End("done", {"accuracy": 0.5, "name": "mine", "loss": None, "stalled": True}).numbers
        {'accuracy': 0.5}
        """
        return {
            name: float(value)
            for name, value in self.summary.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }


class Sink:
    """Hears of a run as its record does; a sink of your own has those of these methods that it needs.

    One that raises hears of an end at once, and of nothing afterwards.

    A run that goes on is told once more from its start, as it is recorded once more: a sink begins its files anew.
    """

    def start(self, about: About) -> None:
        """Hear what the run is; open what is needed."""

    def round(self, told: Told) -> None:
        """Hear of a round that has ended; of one that has been told, what has become known of it since."""

    def end(self, end: End) -> None:
        """Hear how the run has ended, once all its files are written; close what is open."""


@dataclass
class _Held:
    name: str
    sink: Any
    stops: bool
    started: bool = False


class Sinks:
    """The sinks of one run; each can fail without the others, and without the run unless the user says so.

    Args:
        held: name, sink, and whether the run stops if it raises, of each.
    """

    def __init__(self, held: Sequence[tuple[str, Any, bool]] = ()) -> None:
        self._held = [_Held(*one) for one in held]
        self._waiting: dict[int, Told] = {}

    def metric(self, round: int, time_us: int, name: str, value: float, node: int) -> None:
        """Hear of a number."""
        if not self._held:
            return
        told = self._of(round, time_us)
        if node < 0:
            told.numbers[name] = value
        else:
            told.nodes.setdefault(name, {})[node] = value

    def round(self, round: int, time_us: int, counts: Mapping[str, float]) -> None:
        """Hear that a round has ended, and what all rounds have cost by then."""
        if self._held:
            told = self._of(round, time_us)
            told.numbers = {**counts, **told.numbers}

    def _of(self, round: int, time_us: int) -> Told:
        told = self._waiting.setdefault(round, Told(round))
        told.sim_time_s = max(told.sim_time_s, time_us / MICRO)
        return told

    def tell(self, upto: int | None = None) -> None:
        """Tell of the rounds that have ended.

        Args:
            upto: the last of them; None tells all that there is to tell.

        Raises:
            RunError: if a sink raises whose failure is to stop the run.
        """
        for number in sorted(self._waiting):
            if upto is None or number <= upto:
                told = self._waiting.pop(number)
                self._each("round", told, (number, told.sim_time_s))

    @contextmanager
    def running(self, folder: Path, experiment: Experiment) -> Iterator[None]:
        """Tell of a run's start, and of its end if it comes early; :meth:`finish` tells of a good one.

        Args:
            folder: the run's.
            experiment: what is run.
        """
        if not self._held:
            yield
            return
        given = json.loads(experiment.model_dump_json(exclude={"beside"}))
        try:
            self._each("start", About(folder, given), (0, 0.0))
            yield
        except KeyboardInterrupt:
            self._leave(End(STOPPED))
            raise
        except BaseException as error:
            self._leave(End(FAILED, reason=clip(" ".join(str(error).split()), 200)))
            raise

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Tell that the run is done, and what has come of it.

        Raises:
            RunError: if a sink raises whose failure is to stop the run; all is written by then.
        """
        self.tell()
        self._end(End(DONE, dict(summary)))

    def _leave(self, end: End) -> None:
        """Tell of an early end; whatever a sink does then, the reason for it is what is told of."""
        for one in self._held:
            one.stops = False
        self.tell()
        self._end(end)

    def _end(self, end: End) -> None:
        """Tell every sink that has started of the end; only then may one of them stop anything."""
        held, self._held, raised = self._held, [], None
        for one in held:
            try:
                if one.started:
                    self._call(one, "end", end, (None, None))
            except RunError as error:
                raised = raised or error
        if raised is not None:
            raise raised

    def _each(self, method: str, given: Any, place: tuple[int | None, float | None]) -> None:
        for one in list(self._held):
            self._call(one, method, given, place)

    def _call(self, one: _Held, method: str, given: Any, place: tuple[int | None, float | None]) -> None:
        one.started = True
        try:
            getattr(one.sink, method, _nothing)(given)
        except (Exception, SystemExit) as error:
            self._held = [other for other in self._held if other is not one]
            said = error.rule if isinstance(error, BadValue) else next(iter(str(error).splitlines()), "")
            if method != "end":  # it may have files to close
                with suppress(Exception, SystemExit):
                    getattr(one.sink, "end", _nothing)(End(FAILED, reason="the tracker itself has failed"))
            what = f"{type(error).__name__} at {of_error(error)}: {clip(said, 200)}".rstrip(": ")
            if one.stops:
                raise RunError(what, None, *place, f"tracker {one.name}") from error
            log.warning("the tracker %s has failed, and the run goes on without it: %s", one.name, what)


def _nothing(_: Any) -> None:
    """Stand for a method that a sink has not."""


def make_sinks(experiment: Experiment) -> Sinks:
    """Make the sinks that an experiment names; nothing is opened before it starts.

    Raises:
        ConfigError: if one is unknown, refuses its parameters, or needs a library that is not installed.
    """
    held: list[tuple[str, Any, bool]] = []
    for index, block in enumerate(experiment.record.trackers):
        with experiment.blame("record", "trackers", index):
            if block.name in [name for name, _, _ in held]:
                raise BadValue("name", block.name, "is there twice")
            sink = parts.call(experiment.find("trackers", block.name), block.params)
            held.append((block.name, sink, block.on_failure == "stop"))
    return Sinks(held)
