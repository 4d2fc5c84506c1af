"""What a server does to all updates: clipping before they are merged, noise on the model after (central privacy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedsim import rng
from fedsim.learn.around import Clip
from fedsim.learn.deferred import Deferred, apply
from fedsim.learn.local import LocalUpdate
from fedsim.methods.server import Reply
from fedsim.parts import NotNegative, Positive


class Central:
    """Something that goes around a method, named in ``strategy.around`` beside the clients' transforms."""

    def vector(self, vector: Deferred, model: Deferred | None) -> Deferred:
        """Return what counts in the place of a vector [P] that a client sent; by default the same.

        Args:
            vector: what it sent.
            model: the weights [P] that it was sent, if it answers with weights; None if with a change.
        """
        del model
        return vector

    def model(self, round: int, model: Deferred) -> Deferred:
        """Return what counts as the weights [P] at the end of a round; by default the same."""
        del round
        return model


class CentralClip(Central):
    """Scale vectors that are too long down to a norm on the server, which trusts no client to do so.

    Args:
        max_norm: the largest Euclidean norm of a vector, or of how far weights are from those that were sent.
    """

    def __init__(self, *, max_norm: Positive) -> None:
        self.max_norm = max_norm
        self._clip = Clip(max_norm=max_norm)

    def vector(self, vector: Deferred, model: Deferred | None) -> Deferred:
        """Clip what comes in."""
        change = vector if model is None else vector - model
        clipped = apply(self._apply, change)
        return clipped if model is None else model + clipped

    def _apply(self, vector: Tensor) -> Tensor:
        return self._clip.apply(vector, vector)


class CentralNoise(Central):
    """Add Gaussian noise to the model at the end of every round.

    Args:
        std: standard deviation of the noise on each weight.
        seed: of the noise.
    """

    def __init__(self, *, std: NotNegative, seed: int = 0) -> None:
        self.std, self.seed = std, seed

    def model(self, round: int, model: Deferred) -> Deferred:
        """Add noise to what comes out."""

        def noisy(weights: Tensor) -> Tensor:
            drawn = rng.stream(self.seed, "central noise", round=round).standard_normal(len(weights))
            return weights + self.std * torch.from_numpy(drawn).to(weights)

        return apply(noisy, model)


def changed(
    central: Iterable[Central], reply: Reply, updates: Mapping[str, LocalUpdate], model: Deferred
) -> Reply:
    """Return a reply as the server's transforms leave it; replies to other messages than updates stay.

    Args:
        central: what the server does, the first one first.
        reply: a client's.
        updates: what clients do, by message type.
        model: the weights [P] of the round, from which weights count as changes.
    """
    update = updates.get(reply.action)
    if update is None:
        return reply
    vectors = dict(reply.vectors)
    for one in central:
        for name, vector in vectors.items():
            vectors[name] = one.vector(vector, model if name in update.models else None)
    return replace(reply, vectors=vectors)
