"""FedNova: clients that take different numbers of steps count by their direction, not by their distance.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor: Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization. NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.errors import BadValue
from fedsim.flower.select import Selector
from fedsim.flower.strategy import Reply, Rounds, weighing
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.local import LocalSGD, steps_taken
from fedsim.parts import Count, Positive
from fedsim.spec.experiment import Local


class FedNova(Rounds):
    """Average the clients' progress per step, and take as many steps as they do on average (Wang et al., NeurIPS 2020).

    Args:
        participants: clients in a round; fewer if fewer are online.
        local: local training; with epochs, clients with more data take more steps.
        server_lr: server learning rate.
        select: chooses the participants.
        seed: of the cohorts.
    """

    def __init__(
        self,
        *,
        participants: Count,
        local: Local,
        server_lr: Positive = 1.0,
        select: Selector | None = None,
        seed: int = 0,
    ) -> None:
        if local.weight_decay:
            raise BadValue("local.weight_decay", local.weight_decay, "FedNova has no weight decay")
        if local.lr_decay:
            raise BadValue("local.lr_decay", local.lr_decay, "FedNova's steps all have one learning rate")
        super().__init__({"train": LocalSGD(local)}, participants, select, seed)
        self.local, self.server_lr = local, server_lr

    def norm(self, samples: int) -> float:
        """Return |a_i|, what the gradients of a client's steps count for in its progress, in all.

        >>> FedNova(participants=1, local=Local(steps=3, momentum=0.5)).norm(10)  # 1.75 + 1.5 + 1
        4.25
        """
        steps, rho = steps_taken(self.local, samples), self.local.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← x - η τ Σ p_i (x - y_i) / |a_i|, where τ = Σ p_i |a_i|."""
        replies = weighing(replies)
        total = sum(reply.weight for reply in replies)
        shares = [reply.weight / total for reply in replies]
        norms = [self.norm(reply.examples) for reply in replies]
        tau = sum(share * norm for share, norm in zip(shares, norms, strict=True))
        factors = [self.server_lr * tau * share / norm for share, norm in zip(shares, norms, strict=True)]
        models = [reply.vectors["arrays"] for reply in replies]
        return combine([model, *models], [1.0 - sum(factors), *factors])
