"""FedNova: clients that take different numbers of steps count by their direction, not by their distance.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor: Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization. NeurIPS 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.errors import BadValue
from fedsim.flower.face import FlowerFace
from fedsim.learn.deferred import Deferred, combine
from fedsim.learn.sampling import steps_taken
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, weighing
from fedsim.parts import Positive


@dataclass(kw_only=True, eq=False)
class FedNova(FlowerFace, Rounds):
    """Average the clients' progress per step, and take as many steps as they do on average (Wang et al., NeurIPS 2020).

    Args:
        server_lr: server learning rate.
    """

    server_lr: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local.weight_decay:
            raise BadValue("local.weight_decay", self.local.weight_decay, "FedNova has no weight decay")
        if not self.local.steps_plainly:
            rule = "FedNova reckons with plain steps: take sgd without clip_norm"
            raise BadValue("local.optimizer", self.local.optimizer.name, rule)
        rule = "FedNova's steps all have one learning rate"
        if self.local.lr_decay:
            raise BadValue("local.lr_decay", self.local.lr_decay, rule)
        # Who steps further would count more, which is what it is there to undo.
        if isinstance(self.local.lr, list):
            raise BadValue("local.lr", self.local.lr, rule)

    def norm(self, samples: int) -> float:
        """Return |a_i|, what the gradients of a client's steps count for in its progress, in all.

        >>> from fedsim.spec.experiment import Local
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
