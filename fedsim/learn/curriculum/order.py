"""Which of a client's samples are hard: scores by models, and the order that follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fedsim.spec.local import Score

OWN = "curriculum.own"
"""What a client keeps: the weights of its own last visit, zeros before the first."""

Judge = Callable[[Tensor], Tensor]
"""From weights [P] to the scores of samples [n]."""


class Order:
    """Ranks a client's samples by scores, which are computed once in a visit.

    Args:
        score: which model judges; a client that has none of its own yet takes the one that it has received.
        measure: ``"loss"``, or ``"error"`` for 1 where a sample is classified wrongly.
        reverse: whether the hardest sample comes first.
    """

    def __init__(
        self, score: Score = "global", measure: Literal["loss", "error"] = "loss", reverse: bool = False
    ) -> None:
        self.score, self.measure, self.reverse = score, measure, reverse
        self.keeps: tuple[str, ...] = (OWN,) if score in ("local", "both") else ()
        self.passes = {"global": 1, "local": 1, "both": 2, "expert": 0}[score]

    def work(self, samples: int) -> int:
        """Return what scoring costs in per-sample gradients; a forward pass counts as a third of one.

        >>> Order("both").work(9)
        6
        """
        return -(-samples * self.passes // 3)

    def scores(self, judge: Judge, given: dict[str, Tensor]) -> Tensor:
        """Return how hard samples are [n].

        Args:
            judge: scores them with a model.
            given: the weights received as ``"arrays"`` [P], and the client's own as :data:`OWN` [P] if it needs them.
        """
        received = given["arrays"]
        if self.score == "global":
            return judge(received)
        own = given[OWN]
        visited = (own != 0).any()  # a trained model is never all zeros
        if self.score == "local":
            return judge(torch.where(visited, own, received))
        return judge(received) + torch.where(visited, judge(own), 0.0)

    def arrange(self, scores: Tensor) -> Tensor:
        """Return the samples' positions from the first to the last [n]; of equal scores, the smaller goes first.

        >>> Order().arrange(torch.tensor([2.0, 1.0, 1.0])).tolist()
        [1, 2, 0]
        >>> Order(reverse=True).arrange(torch.tensor([2.0, 1.0, 1.0])).tolist()
        [0, 2, 1]
        """
        ascending = scores.argsort(stable=True)
        return ascending.flip(0) if self.reverse else ascending
