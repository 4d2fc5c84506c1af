"""Several engines as one, so that what several runs have ready can be shared between processes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

from torch import Tensor

from fedsim.learn.engines.base import Engine, Shard, TrainJob
from fedsim.learn.lasting import check_lasting, stamps
from fedsim.learn.local import State
from fedsim.learn.several import X
from fedsim.learn.task import Task

Made = tuple[type[Engine], dict[str, Any], Task, Shard]
"""What an engine is made of: its class, its settings, its model and its data."""


@dataclass(frozen=True)
class Placed(TrainJob):
    """A job, and which of the engines is to do it.

    Args:
        engine: its number.
    """

    engine: int = 0


def placed(job: TrainJob, engine: int) -> Placed:
    """Return a job for an engine."""
    return Placed(**{one.name: getattr(job, one.name) for one in fields(job)}, engine=engine)


class Many(Engine):
    """Does each job with the engine that it is for; what a job gives depends on nothing else.

    Args:
        task: the first engine's.
        data: the first engine's.
        made: what each of the engines is made of, where they are to be made here.
        engines: the engines, where there are some already.
    """

    def __init__(
        self, task: Task, data: Shard, made: Sequence[Made] = (), engines: Sequence[Engine] = ()
    ) -> None:
        super().__init__(task, data)
        self._engines = [*engines, *(kind(one, shard, **settings) for kind, settings, one, shard in made)]
        self.grain = max(engine.grain for engine in self._engines)

    @property
    def members(self) -> list[Engine]:
        """The engines."""
        return self._engines

    @property
    def settings(self) -> dict[str, Any]:
        """Return what makes the same engines again, but for what an expert thinks."""
        made = [
            (type(one), one.settings, one.task, replace(one.data, difficulty=None)) for one in self._engines
        ]
        return {"made": made}

    def train(self, jobs: Sequence[TrainJob]) -> list[State]:
        """Do jobs, those of each engine together."""
        results: list[State] = []
        for number, some in groupby(jobs, key=_number):
            engine = self._engines[number]
            before = stamps(engine.task)
            results += engine.train(list(some))
            check_lasting(engine.task, before)
        return results

    def evaluate(self, weights: Sequence[Any], x: X, y: Tensor, chunk: int) -> list[dict[str, float]]:
        """Judge pairs of an engine's number and a weight vector, each on the held-out data of its own engine."""
        del x, y
        return list(self._judged(weights, chunk))

    def _judged(self, pairs: Sequence[tuple[int, Tensor]], chunk: int) -> Iterator[dict[str, float]]:
        for number, some in groupby(pairs, key=lambda pair: pair[0]):
            engine = self._engines[number]
            assert engine.data.test is not None  # nobody asks otherwise
            yield from engine.evaluate([vector for _, vector in some], *engine.data.test, chunk)


def _number(job: TrainJob) -> int:
    return job.engine if isinstance(job, Placed) else 0
