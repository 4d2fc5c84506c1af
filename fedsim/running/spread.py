"""The average of models, and how far they are from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.learn.deferred import Inputs


class Spread:
    """The average of models and their root mean square distance from it, as a call.

    >>> from fedsim.learn.deferred import Deferred
    >>> models = {"0": Deferred.known(torch.tensor([0.0, 0.0])), "1": Deferred.known(torch.tensor([6.0, 8.0]))}
    >>> Deferred(Spread(), models).value()
    {'average': tensor([3., 4.]), 'consensus_distance': 5.0}
    """

    batch = None

    def run(self, calls: Sequence[Spread], inputs: Sequence[Inputs]) -> Sequence[dict[str, Any]]:
        """Average the models [P] in float64."""
        return [_spread(given) for given in inputs]


def _spread(given: Inputs) -> dict[str, Any]:
    models = list(given.values())
    stack = torch.stack(models).double()
    average = stack.mean(0)
    distance = float((stack - average).norm(dim=1).pow(2).mean().sqrt())
    return {"average": average.to(models[0].dtype), "consensus_distance": distance}
