"""The compute plane as the rest of fedsim sees it: local updates and evaluations as deferred values."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import FedsimError, NotFiniteError, RunError
from fedsim.learn import buffers
from fedsim.learn.book import Book
from fedsim.learn.deferred import Deferred, Inputs
from fedsim.learn.draws import states
from fedsim.learn.engines import Engine, TrainJob
from fedsim.learn.engines.sequential import score
from fedsim.learn.finite import is_finite
from fedsim.learn.lasting import Changed, check_lasting, stamps
from fedsim.learn.local import MINE, LocalUpdate, State
from fedsim.learn.names import Names
from fedsim.learn.raised import passes, told
from fedsim.learn.schedules import Schedule
from fedsim.learn.several import X
from fedsim.rng import stream


class Place(NamedTuple):
    """Where in the simulated world a computation belongs; errors name it."""

    node: int
    round: int
    sim_time_s: float
    visit: int = 1
    """How often the node has worked in this round, this time included."""


@dataclass(frozen=True)
class Learner:
    """Model, data and engine of a run.

    Args:
        engine: does the work.
        x_test: held-out inputs [N, …].
        y_test: their labels or targets [N].
        seed: the experiment's seed.
        chunk: how many samples are evaluated at a time.
        dry: keep time only: every value is a phantom.
        drop: a local update that fails gives a :class:`Failed`, instead of stopping the run.
        assumed: numbers that can be read all the same, by name; None has none.
        optimum: the best weights [P], where the data have a known one.
        why: the reason for this engine.
        schedule: the factor of the clients' learning rates in each round, or None.
        tests: the samples of each client that are its own test, by their place among the training data; or nothing.
        own_tests: whether these places are among the held-out data instead.
        final: inputs and labels of the test, where ``x_test`` is a validation set; else None.
        book: keeps count of all values.
        state_bytes: so much of what clients keep stays in memory; None has no limit.
    """

    engine: Engine
    x_test: X
    y_test: Tensor
    seed: int
    chunk: int = 1000
    dry: bool = False
    drop: bool = False
    assumed: Mapping[str, float] | None = None
    optimum: Tensor | None = None
    why: str = ""
    schedule: Schedule | None = None
    tests: Sequence[Tensor] = ()
    own_tests: bool = False
    final: tuple[X, Tensor] | None = None
    book: Book = field(default_factory=Book)
    state_bytes: int | None = None

    def outline(self) -> list[str]:
        """Return what trains and what it takes, one line each."""
        if self.dry:
            return ["engine: none, for a timing-only run trains nothing"]
        return [
            f"engine: {self.engine.name}, {self.engine.used}; {self.why}",
            f"memory: {self.nbytes / 1e6:.3g} MB for the data and one model of each client",
        ]

    @cached_property
    def initial(self) -> Deferred:
        """The weights that everybody starts from [P]."""
        return Deferred.phantom() if self.dry else Deferred.known(self.engine.task.initial, self.book)

    @cached_property
    def zeros(self) -> Deferred:
        """A vector of zeros [P]."""
        zeros = torch.zeros_like(self.engine.task.initial)
        return Deferred.phantom() if self.dry else Deferred.known(zeros, self.book)

    @cached_property
    def names(self) -> Names:
        """What the results depend on."""
        return Names(self.engine, self.x_test, self.y_test, self.book)

    @property
    def sizes(self) -> list[int]:
        """The number of training samples of each client."""
        return self.engine.data.sizes

    @property
    def keeps(self) -> tuple[str, ...]:
        """The vectors that every client keeps beside those of its update, by name."""
        return buffers.kept(self.engine.task)

    @property
    def nbytes(self) -> int:
        """The memory that the data take, and one model for each client, in bytes."""
        data, model = self.engine.data, self.engine.task.initial
        held = (data.x, data.y, self.x_test, self.y_test)
        return sum(tensor.nbytes for tensor in held) + model.nbytes * len(data.sizes)

    def train(
        self,
        update: LocalUpdate,
        client: int,
        given: Mapping[str, Deferred],
        place: Place,
        numbers: Mapping[str, float] | None = None,
    ) -> Deferred:
        """Return what a client will send and keep, as a deferred dictionary of vectors [P] and metrics [].

        Args:
            update: what it does.
            client: whose data it uses.
            given: the vectors that the update takes, and those that the client keeps for it, by name.
            place: where and when; the round and the visit name the client's random streams.
            numbers: what is said to the client in place of the update's scalars of these names; others are ignored.
        """
        names = update.takes + update.keeps
        missing = [name for name in names if name not in given]
        if missing:
            reason = f"the update needs {missing} and was given {sorted(given)}"
            raise RunError(reason, place.node, place.round, place.sim_time_s, "train")
        if self.dry:
            return Deferred.phantom(self.assumed)
        call = Train(self, update, client, place, numbers or {})
        known = {name: given[name] for name in (*names, *self.keeps) if name in given}
        result = Deferred(call, known, self.book)
        if self.book.counts:  # what is trained to be measured is nobody's update
            self.book.begins(result, call)
        return result

    def evaluate(self, weights: Deferred, client: int | None = None) -> Deferred:
        """Return loss (and accuracy) as a deferred dictionary, on the test data or on a client's own data."""
        if self.dry:
            return Deferred.phantom(self.assumed)
        return Deferred(Evaluate(self, client), {"weights": weights}, self.book)

    def evaluate_own(self, weights: Deferred, client: int) -> Deferred:
        """Return loss (and accuracy) as a deferred dictionary, on what a client has held out as its own test."""
        return Deferred(Evaluate(self, client, "own"), {"weights": weights}, self.book)

    def evaluate_final(self, weights: Deferred) -> Deferred:
        """Return loss (and accuracy) as a deferred dictionary, on the test that the run was not evaluated on."""
        return Deferred(Evaluate(self, None, "final"), {"weights": weights}, self.book)


