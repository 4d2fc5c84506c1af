"""What goes around a local update: clipping, noise and compression of what a client sends.

A transform knows nothing of the algorithm. Where the algorithm sends weights, the transform sees how far they are from
the weights received; where it sends a gradient or a difference, that itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.codec import Codec, Quantised, Sparse
from fedsim.learn.local import LocalUpdate, State
from fedsim.learn.task import Batch, Gradient
from fedsim.parts import NotNegative, Positive


class Transform(ABC):
    """Changes one vector that a client sends.

    Attributes:
        codec: how the result is written; it must lose nothing of it.
        remembers: whether what is left out now is added to the next vector (error feedback).
        noise: the distribution of the random vector that it needs, if any.
    """

    codec: Codec | None = None
    remembers: bool = False
    noise: Literal["", "normal", "uniform"] = ""

    @abstractmethod
    def apply(self, vector: Tensor, drawn: Tensor) -> Tensor:
        """Return what is sent for a vector [P]; ``drawn`` are the random numbers [P], zeros if it needs none."""


class Clip(Transform):
    """Scale what is too long down to a norm.

    Args:
        max_norm: the largest Euclidean norm of a vector sent.

    >>> Clip(max_norm=1.0).apply(torch.tensor([3.0, 4.0]), torch.zeros(2))
    tensor([0.6000, 0.8000])
    """

    def __init__(self, *, max_norm: Positive) -> None:
        self.max_norm = max_norm

    def apply(self, vector: Tensor, drawn: Tensor) -> Tensor:
        """Return the vector, or a shorter one."""
        length: Tensor = vector.norm()
        return vector * (self.max_norm / length.clamp(min=self.max_norm))


class Noise(Transform):
    """Add Gaussian noise on the client (local differential privacy, behind a clip).

    Args:
        std: standard deviation of the noise on each number.
    """

    noise = "normal"

    def __init__(self, *, std: NotNegative) -> None:
        self.std = std

    def apply(self, vector: Tensor, drawn: Tensor) -> Tensor:
        """Return the vector with noise."""
        return vector + self.std * drawn


class TopK(Transform):
    """Send the largest numbers alone (Stich, Cordonnier, Jaggi: Sparsified SGD with Memory. NeurIPS 2018).

    Args:
        share: the share of the numbers that is sent.
        feedback: whether a client keeps what it did not send, and adds it the next time.
    """

    def __init__(self, *, share: Positive, feedback: bool = True) -> None:
        if share > 1:
            raise BadValue("share", share, "must be at most 1")
        self.codec: Sparse = Sparse(share)
        self.remembers = feedback

    def apply(self, vector: Tensor, drawn: Tensor) -> Tensor:
        """Return the vector with zeros for the small numbers."""
        return self.codec.decode(self.codec.encode(vector), len(vector))


class Quantise(Transform):
    """Send whole numbers of few bits (Alistarh, Grubic, Li, Tomioka, Vojnovic: QSGD. NIPS 2017).

    Args:
        bits: the size of a number.
        rounding: to the nearest level, or up or down by chance so that the mean is right.
        feedback: whether a client keeps what rounding took away, and adds it the next time.
    """

    def __init__(
        self,
        *,
        bits: Literal[8, 16] = 8,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        feedback: bool = True,
    ) -> None:
        self.codec: Quantised = Quantised(bits)
        self.remembers = feedback
        self.noise = "uniform" if rounding == "stochastic" else ""

    def apply(self, vector: Tensor, drawn: Tensor) -> Tensor:
        """Return the vector, rounded."""
        written = self.codec.encode(vector, drawn if self.noise else None)
        return self.codec.decode(written, len(vector))


class Around(LocalUpdate):
    """A local update whose vectors go through a transform before they are sent.

    Args:
        update: the algorithm.
        transform: what is done to each vector that it sends.
        label: names what the client keeps for the transform.

    Raises:
        BadValue: if the transform follows one that compresses.

    >>> from fedsim.spec.experiment import Local
    >>> from fedsim.learn.local import LocalSGD
    >>> Around(LocalSGD(Local()), TopK(share=0.1), "train.0").keeps
    ('train.0.kept.arrays',)
    """

    def __init__(self, update: LocalUpdate, transform: Transform, label: str) -> None:
        if update.codec is not None:
            rule = "nothing can follow a transform that compresses: it would undo it"
            name = type(transform).__name__.lower()
            raise BadValue("name", name, rule, "let the compression be the last")
        self.update, self.transform, self.label = update, transform, label
        self.takes, self.sends, self.models = update.takes, update.sends, update.models
        self.splits = update.splits
        self.metrics, self.codec = update.metrics, transform.codec
        self.sampling, self.gradients, self.order = update.sampling, update.gradients, update.order
        self._rounds: dict[LocalUpdate, LocalUpdate] = {update: self}
        self._drawn = {name: f"{label}.drawn.{name}" for name in update.sends}
        self._kept = {name: f"{label}.kept.{name}" for name in update.sends if transform.remembers}
        self._received = f"{label}.received"
        self.keeps = (*update.keeps, *self._kept.values())

    def named_by(self) -> object:
        """Name what it was made of; what it remembers of rounds follows from that."""
        return self.update, self.transform, self.label

    def over(self, update: LocalUpdate) -> Around:
        """Return the same around another update."""
        return Around(update, self.transform, self.label)

    def at(self, round: int) -> LocalUpdate:
        """Go around what the update does in a round."""
        inner = self.update.at(round)
        if inner not in self._rounds:
            self._rounds[inner] = self.over(inner)
        return self._rounds[inner]

    def work(self, samples: int) -> int:
        """Count the update's own work alone."""
        return self.update.work(samples)

    def scalars(self, client: int, samples: int) -> Mapping[str, float]:
        """Return the update's own."""
        return self.update.scalars(client, samples)

    def draws(self, size: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Draw the transform's noise after the update's."""
        drawn = dict(self.update.draws(size, rng))
        if self.transform.noise:
            draw = rng.standard_normal if self.transform.noise == "normal" else rng.random
            drawn.update((name, draw(size)) for name in self._drawn.values())
        return drawn

    def init(self, given: State) -> State:
        """Keep what the transform needs beside the update's own state."""
        own = {name: given[name] for name in (*self._drawn.values(), *self._kept.values()) if name in given}
        return {**self.update.init(given), **own, self._received: given["arrays"]}

    def step(self, gradient: Gradient, state: State, batch: Batch) -> State:
        """Take the update's own step."""
        own = {*self._drawn.values(), *self._kept.values(), self._received} & state.keys()
        inner = {name: value for name, value in state.items() if name not in own}
        return {**self.update.step(gradient, inner, batch), **{name: state[name] for name in sorted(own)}}

    def final(self, state: State) -> State:
        """Transform what the update sends."""
        result, received = dict(self.update.final(state)), state[self._received]
        for name in self.update.sends:
            change = result[name] - received if name in self.models else result[name]
            if name in self._kept:
                change = change + state[self._kept[name]]
            sent = self.transform.apply(change, state.get(self._drawn[name], torch.zeros_like(change)))
            if name in self._kept:
                result[self._kept[name]] = change - sent
            result[name] = received + sent if name in self.models else sent
        return result
