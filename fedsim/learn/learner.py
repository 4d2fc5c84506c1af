"""The compute plane as the rest of fedsim sees it: local updates and evaluations as deferred values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.errors import FedsimError, NotFiniteError, RunError
from fedsim.learn.deferred import Deferred, Inputs
from fedsim.learn.engines import Engine, TrainJob
from fedsim.learn.local import LocalUpdate, State
from fedsim.rng import stream


@dataclass(frozen=True)
class Place:
    """Where in the simulated world a computation belongs; errors name it."""

    node: int
    round: int
    sim_time_s: float


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
    """

    engine: Engine
    x_test: Tensor
    y_test: Tensor
    seed: int
    chunk: int = 1000
    dry: bool = False

    @property
    def initial(self) -> Deferred:
        """The weights that everybody starts from [P]."""
        return Deferred.phantom() if self.dry else Deferred.known(self.engine.task.initial)

    @property
    def sizes(self) -> list[int]:
        """The number of training samples of each client."""
        return self.engine.data.sizes

    def train(
        self, update: LocalUpdate, client: int, given: Mapping[str, Deferred], place: Place
    ) -> Deferred:
        """Return what a client will send back, as a deferred dictionary of vectors [P] and metrics [].

        Args:
            update: what it does.
            client: whose data it uses.
            given: the vectors that the update takes, by name.
            place: where and when; the round names the client's random stream.
        """
        missing = [name for name in update.takes if name not in given]
        if missing:
            reason = f"the update needs {missing} and was given {sorted(given)}"
            raise RunError(reason, place.node, place.round, place.sim_time_s, "train")
        if self.dry:
            return Deferred.phantom()
        return Deferred(Train(self, update, client, place), {name: given[name] for name in update.takes})

    def evaluate(self, weights: Deferred, client: int | None = None) -> Deferred:
        """Return loss (and accuracy) as a deferred dictionary, on the test data or on a client's own data."""
        if self.dry:
            return Deferred.phantom()
        return Deferred(Evaluate(self, client), {"weights": weights})


@dataclass(frozen=True, eq=False)
class Train:
    """A local update as a call."""

    learner: Learner
    update: LocalUpdate
    client: int
    place: Place

    @property
    def batch(self) -> tuple[str, int, int]:
        """Updates of one algorithm run together."""
        return "train", id(self.learner), id(self.update)

    def run(self, calls: Sequence[Train], inputs: Sequence[Inputs]) -> Sequence[State]:
        """Do the updates."""
        try:
            jobs = [call._job(given) for call, given in zip(calls, inputs, strict=True)]
            results = self.learner.engine.train(jobs)
        except FedsimError:
            raise
        except Exception as error:
            if len(calls) > 1:  # one by one, so that the error names the client that fails
                return [call.run([call], [given])[0] for call, given in zip(calls, inputs, strict=True)]
            place = self.place
            reason = f"{type(error).__name__}: {error}"
            raise RunError(reason, place.node, place.round, place.sim_time_s, "train") from error
        for call, result in zip(calls, results, strict=True):
            call._check(result)
        return results

    def _job(self, given: Inputs) -> TrainJob:
        learner, client = self.learner, self.client
        rng = stream(learner.seed, "batches", client, self.place.round)
        return TrainJob(self.update, client, self.update.batches(learner.sizes[client], rng), given)

    def _check(self, result: State) -> None:
        bad = [name for name, value in result.items() if not bool(torch.isfinite(value).all())]
        if bad:
            place = self.place
            reason = f"NaN or infinity in {', '.join(bad)}; a smaller learning rate may help"
            raise NotFiniteError(reason, place.node, place.round, place.sim_time_s, "train")


@dataclass(frozen=True, eq=False)
class Evaluate:
    """An evaluation as a call."""

    learner: Learner
    client: int | None

    @property
    def batch(self) -> tuple[str, int, int | None]:
        """Evaluations on the same data run together."""
        return "evaluate", id(self.learner), self.client

    def run(self, calls: Sequence[Evaluate], inputs: Sequence[Inputs]) -> Sequence[dict[str, float]]:
        """Do the evaluations."""
        del calls
        learner, data = self.learner, self.learner.engine.data
        x, y = learner.x_test, learner.y_test
        if self.client is not None:
            own = data.owned[self.client]
            x, y = data.x[own], data.y[own]
        return learner.engine.evaluate([given["weights"] for given in inputs], x, y, learner.chunk)