class Failed(dict[str, Tensor]):
    """What is left of a local update that failed: what the client keeps, as it was before; all else raises the error.

    Args:
        error: what happened, and where.
        kept: vectors [P] by name.
    """

    def __init__(self, error: RunError, kept: State) -> None:
        super().__init__(kept)
        self.error = error

    def __missing__(self, name: str) -> Tensor:
        raise self.error


@dataclass(frozen=True, eq=False)
class Train:
    """A local update as a call."""

    learner: Learner
    update: LocalUpdate
    client: int
    place: Place
    numbers: Mapping[str, float]

    @property
    def batch(self) -> tuple[str, int]:
        """Everything that is ready is handed over together, whichever update it is."""
        return "train", id(self.learner)

    @property
    def gradients(self) -> int:
        """What the update costs, in per-sample gradients."""
        return self.update.work(self.learner.sizes[self.client])

    def missing(self) -> RunError:
        """Return the error of a run that may compute nothing and would have to compute this."""
        place = self.place
        reason = "no run has left this update in the store: other choices were made, or it was computed without one"
        return RunError(reason, place.node, place.round, place.sim_time_s, "reuse")

    def named_by(self) -> object:
        """Name what the result depends on: when and where it is computed is not among that."""
        learner, client, update = self.learner, self.client, self.update
        data = learner.names.client(client), learner.names.judgement(client, update)
        visit = learner.seed, client, self.place.round, self.place.visit
        return learner.names.basis, update, *data, *visit, self.said

    def run(self, calls: Sequence[Train], inputs: Sequence[Inputs]) -> Sequence[State]:
        """Do the updates."""
        try:
            jobs = [call.job(given) for call, given in zip(calls, inputs, strict=True)]
            before = stamps(self.learner.engine.task)
            results = self.learner.engine.train(jobs)
            check_lasting(self.learner.engine.task, before)
        except BaseException as error:  # also what would end the program
            if passes(error):
                raise
            if isinstance(error, FedsimError) and not self.learner.drop:
                raise
            if len(calls) > 1:  # one by one, so that the error names the client that fails
                return [call.run([call], [given])[0] for call, given in zip(calls, inputs, strict=True)]
            place, reason = self.place, str(error) if isinstance(error, Changed) else told(error)
            broken = RunError(reason, place.node, place.round, place.sim_time_s, "train")
            return [self._failed(broken, inputs[0], error)]
        return [
            call._checked(call._whole(result, given), given)
            for call, result, given in zip(calls, results, inputs, strict=True)
        ]

    def job(self, given: Inputs) -> TrainJob:
        """Return what an engine is told to do, from the values of what is read."""
        learner, client = self.learner, self.client
        rows = self.update.batches(learner.sizes[client], self._stream("batches"))
        task = learner.engine.task
        drawn = {
            name: torch.from_numpy(vector).to(task.device, task.dtype)
            for name, vector in self._drawn(task.trained).items()
        }
        said = {
            name: torch.tensor(number, dtype=task.dtype, device=task.device)
            for name, number in self.said.items()
        }
        seed = int(self._stream("model draws").integers(2**63))
        # What clients keep may lie in files, which the host reads.
        there = {name: one.to(task.device) for name, one in given.items()}
        short, held = buffers.cut(task, there)
        mine = {MINE: task.mask} if self.update.splits else {}
        return TrainJob(self.update, client, rows, {**short, **drawn, **said, **mine}, seed, held)

    def _drawn(self, size: int) -> Mapping[str, np.ndarray]:
        """Return the update's random vectors; most have none, and need no stream for them."""
        if type(self.update).draws is LocalUpdate.draws:
            return {}
        return self.update.draws(size, self._stream("draws"))

    @property
    def said(self) -> dict[str, float]:
        """Return the numbers that take the place of the update's own, by name."""
        schedule = self.learner.schedule
        if not self.numbers and schedule is None:
            return {}
        own = self.update.scalars(self.client, self.learner.sizes[self.client])
        paced = {}
        if schedule is not None and "lr" in own:  # what a server says of a round counts more
            paced["lr"] = own["lr"] * schedule(self.place.round)
        return {name: float(number) for name, number in {**paced, **self.numbers}.items() if name in own}

    def _whole(self, result: State, given: Inputs) -> State:
        return buffers.whole(self.learner.engine.task, self.update, result, given)

    def _stream(self, purpose: str) -> np.random.Generator:
        """Return a stream of this visit; the first of a round has the round's own."""
        visit = self.place.visit
        name = purpose if visit == 1 else f"{purpose} {visit}"
        return stream(self.learner.seed, name, self.client, self.place.round)

    def _checked(self, result: State, given: Inputs) -> State:
        bad = [name for name, value in result.items() if not is_finite(value)]
        if not bad:
            return result
        place = self.place
        reason = f"NaN or infinity in {', '.join(bad)}; {self._why(given)}"
        return self._failed(NotFiniteError(reason, place.node, place.round, place.sim_time_s, "train"), given)

    def _why(self, given: Inputs) -> str:
        """Tell a model that was given NaN, or gives it, from one that came to it here."""
        learner, weights = self.learner, given.get("arrays")
        if weights is not None:
            own = learner.engine.data.owned[self.client]
            x, y = learner.engine.data.x[own], learner.engine.data.y[own]
            if not is_finite(weights):
                return "the weights received have it already"
            with contextlib.suppress(
                Exception
            ):  # what has gone wrong already is to be told, and nothing else
                if not math.isfinite(score(learner.engine.task, weights, x, y, learner.chunk)["loss"]):
                    return "the model received gives it for this client's samples, before any step"
        return "a smaller learning rate may help"

    def _failed(self, error: RunError, given: Inputs, cause: BaseException | None = None) -> State:
        if not self.learner.drop:
            raise error from cause
        names = (*self.update.keeps, *self.learner.keeps)
        return Failed(error, {name: given[name] for name in names if name in given})


