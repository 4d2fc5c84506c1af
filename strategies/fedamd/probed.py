"""FedAMD, FedAvg and SCAFFOLD that say how far their steps are from the true gradient.

Now and then all clients that are online send their whole gradient at the model of the round: ∇F(x) is the mean of
these. It is compared with where the clients went: y_i after K steps of size η, so that their mean step is
d_i = (x - y_i) / (η K). The probes are real messages and real work, at the end of a round, and change nothing of what
the method does; only time, bytes and gradients are no longer those of the method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.errors import BadValue
from fedsim.learn.deferred import Deferred, compute, mean, noted
from fedsim.learn.local import LocalUpdate, MeanGradient, rate, steps_of
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, ask_all, uniform_mean
from strategies.fedamd.fedamd import ANCHOR, FedAMD
from strategies.server.fedavg import FedAvg
from strategies.server.scaffold import SCAFFOLD

PROBE = "train.probe"


class Probed(Rounds):
    """Measures, in every :attr:`EVERY`-th round, how far the clients' steps are from the true gradient.

    ``drift`` is how far a client's model ends from the one that it got, ``client_error`` how far its mean step is from
    the true gradient, ‖d_i - ∇F(x)‖ / ‖∇F(x)‖, both as means over the clients of the round; ``round_error`` is the
    same of the mean over them, by which the server moves. ``memory_error`` is that of what the method remembers as the
    true gradient: the mean of the caches, or of the controls.
    """

    EVERY: ClassVar[int] = 4
    """Even, so that with a period of 2 there are miners in every probed round, if anchors come first."""

    _probed: tuple[int, dict[str, float]] = (0, {})

    def local_updates(self) -> Mapping[str, LocalUpdate]:
        """Return what clients do, and what they are probed with."""
        return {**super().local_updates(), PROBE: MeanGradient()}

    def check(self, clients: int) -> None:
        """Refuse steps that are not all of one size, and passes whose number of steps differs from client to client."""
        super().check(clients)
        steps_of(self.local, "the probe")
        changes = {
            "local.lr": self.local.lr if isinstance(self.local.lr, list) else None,
            "local.lr_decay": self.local.lr_decay or None,
            "local.schedule": self.local.schedule and self.local.schedule.name,
            "halve_lr_at": getattr(self, "halve_lr_at", None) or None,
        }
        for key, value in changes.items():
            if value is not None:
                raise BadValue(key, value, "the probe measures in steps of one size", "take one rate for all")

    def close(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """Probe before the round's replies change anything."""
        moved = [one for one in replies if one.action != ANCHOR]
        if round % self.EVERY == 0 and moved and not model.is_phantom:
            gradients = self.exchange(ask_all(self.online(), PROBE, arrays=model))
            self._probed = round, self._compare(model, moved, uniform_mean(gradients))
        return super().close(round, model, replies)

    def metrics(self, round: int) -> Iterable[Metric]:
        """Return what the method has to say, and what was measured of the round."""
        yield from super().metrics(round)
        if self._probed[0] == round:
            yield from (Metric(name, value) for name, value in self._probed[1].items())

    def walked(self, model: Deferred, reply: Reply) -> Deferred:
        """Return x - y [P] of a reply."""
        return model - reply.vectors["arrays"]

    def remembered(self) -> Deferred | None:
        """Return what the method remembers as the true gradient [P], if it does."""
        return None

    def _compare(self, model: Deferred, replies: Sequence[Reply], truth: Deferred) -> dict[str, float]:
        walks, memory = [self.walked(model, reply) for reply in replies], self.remembered()
        read = [truth, mean(walks), *walks, *([] if memory is None else [memory])]
        length = rate(self.local, 0) * steps_of(self.local, "the probe")

        def measured() -> dict[str, float]:
            compute(read)
            true, whole, *rest = (value.value().double() for value in read)
            each, kept = rest[: len(walks)], rest[len(walks) :]
            found = {
                "drift": sum(float(torch.linalg.vector_norm(walk)) for walk in each) / len(each),
                "client_error": sum(error(walk / length, true) for walk in each) / len(each),
                "round_error": error(whole / length, true),
            }
            return found | ({"memory_error": error(kept[0], true)} if kept else {})

        return dict(noted(read, "probe", measured))


class ProbedFedAMD(Probed, FedAMD):
    """FedAMD, which remembers the mean of its caches; miners are probed."""

    def walked(self, model: Deferred, reply: Reply) -> Deferred:
        """Return what a miner sends, which is x - y already."""
        return reply.vectors["arrays"]

    def remembered(self) -> Deferred | None:
        """Return the mean of the caches, which the miners of the round have got."""
        return self.anchor_mean()


class ProbedFedAvg(Probed, FedAvg):
    """FedAvg, which remembers nothing."""


class ProbedSCAFFOLD(Probed, SCAFFOLD):
    """SCAFFOLD, which remembers the mean of the controls."""

    def walked(self, model: Deferred, reply: Reply) -> Deferred:
        """Return the opposite of what a client sends."""
        return -1.0 * reply.vectors["arrays"]

    def remembered(self) -> Deferred | None:
        """Return the mean of the controls, which the clients of the round have got."""
        return self._control


def error(estimate: Tensor, true: Tensor) -> float:
    """Return how far an estimate [P] is from a gradient [P], relative to that.

    >>> error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))
    0.75
    """
    return float(torch.linalg.vector_norm(estimate - true) / torch.linalg.vector_norm(true))
