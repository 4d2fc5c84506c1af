"""The average of models, and how far they are from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.learn.deferred import Inputs


class Spread:
    """The average of models and the root mean square distance of their weights from it, as a call.

    Args:
        trained: how many of the numbers are weights, where there are others behind them: running statistics and
            counters of batches are averaged, and are no distance between models. None counts all.

    >>> from fedsim.learn.deferred import Deferred
    >>> models = {"0": Deferred.known(torch.tensor([0.0, 0.0])), "1": Deferred.known(torch.tensor([6.0, 8.0]))}
    >>> Deferred(Spread(), models).value()
    {'average': tensor([3., 4.]), 'consensus_distance': 5.0}
    """

    batch = None

    def __init__(self, trained: int | None = None) -> None:
        self.trained = trained

    def run(self, calls: Sequence[Spread], inputs: Sequence[Inputs]) -> Sequence[dict[str, Any]]:
        """Average the models [P] in float64."""
        return [_spread(given, call.trained) for call, given in zip(calls, inputs, strict=True)]


def _spread(given: Inputs, trained: int | None) -> dict[str, Any]:
    models = list(given.values())
    stack = torch.stack(models).double()
    average = stack.mean(0)
    distance = float((stack - average)[:, :trained].norm(dim=1).pow(2).mean().sqrt())
    return {"average": average.to(models[0].dtype), "consensus_distance": distance}