@dataclass(frozen=True, eq=False)
class Evaluate:
    """An evaluation as a call."""

    learner: Learner
    client: int | None
    on: str = ""

    @property
    def batch(self) -> tuple[str, int, int | None, str]:
        """Evaluations on the same data run together."""
        return "evaluate", id(self.learner), self.client, self.on

    def named_by(self) -> object:
        """Name model, data, how many samples are evaluated at a time, and what is measured."""
        names, own = self.learner.names, self.client
        other = (self.on, *self._data()) if self.on else ()
        data = (names.test, self.learner.engine.task.metrics) if own is None else (names.client(own),)
        return names.basis, *data, self.learner.chunk, *other

    def _data(self) -> tuple[X, Tensor]:
        """Return inputs and labels."""
        learner, data = self.learner, self.learner.engine.data
        if self.client is not None:
            own = (learner.tests if self.on == "own" else data.owned)[self.client]
            if self.on == "own" and learner.own_tests:
                return learner.x_test[own], learner.y_test[own]
            return data.x[own], data.y[own]
        if self.on == "final" and learner.final is not None:
            return learner.final
        return learner.x_test, learner.y_test

    def run(self, calls: Sequence[Evaluate], inputs: Sequence[Inputs]) -> Sequence[dict[str, float]]:
        """Do the evaluations."""
        del calls
        learner, (x, y) = self.learner, self._data()
        device = learner.engine.task.device
        before, fixed = states(device), stamps(learner.engine.task)
        try:
            scores = learner.engine.evaluate([given["weights"] for given in inputs], x, y, learner.chunk)
            check_lasting(learner.engine.task, fixed)
        except Changed as error:
            raise RunError(str(error), self.client, phase="evaluate") from error
        except BaseException as error:  # also what would end the program
            if passes(error):
                raise
            raise RunError(told(error), self.client, phase="evaluate") from error
        if not all(
            map(torch.equal, before, states(device))
        ):  # seldom enough not to be seen when it was tried out
            reason = "the model draws random numbers in evaluation, so no score is right; let it do so only in training"
            raise RunError(reason, self.client, phase="evaluate")
        return scores
