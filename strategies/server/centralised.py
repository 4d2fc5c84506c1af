"""Training in one place: what a federation is compared with.

All clients' samples lie with the server, which trains one model on them. A round has as many per-sample gradients as
one of FedAvg has with clients of average size, so rounds, gradients and time mean the same. No byte is sent: the data
are there already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.errors import MISSING, BadValue
from fedsim.learn.deferred import Deferred
from fedsim.learn.local import LocalSGD
from fedsim.learn.sampling import LocalBatches, Sampling, batch_width, shuffled_batches
from fedsim.methods.metrics import Metric
from fedsim.methods.rounds import Rounds
from fedsim.methods.server import Reply, Server
from fedsim.spec.experiment import Local


@dataclass(kw_only=True, eq=False)
class Centralised(Rounds):
    """Train on all data in one place, with as many gradients as so many clients would compute.

    The machine is as fast as the clients are on average, and is always there unless the server fails.

    Args:
        participants: how many clients a round stands for.
    """

    pooled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.select:
            raise BadValue("select", MISSING, "chooses clients, and centralised training asks none")
        for key in ("curriculum", "lr"):
            value = getattr(self.local, key)
            if value is not None and not isinstance(value, float):
                raise BadValue(
                    f"local.{key}", MISSING, "is of clients, and centralised training has one model"
                )
        super().__post_init__()

    def check(self, clients: int) -> None:
        """Take note of how many clients the data are of."""
        super().check(clients)
        self.updates = {"train": PooledSGD(self.local, self.participants, clients)}

    def check_around(self, transforms: Sequence[object]) -> None:
        """Refuse what is done to messages."""
        if transforms:
            raise BadValue(
                "around", MISSING, "changes what clients send, and centralised training sends nothing"
            )

    def step(self, server: Server, round: int, model: Deferred, timeout_s: float | None) -> Deferred:
        """Return the weights [P] after one more round."""
        self.came = [server.train_here(round, model)]
        return self.merge(round, model, self.came)

    def merge(self, round: int, model: Deferred, replies: Sequence[Reply]) -> Deferred:
        """x ← y."""
        return replies[0].vectors["arrays"]

    def metrics(self, round: int) -> list[Metric]:
        """There is nothing to count."""
        return []


class PooledSGD(LocalSGD):
    """Local SGD on the samples of all clients.

    Args:
        local: local training, of a client.
        participants: how many clients' gradients it has.
        clients: how many the samples belong to.
    """

    def __init__(self, local: Local, participants: int, clients: int) -> None:
        super().__init__(local)
        self.sampling = PooledBatches(local, participants, clients)


@dataclass(frozen=True)
class PooledBatches(Sampling):
    """Batches of shuffled passes over all samples, until so many have been used; the last may be short.

    Args:
        local: local training, of a client.
        participants: how many clients' gradients there are.
        clients: how many the samples belong to.

    >>> PooledBatches(Local(epochs=2, batch_size=4), 3, 5).size(50)
    60
    """

    local: Local
    participants: int
    clients: int

    def size(self, samples: int) -> int:
        """Count what participants with an average number of samples would use."""
        least, larger = divmod(samples, self.clients)
        batches = LocalBatches(self.local)
        everybody = larger * batches.size(least + 1)
        everybody += (self.clients - larger) * batches.size(least) if least else 0
        return round(self.participants * everybody / self.clients)

    def width(self, samples: int) -> int:
        """Return the batch size, or all samples if there are fewer."""
        return batch_width(self.local, samples)

    def steps(self, samples: int) -> int:
        """Count the batches."""
        passes, rest = divmod(self.size(samples), samples)
        width = self.width(samples)
        return passes * -(-samples // width) + -(-rest // width)

    def batches(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut shuffled passes into batches."""
        total = self.size(samples)
        rows = shuffled_batches(samples, self.width(samples), -(-total // samples), None, rng)
        flat = rows.reshape(-1)
        flat[np.cumsum(flat >= 0) > total] = -1
        return flat.reshape(rows.shape)[: self.steps(samples)]
