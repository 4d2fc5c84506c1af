"""Local updates that a curriculum orders, and the scoring of whole clients."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from fedsim.errors import MISSING, BadValue
from fedsim.learn.curriculum.order import OWN, Order
from fedsim.learn.curriculum.pacing import in_round
from fedsim.learn.local import LocalSGD, LocalUpdate, State
from fedsim.learn.sampling import Nothing
from fedsim.learn.task import Batch, Gradient
from fedsim.spec.experiment import Local
from fedsim.spec.local import Score

RECENT = 64
"""Of how many rounds an update is kept: clients may be that many rounds apart and still train in one batch."""


class Ordered(LocalUpdate):
    """A local update whose samples are ranked before it starts.

    Args:
        update: what is done with the ranked samples; its state must call the weights that it trains ``"weights"``.
        order: ranks them; None leaves them as they are.
        remembers: whether the client keeps its trained weights, whoever needs them.

    >>> from fedsim.spec.local import Curriculum
    >>> local = Local(batch_size=4, curriculum=Curriculum(floor=1))
    >>> update = Ordered(LocalSGD(local), Order("local"))
    >>> update.keeps, update.work(9) - LocalSGD(local).work(9)
    (('curriculum.own',), 3)
    """

    def __init__(self, update: LocalUpdate, order: Order | None = None, remembers: bool = False) -> None:
        self.update, self.order = update, order
        self.sampling, self.gradients = update.sampling, update.gradients
        self.takes, self.sends, self.models = update.takes, update.sends, update.models
        self.splits = update.splits
        self.metrics, self.codec = update.metrics, update.codec
        needed = () if order is None else order.keeps
        self._own = (OWN,) if remembers else needed
        self.keeps = (*update.keeps, *self._own)
        self._rounds: dict[int, LocalUpdate] = {}

    def named_by(self) -> object:
        """Name what it was made of; what it remembers of rounds follows from that."""
        return self.update, self.order, self.keeps

    def over(self, update: LocalUpdate) -> Ordered:
        """Return the same around another update."""
        return Ordered(update, self.order, bool(self._own))

    def at(self, round: int) -> LocalUpdate:
        """Return the update with the samples of a round, if the clock runs over rounds."""
        if self.curriculum is None or self.curriculum.rounds is None:
            return self
        if round not in self._rounds:
            if len(self._rounds) == RECENT:
                del self._rounds[next(iter(self._rounds))]
            inner = copy.copy(self.update)
            inner.sampling = inner.sampling.paced(in_round(self.curriculum, round))
            self._rounds[round] = self.over(inner)
        return self._rounds[round]

    def work(self, samples: int) -> int:
        """Count the update's own gradients, and the forward passes of scoring."""
        return self.update.work(samples) + (0 if self.order is None else self.order.work(samples))

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the update's own."""
        return self.update.scalars(client, samples)

    def draws(self, size: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Return the update's own."""
        return self.update.draws(size, rng)

    def init(self, given: State) -> State:
        """Return the update's own."""
        return self.update.init(given)

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Take the update's own step."""
        return self.update.step(gradient, state, batch)

    def final(self, state: State) -> State:
        """Send what the update sends; keep the weights, too, where they will be asked for."""
        return {**self.update.final(state), **dict.fromkeys(self._own, state["weights"])}


class ClientScore(LocalUpdate):
    """The mean score of all samples of a client, and nothing else.

    Args:
        score: which model judges.
    """

    sends = ()
    models = ()
    metrics = ("score",)
    sampling = Nothing()

    def __init__(self, score: Score = "global") -> None:
        self.order: Order = Order(score)
        self.keeps = self.order.keeps

    def work(self, samples: int) -> int:
        """Count the forward passes."""
        return self.order.work(samples)

    def init(self, given: State) -> State:
        """Take the score, and hold what is kept."""
        score = given.get(
            "score", torch.zeros((), dtype=given["arrays"].dtype, device=given["arrays"].device)
        )
        return {"score": score, **{name: given[name] for name in self.keeps}}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """There is no step."""
        return state

    def final(self, state: State) -> State:
        """Send the score, and keep what was kept."""
        return dict(state)


def _check_steps(updates: Mapping[str, LocalUpdate], local: Local) -> None:
    """Refuse an optimiser, clipping or a schedule that no client would follow.

    Raises:
        BadValue: naming what nobody follows.
    """
    sgd = any(isinstance(one, LocalSGD) for one in updates.values())
    rule = "this strategy's clients make steps of their own, which are {} alone"
    if local.optimizer.name != "sgd" and not sgd:
        raise BadValue("local.optimizer", local.optimizer.name, rule.format("learning rate times direction"))
    if local.clip_norm is not None and not sgd:
        raise BadValue("local.clip_norm", local.clip_norm, rule.format("of gradients as they are"))
    if local.schedule is not None and not any("lr" in one.scalars(0, 1) for one in updates.values()):
        raise BadValue("local.schedule", local.schedule.name, "this strategy's clients have no learning rate")


def ordered(
    updates: Mapping[str, LocalUpdate], local: Local, remembers: bool = False
) -> dict[str, LocalUpdate]:
    """Put a curriculum around those updates that draw their batches as local training does.

    Args:
        updates: what clients do, by message type.
        local: local training; its curriculum decides.
        remembers: whether the clients keep their trained weights because something else asks for them.

    Raises:
        BadValue: if the algorithm has no use for the curriculum, or for a learning rate that decays.
    """
    paced = local.curriculum
    _check_steps(updates, local)
    if local.lr_decay and not any(isinstance(one, LocalSGD) for one in updates.values()):
        raise BadValue(
            "local.lr_decay", local.lr_decay, "only plain local SGD has a learning rate that decays"
        )
    if paced is None and not remembers:
        return dict(updates)
    if paced is not None and not any(one.curriculum for one in updates.values()):
        rule = (
            "this strategy's clients draw their samples in a way of their own, which no curriculum can order"
        )
        raise BadValue("local.curriculum", MISSING, rule)
    order = None
    if paced is not None and paced.scored:
        order = Order(paced.score, paced.measure, paced.order == "anti")
    return {
        action: Ordered(one, order, remembers)
        if one.curriculum or (remembers and hasattr(one, "local"))
        else one
        for action, one in updates.items()
    }
