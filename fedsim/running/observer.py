"""Watches a run: measures models, writes the record, reports progress, and says when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch

from fedsim.errors import NotFiniteError, RunError
from fedsim.learn.book import Mismatch
from fedsim.learn.deferred import Deferred, compute, noted
from fedsim.learn.learner import Learner, Place
from fedsim.methods.client import Client
from fedsim.methods.metrics import SYSTEM
from fedsim.record.better import rises
from fedsim.record.store import Record
from fedsim.rng import stream
from fedsim.running.checkpoint import Keeper
from fedsim.running.cohorts import Cohorts
from fedsim.running.models import keep
from fedsim.running.personal import MEASURED, OWN, Tuning, shares
from fedsim.running.progress import Progress
from fedsim.running.sinks import Sinks
from fedsim.running.spread import Spread
from fedsim.running.watched import Run
from fedsim.spec.experiment import Experiment
from fedsim.world.world import World

Models = Mapping[int, Deferred]
"""Models by node; the server's one model has the key -1."""

PENDING = 25
"""After so many rounds that nobody evaluates, their models are computed all the same, lest what waits grows on."""


class Observer(Run):
    """Called by a runner at the end of every round.

    Args:
        experiment: says what to measure and when to stop.
        learner: evaluates.
        world: counts bytes and work.
        record: where everything is written.
        progress: called after every round, or None.
        keeper: saves the run now and then, or None.
        sinks: hear of every round, or None.
    """

    def __init__(
        self,
        experiment: Experiment,
        learner: Learner,
        world: World,
        record: Record,
        progress: Callable[[Progress], None] | None = None,
        keeper: Keeper | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        super().__init__(experiment, world, record, progress, sinks)
        self.keeper, self.learner = keeper, learner
        self.tuning = Tuning(learner, experiment.strategy.local)
        self.final: dict[str, float] = {}
        self.models: Models = {}
        self.subject = ""
        self.own: Callable[[Deferred, int], Deferred] = lambda model, _: model
        self.homes: Mapping[int, int] = {}
        self.personal: Callable[[Client], Deferred] = lambda client: client.model
        self.kept: Callable[[int], Mapping[str, Deferred]] = lambda _: {}
        self.cohorts: Cohorts | None = None
        numbers = experiment.assume.numbers
        self._assumed: dict[str, float] = {
            name: numbers[name] for name in ("loss", "accuracy") if name in numbers
        }
        self._measured, self._computed = -1, 0
        self._time_us = 0

    @property
    def _has_scores(self) -> bool:
        return bool(self._assumed) or not self.learner.dry

    def due(self, round: int) -> bool:
        """Whether the models of a round will be measured, or assumed to have been."""
        return self._has_scores and round % self.experiment.evaluate.every == 0

    def on_round(self, round: int, models: Models, updates: int) -> bool:
        """Take note of a round that has ended.

        Args:
            round: its number; 0 is the start.
            models: the models at its end.
            updates: client updates that have arrived since the start.

        Returns:
            Whether the run has reached its target.
        """
        self.models, self._time_us = models, self.world.clock.now
        self.write_round(round, updates)
        if self.keeper is not None:
            self.keeper.round_begins(round)
        if self.due(round):
            self._measure()
            self._computed = round
        elif round - self._computed >= PENDING and not self.learner.dry:
            compute(models.values())
            self._computed = round
        every = self.experiment.record.weights_every
        if self.keeper is not None and every and round and round % every == 0 and not self.learner.dry:
            keep(self.keeper.folder, round, self.learner.engine.task, models)
        self.tell(updates)
        if self.keeper is not None:
            self.keeper.round_ends()
        return self.time_to_target_s is not None

    def close(self) -> None:
        """Measure the last models if that has not been done."""
        if self._has_scores and self._measured != self.round:
            self._measure()
        if self.learner.final is not None and not self.learner.dry and self.models:
            self._measure_final()

    def _measure(self) -> None:
        self._measured = self.round
        if self.learner.dry:
            self.scores = self._assumed
            self.judge(self.scores.get("accuracy"), self._time_us)
            return
        book = self.learner.book
        try:
            with book.aside():
                self._measure_models()
        except Mismatch:
            if not book.lenient:  # a run that goes on may have measured other rounds before
                raise

    def _measure_models(self) -> None:
        each = {node: self.learner.evaluate(self.models[node]) for node in self._chosen()}
        self._compute(each.values())
        scores = {node: dict(result.read()) for node, result in each.items()}
        for node, values in scores.items():
            values |= self._distance(self.models[node])
            self._check(node, values)
        self.scores = self._named(scores[SYSTEM]) if SYSTEM in scores else self._summarise(scores)
        now = self._time_us
        for name, value in self.scores.items():
            self.record.metric(self.round, now, name, value)
        if SYSTEM not in scores:
            for node, values in scores.items():
                for name, value in values.items():
                    self.record.metric(self.round, now, name, value, node)
        self._measure_own(each)
        self.judge(self.scores.get("accuracy"), self._time_us)

    def _measure_own(self, evaluated: Iterable[int]) -> None:
        """Measure how well clients do on what they have held out: with the server's model and what is their own."""
        if not self.learner.tests:
            return
        each = self._models_of(list(evaluated))
        for name, values in self._own_scores(each).items():
            told = shares(values, name)
            self._tell_clients(f"client_{name}", values, {"": told["_mean"], **told}, ("", "_worst_decile"))
        steps = self.experiment.evaluate.personal
        if steps is None:
            return
        now_s = self.world.clock.now_s
        had: dict[int, Deferred] = {}
        tuned: dict[int, Deferred] = {}
        for id, model in each.items():
            for_itself, measured = (Place(id, self.round, now_s, visit) for visit in (OWN, MEASURED))
            had[id] = self.personal(Client(id, model, partial(self.tuning, for_itself), self.kept(id)))
            tuned[id] = self.tuning(measured, had[id], steps)
        for what, models in {"personal": had, "tuned": tuned}.items():
            for name, values in self._own_scores(models).items():
                told = shares(values, name)
                self._tell_clients(f"{what}_{name}", values, told, told)

    def _own_scores(self, models: Mapping[int, Deferred]) -> dict[str, dict[int, float]]:
        """Measure a model of each client on what the client has held out, and return the scores by name and client."""
        found = {client: self.learner.evaluate_own(model, client) for client, model in models.items()}
        self._compute(found.values())
        scores = {client: dict(score.read()) for client, score in found.items()}
        names = next(iter(scores.values()))
        return {name: {client: score[name] for client, score in scores.items()} for name in names}

    def _tell_clients(
        self, name: str, values: Mapping[int, float], told: Mapping[str, float], ends: Iterable[str]
    ) -> None:
        """Record a score of each client, and what there is to say of all of them."""
        for end in ends:
            self.scores[name + end] = told[end]
            self.record.metric(self.round, self._time_us, name + end, told[end])
        for client, value in values.items():
            self.record.metric(self.round, self._time_us, name, value, client)

    def _models_of(self, evaluated: list[int]) -> dict[int, Deferred]:
        """Return the model of each client that holds some data out: its own, its server's, or that of all."""
        if SYSTEM in self.models:
            return {
                client: self.own(self.models[SYSTEM], client) for client in range(len(self.learner.tests))
            }
        if self.homes:
            homes = self.homes.items()
            return {
                client: self.own(self.models[home], client) for client, home in homes if home in evaluated
            }
        return {client: self.models[client] for client in evaluated}

    def _measure_final(self) -> None:
        """Look at the test, once: the mean over the models, where there are several."""
        with self.learner.book.aside():
            found = [self.learner.evaluate_final(model) for model in self.models.values()]
            self._compute(found)
            scores = [dict(score.read()) for score in found]
        for name in scores[0]:
            self.final[f"test_{name}"] = math.fsum(one[name] for one in scores) / len(scores)
            self.record.metric(self.round, self._time_us, f"test_{name}", self.final[f"test_{name}"])

    def _compute(self, wanted: Iterable[Deferred]) -> None:
        """Compute scores; an error in evaluation itself is told with its round and time."""
        try:
            compute(wanted)
        except RunError as error:
            if error.round is not None or isinstance(error, Mismatch):
                raise
            now_s = self.world.clock.now_s
            raise RunError(error.reason, error.node, self.round, now_s, error.phase) from error.__cause__

    def _distance(self, model: Deferred) -> dict[str, float]:
        """Return how far a model is from the best one, where that is known."""
        if self.learner.optimum is None:
            return {}
        optimum = self.learner.optimum.double()

        def distance() -> float:
            return float(torch.linalg.vector_norm(model.value().double() - optimum))

        return {"distance": noted([model], "distance", distance)}

    def _chosen(self) -> list[int]:
        """Return the nodes whose own models are evaluated: all of them, or a share drawn for the round."""
        nodes, share = list(self.models), self.experiment.evaluate.nodes
        if share == 1 or len(nodes) == 1:
            return nodes
        count = max(1, math.ceil(share * len(nodes) - 1e-9))
        rng = stream(self.learner.seed, "evaluate", round=self.round)
        return [nodes[i] for i in sorted(rng.choice(len(nodes), count, replace=False))]

    def _named(self, scores: dict[str, float]) -> dict[str, float]:
        """Return the scores of a round's one model; where it is not a server's, also under what it is."""
        return scores | {f"{name}_of_{self.subject}": scores[name] for name in scores if self.subject}

    def _summarise(self, scores: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        """Return scores by what was evaluated.

        ``accuracy`` is the mean over the ``nodes_evaluated`` nodes, ``accuracy_min``, ``accuracy_max`` and
        ``accuracy_worst_decile`` are theirs, too (the last is the mean of the worst tenth); ``accuracy_of_average`` is
        the score of the average of all nodes' models, and ``consensus_distance`` is how far all models' weights are
        from it.
        """
        summary = {"nodes_evaluated": float(len(scores))}
        for name in next(iter(scores.values())):
            values = sorted(one[name] for one in scores.values())
            summary[name] = math.fsum(values) / len(values)
            summary[f"{name}_min"], summary[f"{name}_max"] = values[0], values[-1]
            tenth = math.ceil(len(values) / 10)
            worst = values[:tenth] if rises(name) else values[-tenth:]
            summary[f"{name}_worst_decile"] = math.fsum(worst) / tenth
        task, models = self.learner.engine.task, {f"{at}": one for at, one in enumerate(self.models.values())}
        spread = Deferred(Spread(task.trained if task.buffers else None), models)
        found = self.learner.evaluate(spread.pick("average"))
        self._compute([found])
        summary |= {f"{name}_of_average": value for name, value in found.read().items()}
        summary["consensus_distance"] = spread.read("consensus_distance")
        return summary

    def _check(self, node: int, scores: Mapping[str, float]) -> None:
        bad = [name for name, value in scores.items() if not math.isfinite(value)]
        if bad:
            place = None if node == SYSTEM else node
            why = (
                "a smaller learning rate may help"
                if self.round
                else "it is the initial model's, before any step"
            )
            reason = f"the test {bad[0]} is {scores[bad[0]]}; {why}"
            raise NotFiniteError(reason, place, self.round, self.world.clock.now_s, "evaluate")
