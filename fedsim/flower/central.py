"""What a server does to all updates: clipping before they are merged, noise on the model after (central privacy)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim import rng
from fedsim.flower.around_strategy import Changed, Wrapped
from fedsim.flower.records import repack, unpack
from fedsim.learn.around import Clip
from fedsim.learn.deferred import apply
from fedsim.learn.local import LocalUpdate
from fedsim.parts import NotNegative, Positive

Updates = Mapping[str, LocalUpdate]


class Central(ABC):
    """Something that goes around a strategy, named in ``strategy.around`` beside the clients' transforms."""

    @abstractmethod
    def around(self, strategy: Strategy, updates: Updates) -> Strategy:
        """Return the strategy with this around it.

        Args:
            strategy: any Flower strategy.
            updates: what clients do, by message type.
        """


class CentralClip(Central):
    """Scale vectors that are too long down to a norm on the server, which trusts no client to do so.

    Args:
        max_norm: the largest Euclidean norm of a vector, or of how far weights are from those that were sent.
    """

    def __init__(self, *, max_norm: Positive) -> None:
        self.max_norm = max_norm

    def around(self, strategy: Strategy, updates: Updates) -> Strategy:
        """Clip what comes in."""
        return _Clipped(strategy, updates, Clip(max_norm=self.max_norm))


class CentralNoise(Central):
    """Add Gaussian noise to the model at the end of every round.

    Args:
        std: standard deviation of the noise on each weight.
        seed: of the noise.
    """

    def __init__(self, *, std: NotNegative, seed: int = 0) -> None:
        self.std, self.seed = std, seed

    def around(self, strategy: Strategy, updates: Updates) -> Strategy:
        """Add noise to what comes out."""
        return _Noisy(strategy, self.std, self.seed)


class _Clipped(Changed):
    def __init__(self, strategy: Strategy, updates: Updates, clip: Clip) -> None:
        super().__init__(strategy, updates)
        self._clip = clip

    def change(self, content: RecordDict, update: LocalUpdate, sent: ArrayRecord) -> None:
        model = unpack(sent)
        for name, record in content.array_records.items():
            vector = unpack(record)
            change = vector - model if name in update.models else vector
            clipped = apply(lambda v: self._clip.apply(v, v), change)
            content[name] = repack(model + clipped if name in update.models else clipped, record)


class _Noisy(Wrapped):
    def __init__(self, strategy: Strategy, std: float, seed: int) -> None:
        super().__init__(strategy)
        self._std, self._seed = std, seed

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return arrays, metrics

        def noisy(model: Tensor) -> Tensor:
            drawn = rng.stream(self._seed, "central noise", round=server_round).standard_normal(len(model))
            return model + self._std * torch.from_numpy(drawn).to(model)

        return repack(apply(noisy, unpack(arrays)), arrays), metrics
